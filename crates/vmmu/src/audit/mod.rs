//! The auditor: checks the rules over the whole structure at a quiescent point.
//!
//! Key types: [`AuditReport`], [`AuditFinding`] (a rule that is broken, and where), [`Strictness`].
//! Neighbours: `records` copies the frame records, `entries` checks every SPTE, `counts` recounts whatever is counted.
//!
//! It copies first and compares then, so that it never holds two locks of one kind; what changes meanwhile would look broken, which is why it asks
//! for a quiescent point: no call is running, and no [`crate::Invalidation`] whose range the host has changed is alive. It shares no
//! judgement with the code that it checks: what an entry may allow is worked out anew.
//!
//! Invariants:
//! 1. Nothing is changed, but that the host looks frames up.
//! 2. Every finding names a state that no sequence of calls may leave behind.
//!
//! It allocates as it likes: it is a tool for tests and for hunting, not for production.

mod counts;
mod entries;
mod finding;
mod records;
#[cfg(all(test, not(loom)))]
mod tests;

pub use finding::{AuditFailure, AuditFinding, Place};

use crate::addr::Level;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::page::{Page, PageId, SpteRef};
use crate::stats::Observer;
use crate::sync::Ordering;
use alloc::vec::Vec;
use records::Records;

/// How much an audit asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// The structure alone: holds whatever the guest's tables contain, edits that nobody reported included (rule R2).
    Structure,
    /// Besides, that the entries of clean pages follow from the guest's: holds if every write to guest tables was made by the guest or reported.
    Exact,
}

/// What an audit saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct AuditReport {
    /// Live pages.
    pub pages: u64,
    /// Those of them that stand for a guest table.
    pub indirect: u64,
    /// Those of them that are clean.
    pub clean: u64,
    /// Dead pages that wait for their grace period.
    pub dead: u64,
    /// Links between tables.
    pub links: u64,
    /// Guest frames that are write-tracked.
    pub tracked: u64,
    /// Pages on the list of unsync pages.
    pub unsync: u64,
    leaves: [u64; 3],
}

impl AuditReport {
    /// Returns how many leaves of a level are present now.
    pub fn leaves(&self, level: Level) -> u64 {
        self.leaves
            .get(usize::from(level.get()) - 1)
            .copied()
            .unwrap_or(0)
    }
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Checks the rules over the whole structure. To be called at a quiescent point: while no other call for this VM runs.
    ///
    /// # Errors
    /// Every rule that is broken, and where.
    pub fn audit(&self, strictness: Strictness) -> Result<AuditReport, AuditFailure> {
        let call = self.call();
        let mut audit = Audit {
            records: Records::collect(&call),
            pages: Vec::new(),
            links: Vec::new(),
            leaves: Vec::new(),
            strictness,
            report: AuditReport::default(),
            findings: Vec::new(),
            call: &call,
        };
        audit.collect_pages();
        audit.check_entries();
        audit.check_counts();
        audit.check_reverse_maps();
        audit.check_parents();
        if audit.findings.is_empty() {
            Ok(audit.report)
        } else {
            Err(AuditFailure::new(audit.findings))
        }
    }
}

/// An audit under way.
struct Audit<'c, 'm, H: Host, O: Observer> {
    call: &'c Call<'m, H, O>,
    strictness: Strictness,
    records: Records,
    /// Every page that has a table.
    pages: Vec<PageId>,
    /// Every link, by slot.
    links: Vec<(SpteRef, PageId)>,
    /// Every leaf of the shadow engine, by slot.
    leaves: Vec<(SpteRef, crate::addr::Gfn, Level)>,
    report: AuditReport,
    findings: Vec<AuditFinding>,
}

impl<'m, H: Host, O: Observer> Audit<'_, 'm, H, O> {
    fn find(&mut self, finding: AuditFinding) {
        self.findings.push(finding);
    }

    fn page(&self, id: PageId) -> &'m Page {
        self.call.mmu.pool.get(id)
    }

    fn collect_pages(&mut self) {
        let owed = self.call.mmu.flush_pending.load(Ordering::Acquire);
        if owed != 0 {
            self.find(AuditFinding::FlushOwed(owed));
        }
        let pool = &self.call.mmu.pool;
        for id in pool.ids(&self.call.locks) {
            if pool.try_get(id).is_some_and(Page::has_table) {
                self.pages.push(id);
            }
        }
    }
}
