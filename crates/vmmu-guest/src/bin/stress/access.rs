//! Accesses, what becomes of them, and the comparison of that with what should have.

use core::panic::Location;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Load,
    Store,
    Execute,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    Supervisor,
    User,
}

/// Every kind of access by everybody.
pub(crate) const ALL_ACCESSES: [(Kind, Privilege); 6] = [
    (Kind::Load, Privilege::Supervisor),
    (Kind::Load, Privilege::User),
    (Kind::Execute, Privilege::Supervisor),
    (Kind::Execute, Privilege::User),
    (Kind::Store, Privilege::Supervisor),
    (Kind::Store, Privilege::User),
];

/// Bits of a page fault's error code (AMD APM vol. 2, section 8.4.2).
pub(crate) mod code {
    /// The page was present: rights or reserved bits are the reason.
    pub(crate) const PRESENT: u64 = 1 << 0;
    /// A store.
    pub(crate) const WRITE: u64 = 1 << 1;
    /// In user mode.
    pub(crate) const USER: u64 = 1 << 2;
    /// A reserved bit is set.
    pub(crate) const RESERVED: u64 = 1 << 3;
    /// An instruction fetch.
    pub(crate) const FETCH: u64 = 1 << 4;
}

/// What becomes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It completed, with this value loaded or returned.
    Done(u64),
    /// A page fault, with its error code and CR2.
    PageFault { code: u64, address: u64 },
    /// Another exception, with its error code or 0.
    Exception { vector: u64, error: u64 },
}

impl Outcome {
    /// Whether this outcome is as good as `wanted`.
    ///
    /// QEMU's TCG leaves the present bit out of the error code of reserved-bit faults, and what is under test may stand on
    /// TCG or on a processor: with the reserved bit set, the present bit may be missing.
    fn satisfies(self, wanted: Self) -> bool {
        match (self, wanted) {
            (
                Self::PageFault { code, address },
                Self::PageFault {
                    code: wanted_code,
                    address: wanted_address,
                },
            ) if wanted_code & code::RESERVED != 0 => {
                code | code::PRESENT == wanted_code | code::PRESENT && address == wanted_address
            }
            _ => self == wanted,
        }
    }
}

/// A check that failed: where in the source, on what address or number, what came instead of what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mismatch {
    pub(crate) place: &'static Location<'static>,
    pub(crate) what: &'static str,
    pub(crate) subject: u64,
    pub(crate) got: Outcome,
    pub(crate) want: Outcome,
}

/// The result of a check.
pub(crate) type Check = Result<(), Mismatch>;

/// Demands that `got` is `want`.
#[track_caller]
pub(crate) fn same_outcome(what: &'static str, subject: u64, got: Outcome, want: Outcome) -> Check {
    if got.satisfies(want) {
        return Ok(());
    }
    Err(Mismatch {
        place: Location::caller(),
        what,
        subject,
        got,
        want,
    })
}

/// Demands that the number `got` is `want`.
#[track_caller]
pub(crate) fn same(what: &'static str, subject: u64, got: u64, want: u64) -> Check {
    same_outcome(what, subject, Outcome::Done(got), Outcome::Done(want))
}
