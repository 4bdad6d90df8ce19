//! Prefetching: installing the neighbours of a page that faulted, where the guest has used them before.
//!
//! The window grows while prefetched entries turn out used, and closes when they don't; a run of faults in order opens it again.
//!
//! Invariants:
//! 1. Only gPTEs with A set are prefetched, without the accessed bit of their own: whether the processor uses them decides about the window.
//! 2. Host frames are looked up without locks; each entry passes the same checks as a faulting one (scenarios T5, T13).
//! 3. A prefetch that is refused is dropped: nothing is removed, flushed or allocated for it.

use crate::addr::{Index, Level, TABLE_SLOTS};
use crate::debt::Debt;
use crate::derive::shadow_rights;
use crate::edge::{Installed, Leaf, Purpose};
use crate::host::{Host, Need};
use crate::mmu::Call;
use crate::page::{PageId, TableState};
use crate::slots::{SlotFlags, SlotView};
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::vcpu::VcpuLocal;
use crate::walk::{Entry, Gpte, GpteWidth, Rights};

/// Entries installed under one table lock.
const BATCH: usize = 8;
/// The first window.
const FIRST: u16 = 8;

#[derive(Clone, Copy)]
struct Guess {
    index: Index,
    gpte: Gpte,
    leaf: Leaf,
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Prefetches behind slot `at` of a level-1 page.
    pub(crate) fn prefetch(
        &self,
        local: &VcpuLocal,
        id: PageId,
        at: Index,
        debt: &mut Debt<'_, 'm, H, O>,
    ) {
        let page = self.page(id);
        let window = self.window(id, at, &mut page.lock.lock(&self.locks));
        let mut next = at.get() + 1;
        let end = (next + usize::from(window)).min(TABLE_SLOTS);
        let mut slot = None;
        while next < end {
            let mut guesses = [None; BATCH];
            let until = (next + BATCH).min(end);
            for (guess, i) in guesses.iter_mut().zip(next..until) {
                *guess = self.guess(local, id, Index::truncate(i), &mut slot);
            }
            next = until;
            if guesses.iter().any(Option::is_some) && !self.install_guesses(id, &guesses) {
                break;
            }
        }
        debug_assert!(!debt.is_owed() || self.flush_is_pending());
    }

    /// Decides how far to look, from what became of the last guesses.
    fn window(&self, id: PageId, at: Index, state: &mut TableState) -> u16 {
        let page = self.page(id);
        let follows = usize::from(state.prefetched_to) == at.get();
        let used = |i: u16| {
            self.load(page, Index::truncate(usize::from(i)))
                .has(Spte::ACCESSED)
        };
        state.window = if state.window == 0 {
            if follows || state.prefetched_to == 0 {
                FIRST
            } else {
                0
            }
        } else if follows && used(state.prefetched_to - 1) {
            (state.window * 2).min(self.mmu.config.prefetch)
        } else if state.prefetched_to != 0 && used(state.prefetched_to - 1) {
            state.window
        } else {
            0
        };
        state.window = state.window.min(self.mmu.config.prefetch);
        let to = (at.get() + 1 + usize::from(state.window)).min(TABLE_SLOTS);
        state.prefetched_to = to as u16;
        state.window
    }

    fn guess(
        &self,
        local: &VcpuLocal,
        id: PageId,
        index: Index,
        slot: &mut Option<(SlotView, u64)>,
    ) -> Option<Guess> {
        let page = self.page(id);
        let role = page.role();
        if self.load(page, index).is_present() {
            return None;
        }
        let gpte = self
            .read_gpte(role, Self::gpte_at(page, index), GpteWidth::Bytes8)
            .ok()?;
        let Entry::Leaf(entry) = local
            .walker
            .decoder()
            .decode(Level::L1, gpte, role.rights())
        else {
            return None;
        };
        if !entry.is_accessed() && !mutant!(PrefetchUnaccessed) {
            return None;
        }
        let gfn = entry.base;
        let snapshot = self.mmu.shards.snapshot(gfn, Level::L1, &self.mmu.slots);
        // A slot at hand serves as long as no slot has changed: the snapshot covers the look-up.
        if !slot.is_some_and(|(s, generation)| {
            (s.contains(gfn) || mutant!(PrefetchBeyondSlot)) && generation == snapshot.slots
        }) {
            *slot = self
                .mmu
                .slots
                .find(role.space(), gfn)
                .map(|found| (found, snapshot.slots));
        }
        let (slot, _) = (*slot)?;
        let host = self.mmu.host.look_up(slot.backed(gfn), Need::Read).ok()?;
        let mut rights = shadow_rights(&entry);
        if !host.writable
            || slot
                .flags
                .intersects(SlotFlags::READ_ONLY | SlotFlags::LOG_DIRTY)
                && !mutant!(PrefetchIgnoresSlot)
        {
            rights -= Rights::WRITE;
        }
        Some(Guess {
            index,
            gpte,
            leaf: Leaf {
                gfn,
                pfn: host.pfn,
                rights,
                bits: 0,
                snapshot,
            },
        })
    }

    /// Installs guesses under one table lock; tells whether going on makes sense.
    fn install_guesses(&self, id: PageId, guesses: &[Option<Guess>; BATCH]) -> bool {
        let page = self.page(id);
        let mut state = page.lock.lock(&self.locks);
        if !page.is_alive() {
            return false;
        }
        let role = page.role();
        for guess in guesses.iter().flatten() {
            let now = self.read_gpte(role, Self::gpte_at(page, guess.index), GpteWidth::Bytes8);
            if !now.is_ok_and(|now| now == guess.gpte) && !mutant!(PrefetchWithoutRecheck) {
                continue;
            }
            match self.install_leaf(id, guess.index, &guess.leaf, Purpose::Any) {
                Ok(Installed::New) => self.count_at(Event::Prefetch, guess.leaf.gfn),
                Ok(_) => {}
                Err(_) => return false,
            }
            self.note_derived(page, guess.index, guess.gpte, &mut state);
        }
        true
    }
}
