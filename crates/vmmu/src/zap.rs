//! Zapping pages: unhash, unlink, empty, flush, retire; and reclaim, which zaps for the page limit.
//!
//! Invariants:
//! 1. Whoever clears ALIVE under the gfn lock owns the page's end; nobody else empties it.
//! 2. Every parent edge is gone in the section that clears ALIVE: no dead page is linked. If they are too many for one section, the page stays alive,
//!    hashed and counted until few are left, and only refuses new ones (LEAVING); whoever wants its end works on it, so that nobody is waited for.
//! 3. A lock is held for at most 64 entries at a time.
//! 4. A dead page reaches the allocator only through a debt and a grace period.

use crate::addr::Level;
use crate::addr::{Gfn, Index, MAX_FRAME};
use crate::config::Engine;
use crate::debt::Debt;
use crate::frames::Stripe;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::page::{Flags, PRESENT_WORDS, Page, PageId};
use crate::pool::Exhausted;
use crate::prefetch::Window;
use crate::slots::AddressSpace;
use crate::slotset::SlotSet;
use crate::stats::{Event, Observer};
use crate::sync::{Locks, MOST, Ordering};
use core::ops::Range;

/// How many pages reclaim frees at once.
const RECLAIM_BATCH: u32 = 8;

/// How many pages are zapped before their flush is paid for.
const STEP: usize = 16;

/// What became of a step towards a page's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
enum Killed {
    /// This step ended the page's life.
    Here,
    /// Somebody else had.
    Elsewhere,
    /// Entries that link the page are left.
    NotYet,
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Zaps every shadow page that exists now, in bounded steps, while guests run; returns how many.
    ///
    /// The loaded roots go first, so that vCPUs choose new ones and build new trees meanwhile; each step pays its own flush before the next begins.
    /// The direct engine keeps its tables and empties them.
    pub fn zap_all(&self) -> u64 {
        let before = self.births.load(Ordering::Acquire);
        let mut zapped = 0;
        if self.config.engine != Engine::Shadow {
            drop(self.invalidate_begin(Gfn::new(0), MAX_FRAME));
            return 0;
        }
        for loaded in [true, false] {
            let ids: Range<u32> = self.pool.numbers(&Locks::default());
            let mut next = ids.start;
            while next < ids.end {
                let until = (next + STEP as u32).min(ids.end);
                let mut call = self.call();
                zapped += call.zap_step(next..until, before, loaded);
                // What it retires it gives back itself, or faults would.
                call.guard = None;
                call.reap(2 * STEP);
                next = until;
            }
        }
        zapped
    }

    /// Zaps every shadow page that stands for a guest frame; returns how many.
    pub fn zap_frame(&self, gfn: Gfn) -> u32 {
        let call = self.call();
        let mut debt = Debt::new(&call);
        let zapped = call.zap_gfn(gfn, &mut debt);
        debt.pay();
        zapped
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Zaps the old pages among `ids`, only the loaded roots if `loaded`.
    fn zap_step(&self, ids: Range<u32>, before: u64, loaded: bool) -> u64 {
        let mut debt = Debt::new(self);
        let mut zapped = 0;
        for id in ids.map(PageId) {
            let Some(page) = self.mmu.pool.try_get(id) else {
                continue;
            };
            let old = page.is_alive() && page.birth.load(Ordering::Relaxed) < before;
            let due = !loaded || page.references.load(Ordering::Acquire) != 0;
            if old && due && self.zap(id, &mut debt) {
                zapped += 1;
            }
        }
        debt.pay();
        zapped
    }

    /// Zaps a page; tells whether this call did. The page is buried in the debt.
    pub(crate) fn zap(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        if !self.kill(id, debt) {
            return false;
        }
        if !mutant!(ZapKeepsEntries) {
            self.empty(id, debt);
        }
        if mutant!(FreeBeforeFlush) {
            self.give_back(id);
            return true;
        }
        debt.bury(id);
        true
    }

    /// Ends a page's life: from here on it is not found, not linked, not counted.
    fn kill(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        loop {
            match self.kill_step(id, debt) {
                Killed::Here => return true,
                Killed::Elsewhere => return false,
                Killed::NotYet => {}
            }
        }
    }

    /// Takes parents off a page, as many as one section may; ends its life if none is left.
    fn kill_step(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> Killed {
        let page = self.page(id);
        let gfn = page.gfn();
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        let flags = page.flags();
        if !flags.contains(Flags::ALIVE) {
            return Killed::Elsewhere;
        }
        if mutant!(KillInTwoSections) {
            drop(stripe);
            stripe = self.mmu.frames.lock(&self.locks, gfn);
        }
        debt.owe();
        if mutant!(DieLinked) {
            self.die(&mut stripe, id, flags);
            while !self.unlink(&mut stripe, page, debt) {
                drop(stripe);
                stripe = self.mmu.frames.lock(&self.locks, gfn);
            }
            return Killed::Here;
        }
        if !self.unlink(&mut stripe, page, debt) {
            // Alive until the last parent is gone: a processor goes on through those that are left, and what it finds has to stay as fresh as before.
            page.set_flags(flags | Flags::LEAVING);
            return Killed::NotYet;
        }
        self.die(&mut stripe, id, flags);
        Killed::Here
    }

    /// Takes a page that has the flags `flags` out of what finds and counts it; nothing links it.
    fn die(&self, stripe: &mut Stripe, id: PageId, flags: Flags) {
        let page = self.page(id);
        page.set_flags(flags & Flags::ROOT);
        if !mutant!(DeadStaysHashed) {
            stripe.unhash(&self.mmu.pool, id, page);
        }
        if flags.contains(Flags::COUNTED) && !mutant!(DeadStaysTracked) {
            stripe.retrack(&self.mmu.pool, page.gfn());
        }
        if flags.contains(Flags::LISTED) {
            self.mmu.unsync.remove(&self.locks, id);
        }
    }

    /// Removes at most [`MOST`] of the entries that link a page; tells whether none is left.
    fn unlink(&self, stripe: &mut Stripe, page: &Page, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        if mutant!(DeadStaysLinked) {
            return true;
        }
        for _ in 0..MOST {
            match stripe.nodes.first(page.parents()) {
                Some(edge) => self.remove(stripe, edge, debt),
                None => return true,
            }
        }
        page.parents().is_empty()
    }

    /// Removes every entry of a dead page.
    fn empty(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) {
        let page = self.page(id);
        let mut copy = None;
        for word in 0..PRESENT_WORDS {
            let mut state = page.lock.lock(&self.locks);
            let mut bits = page.present_word(word);
            while bits != 0 {
                let slot = Index::truncate(word * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
                self.remove_recorded(id, slot, debt);
            }
            page.clear_present(word, u64::MAX);
            copy = copy.or_else(|| state.copy.take());
            state.window = Window::default();
            state.behind = SlotSet::default();
        }
    }

    /// Zaps every page that stands for a gfn; tells how many.
    pub(crate) fn zap_gfn(&self, gfn: Gfn, debt: &mut Debt<'_, 'm, H, O>) -> u32 {
        let mut zapped = 0;
        loop {
            let mut found = None;
            self.mmu
                .frames
                .lock(&self.locks, gfn)
                .any_page(&self.mmu.pool, gfn, |id, page| {
                    let hit = !page.role().is_direct();
                    if hit {
                        found = Some(id);
                    }
                    hit
                });
            let Some(id) = found else { return zapped };
            if self.zap(id, debt) {
                zapped += 1;
            }
        }
    }

    /// Zaps every page that stands for a guest table in memory that is gone: whatever comes there later is no edit of it.
    pub(crate) fn zap_tables_in(
        &self,
        space: AddressSpace,
        base: Gfn,
        frames: u64,
        debt: &mut Debt<'_, 'm, H, O>,
    ) {
        let end = base.get().saturating_add(frames);
        // Roots may be made anew meanwhile, empty ones: no more rounds than there are pages.
        let mut left = self.mmu.pool.limit();
        let mut region = base.align_down(Level::L2);
        while region.get() < end && left > 0 {
            let mut found = None;
            self.mmu
                .frames
                .lock(&self.locks, region)
                .any_page_in_region(&self.mmu.pool, region, |id, page| {
                    let role = page.role();
                    let inside = (base.get()..end).contains(&page.gfn().get());
                    let hit = inside && !role.is_direct() && role.space() == space;
                    if hit {
                        found = Some(id);
                    }
                    hit
                });
            match found {
                Some(id) => {
                    self.zap(id, debt);
                    left -= 1;
                }
                None => region = region.wrapping_add(Level::L2.frames()),
            }
        }
    }

    /// Zaps pages that nobody uses now, sparing `pinned` and every vCPU's root; tells how many.
    pub(crate) fn reclaim(&self, pinned: &[PageId], debt: &mut Debt<'_, 'm, H, O>) -> u32 {
        let (mut zapped, limit) = (0, self.mmu.pool.limit());
        // Twice round: the first round may only take the "used" marks away.
        for _ in 0..limit * 2 {
            if zapped == RECLAIM_BATCH.min(limit / 4) {
                break;
            }
            let at = self.mmu.reclaim_hand.fetch_add(1, Ordering::Relaxed) % limit;
            let Some(page) = self.mmu.pool.try_get(PageId(at)) else {
                continue;
            };
            let spared = pinned.contains(&PageId(at))
                || (page.references.load(Ordering::Acquire) != 0 && !mutant!(ReclaimRoots))
                || !page.is_alive();
            if !spared && page.used.swap(0, Ordering::Relaxed) == 0 && self.zap(PageId(at), debt) {
                self.count_at(Event::Reclaim, page.gfn());
                zapped += 1;
            }
        }
        zapped
    }

    /// Takes a page from the pool, if the limit allows.
    pub(crate) fn take_page(&self) -> Result<PageId, Exhausted> {
        match self.mmu.pool.take(&self.locks) {
            Err(Exhausted::Limit) if self.reap(1) != 0 => self.mmu.pool.take(&self.locks),
            taken => taken,
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod a_page_that_leaves {
    use super::*;
    use crate::audit::Strictness;
    use crate::slots::SlotFlags;
    use crate::testhost::{AD, PWU, World};
    use crate::walk::Access;

    /// Lets a level-1 table be linked by the first `count` entries of a directory.
    fn linked_often(count: u64) -> (World, PageId) {
        let (world, mut guest) = World::roomy(SlotFlags::empty());
        let host = world.mmu.host();
        let table = guest.map(host, 0, (Gfn::new(600), Level::L1), PWU | AD);
        for i in 1..count {
            let directory = guest.map(host, i << 21, (table, Level::L2), PWU);
            host.word(directory, i as usize)
                .store(table.address().get() | PWU | 1 << 5, Ordering::SeqCst);
        }
        for i in 0..count {
            let outcome = world.touch(i << 21, Access::READ);
            assert_eq!(outcome, crate::FaultOutcome::Resume);
        }
        let (id, _) = world.slot(0, Level::L1);
        (world, id)
    }

    #[test]
    fn dies_in_the_section_that_takes_its_last_parent_off() {
        let (world, id) = linked_often(200);
        let call = world.mmu.call();
        let mut debt = Debt::new(&call);
        for _ in 0..3 {
            assert_eq!(call.kill_step(id, &mut debt), Killed::NotYet);
            let flags = call.page(id).flags();
            assert!(flags.contains(Flags::ALIVE | Flags::COUNTED | Flags::CLEAN));
        }
        assert!(!call.page(id).parents().is_empty());
        assert!(call.zap(id, &mut debt));
        assert!(call.page(id).parents().is_empty());
        debt.pay();
        drop(debt);
        drop(call);
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn is_linked_no_more() {
        let (world, id) = linked_often(65);
        let call = world.mmu.call();
        let mut debt = Debt::new(&call);
        assert_eq!(call.kill_step(id, &mut debt), Killed::NotYet);
        let (gfn, role) = (call.page(id).gfn(), call.page(id).role());
        let (parent, _) = world.slot(0, Level::L2);
        let again = call.link(parent, Index::truncate(100), id, gfn, role);
        assert_eq!(again, Err(crate::edge::Refused::Stale));
        assert!(call.zap(id, &mut debt));
        debt.pay();
    }

    #[cfg(feature = "count")]
    #[test]
    fn holds_no_lock_for_more_than_64_of_its_parents() {
        let (world, id) = linked_often(500);
        let call = world.mmu.call();
        let mut debt = Debt::new(&call);
        let _ = crate::count::take();
        assert!(call.zap(id, &mut debt));
        debt.pay();
        assert_eq!(crate::count::take().longest, 64);
    }
}
