//! How a translation fails: faults with the processor's error codes, and violations.
//!
//! Key types: [`Fault`], with [`PfCode`], [`NpfCode`] and [`EptQualification`]; [`Violation`].
//!
//! Invariants:
//! 1. A [`Violation`] is a bug of whoever built the tables or forgot a flush, never something
//!    that a guest may cause.

use bitflags::bitflags;

use crate::addr::{Frame, Gpa, Level, Va};
use crate::mem::pool::Unusable;

bitflags! {
    /// The error code of a page fault (APM vol. 2, 8.4.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct PfCode: u32 {
        /// The tables reach the page, but deny the access or have a reserved bit set.
        const PRESENT = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
        /// The access was made at CPL 3.
        const USER = 1 << 2;
        /// A reserved bit was set in an entry.
        const RESERVED = 1 << 3;
        /// The access was an instruction fetch.
        const FETCH = 1 << 4;
        /// PKRU denied the access.
        const PROTECTION_KEY = 1 << 5;
    }
}

bitflags! {
    /// EXITINFO1 of a nested page fault (APM vol. 2, 15.25.6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct NpfCode: u64 {
        /// The nested tables reach the page, but deny the access.
        const PRESENT = 1 << 0;
        /// The access was a write; guest table accesses always are.
        const WRITE = 1 << 1;
        /// Always set: all nested accesses are user accesses.
        const USER = 1 << 2;
        /// A reserved bit was set in a nested entry.
        const RESERVED = 1 << 3;
        /// The access was an instruction fetch.
        const FETCH = 1 << 4;
        /// While translating the final guest-physical address.
        const FINAL = 1 << 32;
        /// While translating the address of a guest table.
        const TABLE = 1 << 33;
    }
}

bitflags! {
    /// The exit qualification of an EPT violation (Intel SDM vol. 3, table 28-7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct EptQualification: u64 {
        /// The access was a data read.
        const READ = 1 << 0;
        /// The access was a data write.
        const WRITE = 1 << 1;
        /// The access was an instruction fetch.
        const FETCH = 1 << 2;
        /// All entries used allow reading.
        const READABLE = 1 << 3;
        /// All entries used allow writing.
        const WRITABLE = 1 << 4;
        /// All entries used allow execution.
        const EXECUTABLE = 1 << 5;
        /// The guest linear address is valid.
        const LINEAR_VALID = 1 << 7;
        /// The access was to the final address, not to a guest table.
        const FINAL = 1 << 8;
    }
}

/// Why an access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// #PF from the tables at CR3.
    #[error("page fault at {va}, error code {code:?}")]
    Page {
        /// The faulting address, for CR2.
        va: Va,
        /// The error code.
        code: PfCode,
    },
    /// #VMEXIT(NPF).
    #[error("nested page fault at {gpa}, error code {code:?}")]
    Nested {
        /// EXITINFO2.
        gpa: Gpa,
        /// EXITINFO1.
        code: NpfCode,
    },
    /// EPT violation.
    #[error("ept violation at {gpa}, qualification {qualification:?}")]
    EptViolation {
        /// The guest-physical address.
        gpa: Gpa,
        /// The guest linear address.
        va: Va,
        /// The exit qualification.
        qualification: EptQualification,
    },
    /// EPT misconfiguration.
    #[error("ept misconfiguration at {gpa}")]
    EptMisconfig {
        /// The guest-physical address.
        gpa: Gpa,
    },
    /// #GP or #SS: the address is not canonical.
    #[error("{0} is not canonical")]
    NotCanonical(Va),
    /// #GP: a PDPTE loaded with CR3 has a reserved bit set.
    #[error("pdpte {0} has a reserved bit set")]
    BadPdpte(u8),
    /// The processor was led where it must never be.
    #[error("{0}")]
    Violation(Violation),
}

/// What led a processor to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// CR3, or the root of the nested tables.
    Root,
    /// An entry of this level in memory.
    Entry(Level),
    /// A paging-structure-cache entry of this level.
    StructureCache(Level),
    /// A translation lookaside buffer entry.
    Tlb,
}

/// A use of memory that no correct hypervisor allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{kind}: frame {frame}, by way of {via:?}, for address {address:#x}")]
pub struct Violation {
    /// What is wrong with the frame.
    pub kind: Misuse,
    /// The frame.
    pub frame: Frame,
    /// What led there.
    pub via: Via,
    /// The linear (or, in a nested walk, guest-physical) address under translation.
    pub address: u64,
}

/// What is wrong with a [`Violation`]'s frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// It was walked as a table.
    #[error("walked an unusable table ({0})")]
    Table(Unusable),
    /// It was accessed as a page.
    #[error("accessed an unusable page ({0})")]
    Page(Unusable),
}
