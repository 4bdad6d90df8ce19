//! What the library answers: what an embedder has to do after a fault, and before it enters the guest.

use crate::addr::{Gpa, Gva, Hpa};
use crate::walk::PageFaultCode;

/// What the embedder does after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[non_exhaustive]
pub enum FaultOutcome {
    /// Enter the guest again: the entry is in place.
    Resume,
    /// Enter the guest again: a race was lost, the same fault may come again.
    Retry,
    /// Inject #PF with this error code, CR2 = `gva`: the guest's own tables refuse.
    InjectPageFault {
        /// The address for CR2.
        gva: Gva,
        /// The error code (AMD APM vol. 2, 8.4.2; Intel SDM vol. 3, 4.7).
        code: PageFaultCode,
    },
    /// Inject #GP(0): the address is not canonical.
    InjectGeneralProtection,
    /// Emulate the access: no memory is there, or it cannot be written.
    EmulateMmio {
        /// The guest-physical address.
        gpa: Gpa,
        /// Why.
        reason: EmulateReason,
    },
    /// Emulate the write, then report it ([`crate::Mmu::guest_wrote`]); or unprotect and retry ([`crate::Vcpu::unprotect`]).
    EmulateWrite {
        /// The guest-physical address.
        gpa: Gpa,
        /// Why.
        reason: EmulateReason,
    },
    /// A guest table lies where no memory is: what a processor does then is the machine's business (often a shutdown).
    TableMissing {
        /// The address of the entry.
        gpa: Gpa,
    },
}

/// Why an access cannot be left to the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EmulateReason {
    /// No memory slot has the address.
    NoMemory,
    /// The slot is read-only, and the access writes.
    ReadOnlyMemory,
    /// The write hits a guest table that cannot become unsync.
    GuestTable,
    /// A kernel write to a read-only user page with CR0.WP = 0 and SMAP on: no entry grants it without granting more.
    Smap,
}

/// What [`crate::Vcpu::enter`] tells the embedder: with which root to enter the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the vCPU counts as inside its guest until `exited` is called"]
pub struct Entry {
    /// The table for CR3, nCR3 or EPTP.
    pub root: Hpa,
    /// Whether the TLB entries of this guest have to be flushed as the guest is entered.
    pub flush: bool,
}

/// What [`crate::Vcpu::unprotect`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Unprotected {
    /// Pages were zapped: run the instruction again.
    Retry,
    /// The same instruction came back: its own translation needs the table that it writes. All unsync pages were made clean to make room: run it
    /// again; when this comes twice in a row, only emulation helps.
    Again,
    /// Nothing protects the frame.
    NotProtected,
}
