//! What the auditor can find, each with where it is.

use crate::addr::{Gfn, Level};
use crate::host::VcpuId;
use crate::page::SpteRef;
use alloc::vec::Vec;
use core::fmt;

/// A slot of a table: the page's number in the pool, and the slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    page: u32,
    slot: u16,
}

impl From<SpteRef> for Place {
    fn from(spte: SpteRef) -> Self {
        Self {
            page: spte.page().0,
            slot: spte.slot().get() as u16,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} of page {}", self.slot, self.page)
    }
}

/// A rule that the structure breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the message of each finding says what its fields are"
)]
pub enum AuditFinding {
    /// Rule R7: a debt was dropped, or the point is not quiescent.
    #[error("{0} flushes are owed")]
    FlushOwed(u32),
    /// The point is not quiescent.
    #[error("vCPU {} is in a call", .0.0)]
    VcpuBusy(VcpuId),
    /// Rule R1.
    #[error("{at} is present without its presence bit")]
    NoPresenceBit { at: Place },
    /// Rule R1.
    #[error("{at} is present without a record")]
    NoRecord { at: Place },
    /// Rule R1: the reverse map lacks a leaf.
    #[error("{at} maps {gfn}, whose reverse map does not name it")]
    LeafUnlisted { at: Place, gfn: Gfn },
    /// Rule R1: the reverse map of a frame names a slot that does not map it.
    #[error("the reverse map of {gfn} at {level:?} names {at}, which does not map it")]
    LeafDangling { at: Place, gfn: Gfn, level: Level },
    /// Rule R1.
    #[error("{at} is in reverse maps {times} times")]
    LeafRepeated { at: Place, times: u32 },
    /// Rule R4: the child does not know its parent.
    #[error("{at} links page {child}, whose parents do not name it")]
    LinkUnlisted { at: Place, child: u32 },
    /// Rule R4: the parents of a page name a slot that does not link it.
    #[error("the parents of page {child} name {at}, which does not link it")]
    LinkDangling { at: Place, child: u32 },
    /// Rule R4.
    #[error("{at} is among parents {times} times")]
    LinkRepeated { at: Place, times: u32 },
    /// Rule R4.
    #[error("{at} links page {child}, which is dead")]
    ChildDead { at: Place, child: u32 },
    /// Rule R4: gfn, level, mode or rights of the child are not what the parent demands.
    #[error("{at} links page {child}, which its role does not demand")]
    ChildMismatch { at: Place, child: u32 },
    /// The entry's bits are not those of a link to the child's table.
    #[error("{at} has bits {bits:#x}, no link to the table of page {child}")]
    LinkBits { at: Place, child: u32, bits: u64 },
    /// A table of the direct engine has one parent, unless it is a root.
    #[error("nested table {page} has {parents} parents")]
    NestedParents { page: u32, parents: u32 },
    /// Rule R4: a dead page is still in use.
    #[error("dead page {page} is hashed")]
    DeadHashed { page: u32 },
    /// A dead page was retired before it was emptied.
    #[error("{at} is present in a dead page")]
    DeadPresent { at: Place },
    /// A live page is not found.
    #[error("page {page} for {gfn} is not in its hash chain")]
    Unhashed { page: u32, gfn: Gfn },
    /// A page is hashed twice, or two pages stand for one gfn in one role.
    #[error("pages {page} and {other} stand for {gfn} in one role")]
    Twins { page: u32, other: u32, gfn: Gfn },
    /// A hash chain does not end.
    #[error("a hash chain of the region at {gfn} has no end")]
    ChainEndless { gfn: Gfn },
    /// The state table of page flags has no such row.
    #[error("page {page} has the flags {flags:#x}")]
    FlagsContradict { page: u32, flags: u32 },
    /// A leaf's gfn or bits do not suit its level.
    #[error("{at} maps {gfn} at {level:?} with bits {bits:#x}")]
    LeafShape {
        at: Place,
        gfn: Gfn,
        level: Level,
        bits: u64,
    },
    /// A linear table maps something else than its position says.
    #[error("{at} maps {gfn}, its position says {expected}")]
    LeafPosition { at: Place, gfn: Gfn, expected: Gfn },
    /// Rule R2: a leaf reaches outside the slots, or beyond the end of one.
    #[error("{at} maps {gfn}, which lies in no slot as a whole")]
    OutsideSlots { at: Place, gfn: Gfn },
    /// Rule R2: a leaf maps another host frame than the embedder's look-up gives.
    #[error("{at} maps {gfn} to host frame {found:#x}, the host says {expected:#x}")]
    WrongFrame {
        at: Place,
        gfn: Gfn,
        found: u64,
        expected: u64,
    },
    /// The embedder has no such block any more, or none of that size.
    #[error("{at} maps {gfn}, which the host does not back at {level:?}")]
    Unbacked { at: Place, gfn: Gfn, level: Level },
    /// Rule R9: writable against the slot or the host.
    #[error("{at} maps {gfn} writable, which the slot or the host forbids")]
    WriteForbidden { at: Place, gfn: Gfn },
    /// Rule R6: writable though a page stands for the frame.
    #[error("{at} maps {gfn} writable, which is tracked")]
    WriteTracked { at: Place, gfn: Gfn },
    /// Rule R10: writable and not in the dirty log.
    #[error("{at} maps {gfn} writable, which the dirty log does not know")]
    WriteUnlogged { at: Place, gfn: Gfn },
    /// Rule R6: large over a region with a page in it.
    #[error("{at} maps the region at {gfn} large, and page {page} stands in it")]
    LargeOverTable { at: Place, gfn: Gfn, page: u32 },
    /// Rule R9: an entry allows more than its page's role.
    #[error("{at} with bits {bits:#x} allows more than its page inherits")]
    RightsExceed { at: Place, bits: u64 },
    /// A clean page's entry says something else than the guest's ([`super::Strictness::Exact`]).
    #[error("{at} with bits {bits:#x} does not follow from the guest's entry {gpte:#x}")]
    Stale { at: Place, bits: u64, gpte: u64 },
    /// A sync would not look at the entry, though it does not follow from the word of the copy.
    #[error("{at} with bits {bits:#x} does not follow from the copy's word {word:#x}")]
    CopyHides { at: Place, bits: u64, word: u64 },
    /// The large-page counter is wrong.
    #[error("the region at {gfn} counts {recorded} live pages and has {counted}")]
    LiveCount {
        gfn: Gfn,
        recorded: u32,
        counted: u32,
    },
    /// A tracking bit is wrong.
    #[error("{gfn} has {counted} pages that count, and its tracking bit is {recorded}")]
    TrackingBit {
        gfn: Gfn,
        recorded: bool,
        counted: u32,
    },
    /// The gate's count is wrong.
    #[error("the gate counts {recorded} indirect pages, there are {counted}")]
    GateCount { recorded: u64, counted: u64 },
    /// The list of unsync pages and the flags disagree.
    #[error("page {page} is on the unsync list {times} times, its flag says {flag}")]
    UnsyncList { page: u32, times: u32, flag: bool },
    /// Rule R8: references to a page.
    #[error("page {page} is the root of {counted} vCPUs and counts {recorded}")]
    References {
        page: u32,
        recorded: u32,
        counted: u32,
    },
    /// The pool's count is wrong: a page leaked.
    #[error("{recorded} pages are handed out, {counted} have tables")]
    PoolCount { recorded: u32, counted: u32 },
    /// Dead pages are lost: neither owed nor waiting for their grace period.
    #[error("{recorded} pages wait for their grace period, {counted} are dead")]
    GraceCount { recorded: u32, counted: u32 },
}

/// How many findings a failure keeps.
const KEPT: usize = 64;

/// An audit that found something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditFailure {
    findings: Vec<AuditFinding>,
    total: usize,
}

impl AuditFailure {
    pub(super) fn new(findings: Vec<AuditFinding>) -> Self {
        let total = findings.len();
        let mut findings = findings;
        findings.truncate(KEPT);
        Self { findings, total }
    }

    /// Returns the first findings.
    pub fn findings(&self) -> &[AuditFinding] {
        &self.findings
    }

    /// Returns how many there are.
    pub fn total(&self) -> usize {
        self.total
    }
}

impl fmt::Display for AuditFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the audit has {} findings", self.total)?;
        self.findings
            .iter()
            .try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl core::error::Error for AuditFailure {}
