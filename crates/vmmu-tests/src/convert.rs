//! One type of the library, the processor or the specification as another's.
//!
//! Invariant:
//! 1. The three have the same numbers for registers and error codes: those of the processor manuals.

use vmmu::paging;
use vmmu::walk;
use vmmu_cpu as cpu;
use vmmu_spec as spec;

/// Returns an access of the specification as the processor's.
#[must_use]
pub const fn cpu_access(access: spec::Access) -> cpu::Access {
    let kind = match access.kind() {
        spec::Kind::Read => cpu::Kind::Read,
        spec::Kind::Write => cpu::Kind::Write,
        spec::Kind::Fetch => cpu::Kind::Execute,
    };
    let privilege = match access.privilege() {
        spec::Privilege::User => cpu::Privilege::User,
        spec::Privilege::Supervisor => cpu::Privilege::Supervisor,
        spec::Privilege::SupervisorAc => cpu::Privilege::SupervisorAc,
        spec::Privilege::Implicit => cpu::Privilege::Implicit,
    };
    cpu::Access::new(kind, privilege)
}

/// Returns an access of the specification as the library's.
#[must_use]
pub const fn access(access: spec::Access) -> walk::Access {
    let kind = access_kind(access.kind());
    match access.privilege() {
        spec::Privilege::User => walk::Access::new(kind, walk::Privilege::USER),
        spec::Privilege::Supervisor => walk::Access::new(kind, walk::Privilege::KERNEL),
        spec::Privilege::SupervisorAc => {
            walk::Access::new(kind, walk::Privilege::new(0, paging::Rflags::AC))
        }
        spec::Privilege::Implicit => walk::Access::implicit(kind),
    }
}

/// Returns a kind of the specification as the library's.
#[must_use]
pub const fn access_kind(kind: spec::Kind) -> walk::AccessKind {
    match kind {
        spec::Kind::Read => walk::AccessKind::Read,
        spec::Kind::Write => walk::AccessKind::Write,
        spec::Kind::Fetch => walk::AccessKind::Fetch,
    }
}

/// Returns the specification's processor for a model of the library.
///
/// # Panics
/// Never: both allow the same widths.
#[must_use]
pub fn processor(model: paging::CpuModel) -> spec::Processor {
    let has = |feature| model.features.contains(feature);
    let mut features = spec::Features::empty();
    features.set(
        spec::Features::GIGABYTE_PAGES,
        has(paging::CpuFeatures::PAGES_1G),
    );
    features.set(
        spec::Features::UPPER_BIT_8_RESERVED,
        has(paging::CpuFeatures::UPPER_GLOBAL_RESERVED),
    );
    features.set(spec::Features::PSE36, has(paging::CpuFeatures::PSE36));
    let bits = spec::PhysBits::new(model.phys_bits.get()).expect("32 to 52 in both");
    spec::Processor::new(bits, features)
}

/// Returns the specification's control state for a paging state of the library.
///
/// # Panics
/// If no processor can be in the state.
#[must_use]
pub fn controls(state: &paging::PagingState) -> spec::Controls {
    let controls = spec::Controls::new(
        processor(state.cpu),
        spec::Cr0::from_bits_truncate(state.cr0.bits()),
        spec::Cr4::from_bits_truncate(state.cr4.bits()),
        spec::Efer::from_bits_truncate(state.efer.bits()),
    );
    let controls = controls.expect("a state that a processor can be in");
    let controls = controls.with_pkru(spec::Pkru::new(state.pkru.get()));
    match state.pdptes {
        Some(pdptes) => controls.with_pdptes(spec::Pdptes::Registers(pdptes.get())),
        None => controls,
    }
}
