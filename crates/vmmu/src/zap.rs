//! Zapping pages: unhash, unlink, empty, flush, retire; and reclaim, which zaps for the page limit.
//!
//! Invariants:
//! 1. Whoever clears ALIVE under the gfn lock owns the page's end; nobody else empties it.
//! 2. Every parent edge is gone before the lock is dropped: no dead page is linked.
//! 3. The table lock is held for at most 64 entries at a time.
//! 4. A dead page reaches the allocator only through a debt and a grace period.

use crate::addr::Level;
use crate::addr::{Gfn, Index, MAX_FRAME};
use crate::config::Engine;
use crate::debt::Debt;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::page::{Flags, PRESENT_WORDS, PageId};
use crate::pool::Exhausted;
use crate::prefetch::Window;
use crate::slots::AddressSpace;
use crate::slotset::SlotSet;
use crate::stats::{Event, Observer};
use crate::sync::{Locks, Ordering};
use core::ops::Range;

/// How many pages reclaim frees at once.
const RECLAIM_BATCH: u32 = 8;

/// How many pages are zapped before their flush is paid for.
const STEP: usize = 16;

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
        let page = self.page(id);
        let gfn = page.gfn();
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        let flags = page.flags();
        if !flags.contains(Flags::ALIVE) {
            return false;
        }
        if mutant!(KillInTwoSections) {
            drop(stripe);
            stripe = self.mmu.frames.lock(&self.locks, gfn);
        }
        debt.owe();
        page.set_flags(flags & Flags::ROOT);
        if !mutant!(DeadStaysHashed) {
            stripe.unhash(&self.mmu.pool, id, page);
        }
        while let Some(edge) = stripe.nodes.first(page.parents())
            && !mutant!(DeadStaysLinked)
        {
            self.remove(&mut stripe, edge, debt);
        }
        if flags.contains(Flags::COUNTED) && !mutant!(DeadStaysTracked) {
            stripe.retrack(&self.mmu.pool, gfn);
        }
        if flags.contains(Flags::LISTED) {
            self.mmu.unsync.remove(&self.locks, id);
        }
        true
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
