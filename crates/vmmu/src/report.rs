//! Reports of guest writes that the embedder performed: emulated instructions, devices, paravirtual calls.
//!
//! Invariants:
//! 1. While no indirect page exists, a report costs a full barrier and a load (the gate).
//! 2. When a report returns, no translation derived from the old value is used: either an installer's re-read came later and saw the new
//!    value, or its entry was here to be removed.

use crate::addr::{Gfn, Gpa, Index};
use crate::debt::Debt;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::page::PageId;
use crate::stats::{Event, Observer};
use crate::sync::Ordering;

/// Pages of one gfn that are visited at a time.
const BATCH: usize = 8;

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Reports that `len` bytes at `gpa` were written, after they were stored. To be called by whoever writes guest memory in the guest's name.
    #[inline]
    pub fn guest_wrote(&self, gpa: Gpa, len: u64) {
        if self.gate.is_open() {
            self.call().report(gpa, len);
        }
    }

    /// Tells whether a frame may be worth unprotecting: without lock and barrier, good enough to steer a heuristic.
    #[inline]
    pub fn may_be_protected(&self) -> bool {
        self.gate.count() != 0
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    fn report(&self, gpa: Gpa, len: u64) {
        self.count_at(Event::GuestWrite, Gfn::containing(gpa));
        let end = gpa.get().saturating_add(len);
        let mut at = gpa.get();
        while at < end {
            let next = (at | 0xfff).saturating_add(1).min(end);
            self.report_frame(Gpa::new(at), next - at);
            at = next;
        }
    }

    /// Derives the entries that a write within one frame may have changed.
    fn report_frame(&self, gpa: Gpa, len: u64) {
        let gfn = Gfn::containing(gpa);
        let mut debt = Debt::new(self);
        let aligned = (len == 8 || len == 4) && gpa.get() % len == 0;
        let mut skip = 0;
        loop {
            // The gfn lock first, and only then any finer look: with the gate open this is a second store-buffering pair.
            let mut pages = [None; BATCH];
            let mut seen = 0;
            self.mmu
                .frames
                .lock(&self.locks, gfn)
                .any_page(&self.mmu.pool, gfn, |id, page| {
                    if !page.role().is_direct() {
                        if seen >= skip && seen - skip < BATCH {
                            pages[seen - skip] = Some(id);
                        }
                        seen += 1;
                    }
                    false
                });
            for id in pages.iter().flatten() {
                self.report_page(*id, gpa, len, aligned, &mut debt);
            }
            skip += BATCH;
            if skip >= seen || mutant!(ReportFirstBatch) {
                break;
            }
        }
        debt.promise();
    }

    fn report_page(
        &self,
        id: PageId,
        gpa: Gpa,
        len: u64,
        aligned: bool,
        debt: &mut Debt<'_, 'm, H, O>,
    ) {
        let page = self.page(id);
        let writes = page.writes.load(Ordering::Relaxed).saturating_add(1);
        page.writes.store(writes, Ordering::Relaxed);
        if !aligned || writes > self.mmu.config.flood_limit.saturating_mul(4) {
            // A table written in odd sizes, or often without being used, is a table no more.
            if page.references.load(Ordering::Relaxed) == 0 {
                self.count_at(Event::Flood, page.gfn());
                self.zap(id, debt);
                return;
            }
        }
        let decoder = self.mmu.decoder(page.role());
        let (first, last) = (gpa.page_offset() / 8, (gpa.page_offset() + len - 1) / 8);
        let mut state = page.lock.lock(&self.locks);
        let last = if mutant!(ReportFirstEntry) {
            first
        } else {
            last
        };
        for slot in first..=last {
            self.derive_one(
                id,
                Index::truncate(slot as usize),
                decoder,
                &mut state,
                debt,
            );
        }
    }
}
