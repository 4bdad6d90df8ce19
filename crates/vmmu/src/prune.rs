//! Pruning: what the direct engine does at the limit on pages. A nested table without tables below it is taken out of the tree and given back.
//!
//! A table is in the tree exactly while it is ALIVE: it becomes so under the lock of the table above, in the section that links it, and who takes that away, under
//! the table's own lock, unlinks it. A table with links is not pruned, so that everything above a table that is alive stays where it is.
//!
//! Invariants:
//! 1. Nothing is installed or linked in a table that is not ALIVE: that is tested under the table's lock.
//! 2. The flush is owed before the link goes; the table is retired after the flush, and freed after a grace period (rules R7 and R8).
//! 3. A step ends after a few tables, and holds a lock for 64 entries at most. No two table locks are held at once.

use crate::addr::{Gfn, Index, Level};
use crate::debt::Debt;
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{Flags, PRESENT_WORDS, Page, PageId, Record};
use crate::prefetch::Window;
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::sync::Ordering;

/// How many tables one step gives back.
const STEP: u32 = 8;

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Prunes some nested tables that nobody seems to use, sparing `pinned`; tells how many. No lock is held.
    pub(crate) fn prune(&self, pinned: &[PageId], debt: &mut Debt<'_, 'm, H, O>) -> u32 {
        let (mut pruned, limit) = (0, self.mmu.pool.limit());
        // Twice round: the first round may only take the marks of use away.
        for _ in 0..limit * 2 {
            if pruned == STEP.min(limit / 4) {
                break;
            }
            let at = self.mmu.reclaim_hand.fetch_add(1, Ordering::Relaxed) % limit;
            let id = PageId(at);
            let Some(page) = self.mmu.pool.try_get(id).filter(|p| p.is_alive()) else {
                continue;
            };
            let spared = pinned.contains(&id) || page.role().level() == Level::L4;
            if !spared && !self.was_walked(page) && self.prune_table(id, debt) {
                self.count_at(Event::Reclaim, page.gfn());
                pruned += 1;
            }
        }
        pruned
    }

    /// Takes one table out of the tree, unless it has links; the table is buried in the debt.
    pub(crate) fn prune_table(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        let page = self.page(id);
        let Some((above, index)) = self.place_of(page) else {
            return false;
        };
        if !self.end(page) {
            return false;
        }
        let above = self.page(above);
        if !mutant!(PruneOwesLate) {
            debt.owe();
        }
        if !mutant!(PruneKeepsLink) {
            let _state = above.lock.lock(&self.locks);
            debug_assert_eq!(above.record(index), Record::Link(id));
            self.mmu.host.exchange(above.table(), index, 0);
        }
        debt.owe();
        self.drain(page, debt);
        debt.bury(id);
        true
    }

    /// Returns the table above a table that is alive, and the slot that links it.
    fn place_of(&self, page: &Page) -> Option<(PageId, Index)> {
        let role = page.role();
        let mut above = self.mmu.direct.get(role.space())?;
        loop {
            let level = self.page(above).role().level();
            let index = level.index(page.gfn().address().get());
            if level.below()? == role.level() {
                return Some((above, index));
            }
            let table = self.page(above);
            let spte = self.load(table, index);
            (above, _) = self.nested_child(table, (index, level), spte, page.gfn())?;
        }
    }

    /// Tells whether a fault or a processor has come through a table since this was last asked, the latter by the accessed bit of the link to it.
    fn was_walked(&self, page: &Page) -> bool {
        let faulted = page.used.swap(0, Ordering::Relaxed) != 0;
        let Some((above, index)) = self.place_of(page) else {
            return faulted;
        };
        let (above, accessed) = (self.page(above), self.format().accessed);
        let link = self.load(above, index);
        if !link.is_present() || !link.has(accessed) {
            return faulted;
        }
        // A guess is good enough: a paging-structure cache may keep the bit from being set again.
        let _ = self.mmu.host.compare_exchange(
            above.table(),
            index,
            link.raw(),
            link.without(accessed).raw(),
        );
        true
    }

    /// Ends the life of a table without links; tells whether this call did.
    fn end(&self, page: &Page) -> bool {
        let _state = (!mutant!(EndUnlocked)).then(|| page.lock.lock(&self.locks));
        let has_links = (0..PRESENT_WORDS).any(|word| {
            let slots = present_slots(word, page.present_word(word));
            slots
                .into_iter()
                .any(|index| self.is_link(page, index, self.load(page, index)))
        });
        if !page.is_alive() || (has_links && !mutant!(PruneLinks)) {
            return false;
        }
        page.set_flags(Flags::empty());
        true
    }

    /// Removes every leaf of a table that is out of the tree: their writes are logged.
    fn drain(&self, page: &Page, debt: &mut Debt<'_, 'm, H, O>) {
        for word in 0..PRESENT_WORDS {
            let mut state = page.lock.lock(&self.locks);
            for index in present_slots(word, page.present_word(word)) {
                self.direct_remove(page, index, debt);
            }
            page.clear_present(word, u64::MAX);
            state.window = Window::default();
        }
    }

    /// Returns the table that a slot links on the way to `gfn`, if it links one that is in the tree.
    ///
    /// No lock is needed: the page is the one for its place, or none is returned.
    #[inline]
    pub(crate) fn nested_child(
        &self,
        page: &Page,
        (index, level): (Index, Level),
        spte: Spte,
        gfn: Gfn,
    ) -> Option<(PageId, &Page)> {
        let below = level.below()?;
        if !spte.is_present() || spte.has(Spte::LARGE) {
            return None;
        }
        let Record::Link(child) = page.record_at(index, level) else {
            return None;
        };
        let table = self.mmu.pool.try_get(child)?;
        let role = table.role();
        let is_right = table.is_alive()
            && table.gfn() == gfn.align_down(level)
            && role.level() == below
            && role.space() == page.role().space();
        is_right.then_some((child, table))
    }
}

/// Returns the slots of a word of a presence bitmap.
pub(crate) fn present_slots(word: usize, bits: u64) -> impl Iterator<Item = Index> {
    let mut left = bits;
    core::iter::from_fn(move || {
        let bit = left.trailing_zeros() as usize;
        left &= left.checked_sub(1)?;
        Some(Index::truncate(word * 64 + bit))
    })
}
