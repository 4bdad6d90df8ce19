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

/// Who derives the entries that a write may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reporter {
    /// Who made it: it counts as a write.
    Writer,
    /// Somebody who has seen it before it was reported.
    Reader,
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Reports that `len` bytes at `gpa` were written, after they were stored. To be called by whoever writes guest memory in the guest's name; where other
    /// processors of the guest run meanwhile, [`Mmu::begin_write`] takes its place.
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
        let mut debt = Debt::new(self);
        self.for_frames(gpa, len, |at, len| {
            self.report_frame(at, len, Reporter::Writer, &mut debt);
            debt.promise();
        });
    }

    /// Does what the report of a write in flight will do, for somebody who has seen the write.
    pub(crate) fn derive_written(&self, gpa: Gpa, len: u64, debt: &mut Debt<'_, 'm, H, O>) {
        self.for_frames(gpa, len, |at, len| {
            self.report_frame(at, len, Reporter::Reader, debt);
        });
    }

    /// Cuts a write at the edges of frames.
    fn for_frames(&self, gpa: Gpa, len: u64, mut report: impl FnMut(Gpa, u64)) {
        let end = gpa.get().saturating_add(len);
        let mut at = gpa.get();
        while at < end {
            let next = (at | 0xfff).saturating_add(1).min(end);
            report(Gpa::new(at), next - at);
            at = next;
        }
    }

    /// Derives the entries that a write within one frame may have changed.
    fn report_frame(&self, gpa: Gpa, len: u64, reporter: Reporter, debt: &mut Debt<'_, 'm, H, O>) {
        let gfn = Gfn::containing(gpa);
        let aligned = (len == 8 || len == 4) && gpa.get().is_multiple_of(len);
        let mut after = None;
        loop {
            let pages = self.pages_after(gfn, after);
            for id in pages.iter().flatten() {
                if reporter == Reporter::Writer && self.is_table_no_more(*id, aligned, debt) {
                    continue;
                }
                self.report_page(*id, gpa, len, debt);
            }
            after = pages[BATCH - 1];
            if after.is_none() || mutant!(ReportFirstBatch) {
                break;
            }
        }
    }

    /// Returns the indirect pages of a gfn with the lowest numbers above `after`, in order: pages that come or go between two batches do not make
    /// the next one miss any that stayed.
    fn pages_after(&self, gfn: Gfn, after: Option<PageId>) -> [Option<PageId>; BATCH] {
        let mut least = [None; BATCH];
        // The gfn lock first, and only then any finer look: with the gate open this is a second store-buffering pair.
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        stripe.any_page(&self.mmu.pool, gfn, |id, page| {
            if page.role().is_direct() || after.is_some_and(|after| id <= after) {
                return false;
            }
            let mut new = id;
            for place in &mut least {
                match place {
                    Some(old) if *old < new => {}
                    Some(old) => core::mem::swap(old, &mut new),
                    None => {
                        *place = Some(new);
                        break;
                    }
                }
            }
            false
        });
        least
    }

    /// Counts a write to a page; tells whether the page was zapped, because what it stands for is not written like a table.
    fn is_table_no_more(&self, id: PageId, aligned: bool, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        let page = self.page(id);
        let writes = page.writes.load(Ordering::Relaxed).saturating_add(1);
        page.writes.store(writes, Ordering::Relaxed);
        if !aligned || writes > self.mmu.config.flood_limit.saturating_mul(4) {
            // A table written in odd sizes, or often without being used, is a table no more.
            if page.references.load(Ordering::Relaxed) == 0 {
                self.count_at(Event::Flood, page.gfn());
                self.zap(id, debt);
                return true;
            }
        }
        false
    }

    fn report_page(&self, id: PageId, gpa: Gpa, len: u64, debt: &mut Debt<'_, 'm, H, O>) {
        let page = self.page(id);
        let decoder = self.mmu.decoder(page.role());
        let (first, last) = (gpa.page_offset() / 8, (gpa.page_offset() + len - 1) / 8);
        let mut state = page.lock.lock(&self.locks);
        let last = if mutant!(ReportFirstEntry) {
            first
        } else {
            last
        };
        for slot in first..=last {
            let _ = self.derive_one(
                (id, page),
                Index::truncate(slot as usize),
                decoder,
                &mut state,
                debt,
            );
        }
    }
}

#[cfg(all(test, not(loom)))]
mod a_report_reaches_every_page {
    use super::*;
    use crate::addr::Level;
    use crate::audit::Strictness;
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::Access;
    use crate::{Engine, FaultOutcome};

    #[test]
    fn of_a_table_with_more_roles_than_are_visited_at_a_time() {
        let world = World::new(Engine::Shadow, |_| {});
        let host = world.mmu.host();
        let mut guest = Guest::new(World::ROOT);
        let table = guest.map(host, 0, (Gfn::new(600), Level::L1), PWU | AD);
        // As a level-1 table with every combination of rights, and as a level-2 table.
        for i in 0..8 {
            let rights = (i & 3) << 1 | (i >> 2) << 63;
            let link = (table, Level::L2);
            guest.map(host, (1 + i) << 21, link, 1 | rights);
            let entry = host.word(World::ROOT.wrapping_add(2), 1 + i as usize);
            entry.fetch_and(!(1 << 7), Ordering::SeqCst);
        }
        host.word(World::ROOT.wrapping_add(1), 1)
            .store(table.address().get() | PWU, Ordering::SeqCst);
        host.word(Gfn::new(600), 0)
            .store(601 << 12 | PWU | AD, Ordering::SeqCst);
        world.set_root();
        for gva in (1..9).map(|i| i << 21).chain([1 << 30]) {
            assert_eq!(world.touch(gva, Access::READ), FaultOutcome::Resume);
        }
        let pages = || {
            let of_table = |id| world.page(id).is_alive() && world.page(id).gfn() == table;
            let locks = crate::sync::Locks::default();
            world
                .mmu
                .pool
                .ids(&locks)
                .filter(|id| of_table(*id))
                .count()
        };
        assert_eq!(pages(), 9);
        // A table written in odd sizes is a table no more: every page goes.
        world.mmu.guest_wrote(table.address(), 3);
        assert_eq!(pages(), 0);
        world.mmu.audit(Strictness::Exact).unwrap();
    }
}
