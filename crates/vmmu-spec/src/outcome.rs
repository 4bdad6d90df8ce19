//! What comes out of a translation.
//!
//! Key types: [`Outcome`], [`Translation`], [`PageFault`] with its [`ErrorCode`], and [`Update`].
//!
//! Invariants
//! 1. A [`Translation`] permits the access it was asked for.
//! 2. An [`Update`] names bits that are 0 in the value used: one that changes nothing is left out.

use bitflags::bitflags;

use crate::format::{self, ACCESSED, DIRTY, Level};
use crate::{Access, Denial, Mapping, Mode, Path, Physical, Slot, Step, Stop};

bitflags! {
    /// The error code of a page fault (SDM section 4.7, APM section 8.4.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ErrorCode: u32 {
        /// P: there is a translation, or a reserved bit is set; 0 if an entry was not present.
        const PRESENT = 1 << 0;
        /// W/R: the access was a write.
        const WRITE = 1 << 1;
        /// U/S: the access was a user-mode access.
        const USER = 1 << 2;
        /// RSVD: a reserved bit was 1 in an entry used.
        const RESERVED = 1 << 3;
        /// I/D: the access was a fetch, and CR4.SMEP = 1 or CR4.PAE = EFER.NXE = 1.
        const FETCH = 1 << 4;
        /// PK: PKRU disallows the data access.
        const PROTECTION_KEY = 1 << 5;
    }
}

/// The result of [`translate`](crate::translate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The access goes to a physical address.
    Translation(Translation),
    /// The access raises #PF.
    PageFault(PageFault),
    /// The address is not canonical: #GP, or #SS if the access is relative to SS (SDM vol. 1 section 3.3.7.1).
    NonCanonical,
    /// The walk needs an entry where there is no memory.
    Unbacked(Unbacked),
}

impl Outcome {
    /// Returns the translation, if that is what came out.
    #[must_use]
    pub const fn translation(&self) -> Option<&Translation> {
        match self {
            Self::Translation(translation) => Some(translation),
            _ => None,
        }
    }

    /// Returns the page fault, if that is what came out.
    #[must_use]
    pub const fn page_fault(&self) -> Option<&PageFault> {
        match self {
            Self::PageFault(fault) => Some(fault),
            _ => None,
        }
    }

    /// Returns what the instruction that made the access can tell; `None` if the walk left memory.
    #[must_use]
    pub const fn observation(&self) -> Option<Observation> {
        match self {
            Self::Translation(translation) => {
                Some(Observation::Access(translation.mapping.physical))
            }
            Self::PageFault(fault) => Some(Observation::PageFault(fault.code)),
            Self::NonCanonical => Some(Observation::NonCanonical),
            Self::Unbacked(_) => None,
        }
    }
}

/// What an access shows of its translation; page size, rights and entries stay hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Observation {
    /// It went to this address.
    Access(Physical),
    /// It raised #PF with this error code.
    PageFault(ErrorCode),
    /// It raised #GP or #SS for its address.
    NonCanonical,
}

/// A walk that completed and whose rights permit the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub(crate) mapping: Mapping,
    pub(crate) access: Access,
    pub(crate) mode: Mode,
}

impl Translation {
    /// Returns address, page size, rights, scope and the entries used.
    #[must_use]
    pub const fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Returns the access that it permits.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Iterates over the accessed and dirty bits that the processor sets, from the top entry down
    /// (SDM section 4.8, APM section 5.4.2).
    ///
    /// A is set in every entry used, and on a write D in the entry that maps the page, with A in one
    /// locked operation. All of it happens before the access does. The manuals give no order among
    /// the entries; the walk goes from the top. An entry that serves at two levels, as in a table that
    /// references itself, is listed once for each; each update names the bits clear in the value read.
    pub fn updates(&self) -> impl Iterator<Item = Update> + '_ {
        let steps = self.mapping.path.steps();
        let leaf = steps.len().saturating_sub(1);
        steps.iter().enumerate().filter_map(move |(i, step)| {
            let dirty = if i == leaf && self.access.is_write() {
                DIRTY
            } else {
                0
            };
            Update::of(self.mode, step, ACCESSED | dirty)
        })
    }
}

/// A bit that the processor sets in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Update {
    /// The entry.
    pub slot: Slot,
    /// The bits that become 1.
    pub set: u64,
}

impl Update {
    fn of(mode: Mode, step: &Step, wanted: u64) -> Option<Self> {
        let set = if format::has_accessed(mode, step.slot.level) {
            wanted & !step.value
        } else {
            0
        };
        (set != 0).then_some(Self {
            slot: step.slot,
            set,
        })
    }
}

/// Why an access faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// There is no translation; the walk stopped at an entry of the given level.
    NoTranslation(Level, Stop),
    /// There is one, and it does not permit the access.
    Denied(Denial),
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    pub(crate) code: ErrorCode,
    pub(crate) cause: Cause,
    pub(crate) path: Path,
    pub(crate) mode: Mode,
}

impl PageFault {
    /// Returns the error code.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// Returns the cause.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns the valid entries that were used before the fault.
    #[must_use]
    pub const fn path(&self) -> &Path {
        &self.path
    }

    /// Iterates over the accessed bits that the processor *may* set although the access faults.
    ///
    /// It sets A in an entry "used" for translation (SDM section 4.8), and the valid entries above the
    /// one that stopped the walk were used. On a protection violation SDM section 6.15 (#PF) says that A
    /// is set in the upper entry and is model-specific in the lowest. So none and all of these are
    /// right. D is never set: the write does not happen.
    pub fn permitted_updates(&self) -> impl Iterator<Item = Update> + '_ {
        let steps = self.path.steps().iter();
        steps.filter_map(|step| Update::of(self.mode, step, ACCESSED))
    }
}

/// A walk that left memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbacked {
    pub(crate) slot: Slot,
    pub(crate) path: Path,
}

impl Unbacked {
    /// Returns the entry that there is no memory for.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// Returns the valid entries that were used before.
    #[must_use]
    pub const fn path(&self) -> &Path {
        &self.path
    }
}
