//! One type of the library or the processor as the specification's.
//!
//! Invariant:
//! 1. The three have the same numbers for registers and error codes: those of the processor manuals.

use vmmu::paging::{CpuFeatures, CpuModel, PagingState};
use vmmu_cpu as cpu;
use vmmu_spec as spec;

/// Returns an access of the processor as the specification's.
pub(super) const fn access(access: cpu::Access) -> spec::Access {
    let kind = match access.kind {
        cpu::Kind::Read => spec::Kind::Read,
        cpu::Kind::Write => spec::Kind::Write,
        cpu::Kind::Execute => spec::Kind::Fetch,
    };
    let privilege = match access.privilege {
        cpu::Privilege::User => spec::Privilege::User,
        cpu::Privilege::Supervisor => spec::Privilege::Supervisor,
        cpu::Privilege::SupervisorAc => spec::Privilege::SupervisorAc,
        cpu::Privilege::Implicit => spec::Privilege::Implicit,
    };
    spec::Access::new(kind, privilege)
}

/// Returns an access of the specification as the processor's.
pub(super) const fn cpu_access(access: spec::Access) -> cpu::Access {
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

/// Returns the specification's processor for a model of the library.
fn processor(model: CpuModel) -> spec::Processor {
    let has = |feature| model.features.contains(feature);
    let mut features = spec::Features::empty();
    features.set(spec::Features::GIGABYTE_PAGES, has(CpuFeatures::PAGES_1G));
    features.set(
        spec::Features::UPPER_BIT_8_RESERVED,
        has(CpuFeatures::UPPER_GLOBAL_RESERVED),
    );
    features.set(spec::Features::PSE36, has(CpuFeatures::PSE36));
    let bits = spec::PhysBits::new(model.phys_bits.get()).unwrap_or(spec::PhysBits::MAX);
    spec::Processor::new(bits, features)
}

/// Returns the specification's control state for a paging state; `None` if no processor can be in it.
pub(super) fn controls(state: &PagingState) -> Option<spec::Controls> {
    let controls = spec::Controls::new(
        processor(state.cpu),
        spec::Cr0::from_bits_truncate(state.cr0.bits()),
        spec::Cr4::from_bits_truncate(state.cr4.bits()),
        spec::Efer::from_bits_truncate(state.efer.bits()),
    );
    let controls = controls.ok()?.with_pkru(spec::Pkru::new(state.pkru.get()));
    Some(match state.pdptes {
        Some(pdptes) => controls.with_pdptes(spec::Pdptes::Registers(pdptes.get())),
        None => controls,
    })
}
