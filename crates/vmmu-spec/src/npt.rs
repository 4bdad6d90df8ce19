//! Nested paging in AMD's format, alone and under a guest's own paging (APM section 15.25).
//!
//! Key functions: [`translate_nested`] (guest-physical to physical) and [`translate_two_dimensional`]
//! (linear to physical). The entries have the format of `format`, the control state is the host's.
//!
//! Invariants
//! 1. Every nested access is a user access; the host's CR0.WP, SMEP, SMAP and protection keys do not
//!    matter (APM section 15.25.5).
//! 2. A walk of the guest's tables is a write at the nested level, whether or not an accessed or dirty
//!    bit has to be set (APM section 15.25.5).
//! 3. The guest's faults come before a nested fault on the final address (APM section 15.25.6).

use alloc::vec::Vec;

use bitflags::bitflags;
use thiserror::Error;

use crate::outcome::{Cause, ErrorCode, Outcome, PageFault, Translation, Unbacked, Update};
use crate::translate::{advance, begin, error_code};
use crate::walk::{Mapping, Progress, Walk};
use crate::{
    Access, Controls, Cr3, Denial, GuestPhysical, Kind, Linear, Memory, Mode, Physical, Privilege,
};

/// The host's control state, in a mode whose tables can be nested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedControls(Controls);

/// A host mode whose nested tables this crate does not describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("nested tables are described for 4-level and 5-level hosts only")]
pub struct NestedModeError;

impl NestedControls {
    /// Takes the host's control state at VMRUN (APM section 15.25.3).
    ///
    /// # Errors
    ///
    /// Refuses hosts outside long mode.
    pub fn new(host: Controls) -> Result<Self, NestedModeError> {
        if host.mode().is_long() {
            Ok(Self(host))
        } else {
            Err(NestedModeError)
        }
    }

    /// Returns the number of guest-physical address bits that the tables can map.
    #[must_use]
    pub const fn address_bits(&self) -> u8 {
        match self.0.mode() {
            Mode::FiveLevel => 57,
            _ => 48,
        }
    }
}

/// Why a guest-physical address is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedAccess {
    /// To read an entry of the guest's tables.
    GuestTable,
    /// To make the guest's access itself.
    Final(Kind),
}

impl NestedAccess {
    /// Returns the access that the nested tables are asked to permit.
    const fn as_user(self) -> Access {
        match self {
            Self::GuestTable => Access::new(Kind::Write, Privilege::User),
            Self::Final(kind) => Access::new(kind, Privilege::User),
        }
    }
}

bitflags! {
    /// EXITINFO1 of a nested page fault (APM section 15.25.6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct NestedErrorCode: u64 {
        /// P: the nested page is present.
        const PRESENT = 1 << 0;
        /// RW: the access was a write; always with [`TABLE`](Self::TABLE).
        const WRITE = 1 << 1;
        /// US: always 1.
        const USER = 1 << 2;
        /// RSV: a reserved bit was 1 in a nested entry.
        const RESERVED = 1 << 3;
        /// ID: the access was a fetch.
        const FETCH = 1 << 4;
        /// The fault came with the guest's final address.
        const FINAL = 1 << 32;
        /// The fault came with the address of a guest table's entry.
        const TABLE = 1 << 33;
    }
}

/// A completed nested walk that permits the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedTranslation {
    translation: Translation,
}

impl NestedTranslation {
    /// Returns address, page size, rights and the nested entries used.
    #[must_use]
    pub const fn mapping(&self) -> &Mapping {
        self.translation.mapping()
    }

    /// Iterates over the accessed and dirty bits set in the nested tables (APM section 15.25.5).
    ///
    /// A walk of the guest's tables is a write here too: it makes the nested page dirty.
    pub fn updates(&self) -> impl Iterator<Item = Update> + '_ {
        self.translation.updates()
    }
}

/// A nested page fault: #VMEXIT(NPF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    address: GuestPhysical,
    code: NestedErrorCode,
    fault: PageFault,
}

impl NestedFault {
    /// Returns the faulting guest-physical address, EXITINFO2.
    #[must_use]
    pub const fn address(&self) -> GuestPhysical {
        self.address
    }

    /// Returns the error code, EXITINFO1.
    #[must_use]
    pub const fn code(&self) -> NestedErrorCode {
        self.code
    }

    /// Returns the cause in the nested tables.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        self.fault.cause()
    }

    /// Iterates over the accessed bits that the processor may set in nested entries all the same.
    pub fn permitted_updates(&self) -> impl Iterator<Item = Update> + '_ {
        self.fault.permitted_updates()
    }
}

/// The result of [`translate_nested`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum NestedOutcome {
    /// The access goes to a physical address.
    Translation(NestedTranslation),
    /// The access causes #VMEXIT(NPF).
    Fault(NestedFault),
    /// The address has more bits than the tables can map; a valid VM has no memory there.
    OutOfRange(GuestPhysical),
    /// The nested walk needs an entry where there is no memory.
    Unbacked(Unbacked),
}

/// Translates a guest-physical address by the nested tables at `root` (nCR3).
pub fn translate_nested<M: Memory + ?Sized>(
    host: &NestedControls,
    root: Cr3,
    address: GuestPhysical,
    access: NestedAccess,
    memory: &M,
) -> NestedOutcome {
    if address.get() >> host.address_bits() != 0 {
        return NestedOutcome::OutOfRange(address);
    }
    let mut walk = Walk::at_root(&host.0, root, address.get());
    loop {
        let slot = walk.needs();
        let Some(value) = memory.read(slot.at, slot.width) else {
            let path = *walk.path();
            return NestedOutcome::Unbacked(Unbacked { slot, path });
        };
        let cause = match walk.feed(value) {
            Progress::More => continue,
            Progress::Stopped(stop) => Cause::NoTranslation(slot.level, stop),
            Progress::Done(mapping) => match judge(host, mapping, access) {
                Ok(translation) => return NestedOutcome::Translation(translation),
                Err(denial) => Cause::Denied(denial),
            },
        };
        return NestedOutcome::Fault(nested_fault(&walk, address, access, cause));
    }
}

/// Decides by the rules for user accesses alone (invariant 1).
fn judge(
    host: &NestedControls,
    mapping: Mapping,
    access: NestedAccess,
) -> Result<NestedTranslation, Denial> {
    let denial = mapping.rights.user_denial(access.as_user());
    if !denial.is_empty() {
        return Err(denial);
    }
    let translation = Translation {
        mapping,
        access: access.as_user(),
        mode: host.0.mode(),
    };
    Ok(NestedTranslation { translation })
}

fn nested_fault(
    walk: &Walk<'_>,
    address: GuestPhysical,
    access: NestedAccess,
    cause: Cause,
) -> NestedFault {
    let controls = walk.controls();
    let fault = PageFault {
        code: error_code(controls, access.as_user(), cause),
        cause,
        path: *walk.path(),
        mode: controls.mode(),
    };
    NestedFault {
        address,
        code: nested_code(fault.code, access),
        fault,
    }
}

/// The bits of a #PF error code keep their places; bits 32 and 33 say whose access it was.
fn nested_code(code: ErrorCode, access: NestedAccess) -> NestedErrorCode {
    let place = match access {
        NestedAccess::GuestTable => NestedErrorCode::TABLE,
        NestedAccess::Final(_) => NestedErrorCode::FINAL,
    };
    NestedErrorCode::from_bits_truncate(u64::from(code.bits())) | place
}

/// The tables of a guest under nested paging: its own, and the nested ones.
#[derive(Clone, Copy, Debug)]
pub struct TwoDimensional<'c> {
    /// The guest's control state. In PAE mode it has its PDPTEs in memory (APM section 15.25.10).
    pub guest: &'c Controls,
    /// The guest's CR3.
    pub guest_root: Cr3,
    /// The host's control state.
    pub host: &'c NestedControls,
    /// nCR3.
    pub host_root: Cr3,
}

/// An access that both dimensions permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// The guest's translation; its address is guest-physical.
    pub guest: Translation,
    /// Where each of the guest's entries used lies, in the order of the guest's path.
    pub tables: Vec<NestedTranslation>,
    /// The nested translation of the guest's final address.
    pub last: NestedTranslation,
}

impl Composed {
    /// Returns the physical address of the access.
    #[must_use]
    pub const fn physical(&self) -> Physical {
        self.last.mapping().physical
    }
}

/// The result of [`translate_two_dimensional`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum TwoDimensionalOutcome {
    /// The access goes to a physical address.
    Translation(Composed),
    /// The guest sees this outcome, which is no translation.
    Guest(Outcome),
    /// The nested tables end it: a fault, an address out of range, or a walk that left memory.
    Nested(NestedOutcome),
}

/// Translates a guest's linear address through both dimensions (APM section 15.25.5).
pub fn translate_two_dimensional<M: Memory + ?Sized>(
    tables: &TwoDimensional<'_>,
    linear: Linear,
    access: Access,
    memory: &M,
) -> TwoDimensionalOutcome {
    let nested = |address: Physical, access| {
        translate_nested(
            tables.host,
            tables.host_root,
            address.into(),
            access,
            memory,
        )
    };
    let mut used = Vec::new();
    let guest = match begin(tables.guest, tables.guest_root, linear, access) {
        Err(outcome) => outcome,
        Ok(mut walk) => loop {
            let slot = walk.needs();
            let entry = match nested(slot.at, NestedAccess::GuestTable) {
                NestedOutcome::Translation(entry) => entry,
                other => return TwoDimensionalOutcome::Nested(other),
            };
            let Some(value) = memory.read(entry.mapping().physical, slot.width) else {
                let path = *walk.path();
                break Outcome::Unbacked(Unbacked { slot, path });
            };
            let end = advance(&mut walk, value, access);
            used.push(entry);
            if let Some(outcome) = end {
                break outcome;
            }
        },
    };
    let Outcome::Translation(translation) = guest else {
        return TwoDimensionalOutcome::Guest(guest);
    };
    let address = translation.mapping().physical;
    match nested(address, NestedAccess::Final(access.kind())) {
        NestedOutcome::Translation(last) => TwoDimensionalOutcome::Translation(Composed {
            guest: translation,
            tables: used,
            last,
        }),
        other => TwoDimensionalOutcome::Nested(other),
    }
}
