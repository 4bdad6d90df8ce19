//! Prefetching: installing the neighbours of a page that faulted, where the guest has used them before.
//!
//! The window grows while prefetched entries turn out used, and closes when they don't; a run of faults in order opens it again.
//!
//! Invariants:
//! 1. Only gPTEs with A set are prefetched, without the accessed bit of their own: whether the processor uses them decides about the window.
//! 2. Host frames are looked up without locks; each entry passes the same checks as a faulting one (scenarios T5, T13).
//! 3. A prefetch that is refused is dropped: nothing is removed, flushed or allocated for it.

use crate::addr::{Index, Level, TABLE_SLOTS};
use crate::edge::{Installed, Leaf, Purpose};
use crate::frames::Stripe;
use crate::host::{Host, Need};
use crate::mmu::Call;
use crate::page::{Page, PageId, TableState};
use crate::slots::SlotFlags;
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::vcpu::VcpuLocal;
use crate::walk::{Gpte, GpteWidth, Rights};

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
    /// Prefetches up to `window` entries behind slot `at` of a level-1 page.
    #[inline(never)]
    pub(crate) fn prefetch(&self, local: &VcpuLocal, id: PageId, at: Index, window: u16) {
        let page = self.page(id);
        let first = at.get() + 1;
        let end = (first + usize::from(window)).min(TABLE_SLOTS);
        let mut next = first;
        while next < end {
            let mut guesses = [None; BATCH];
            let until = (next + BATCH).min(end);
            let mut any = false;
            for (guess, i) in guesses.iter_mut().zip(next..until) {
                *guess = self.guess(local, page, Index::truncate(i));
                any |= guess.is_some();
                if !any {
                    // Where even the next one is no candidate, looking further seldom pays.
                    break;
                }
            }
            next = until;
            if !any || !self.install_guesses(id, page, &guesses) {
                break;
            }
        }
    }

    /// Decides how far to look, from what became of the last guesses.
    pub(crate) fn window(&self, page: &Page, at: Index, state: &mut TableState) -> u16 {
        let follows = usize::from(state.prefetched_to) == at.get();
        let last_is_used = || {
            let last = usize::from(state.prefetched_to.wrapping_sub(1));
            Index::new(last).is_some_and(|last| self.load(page, last).has(Spte::ACCESSED))
        };
        let window = if state.window == 0 {
            if follows || state.prefetched_to == 0 {
                FIRST
            } else {
                0
            }
        } else if !last_is_used() {
            0
        } else if follows {
            state.window * 2
        } else {
            state.window
        };
        state.window = window.min(self.mmu.config.prefetch);
        let to = (at.get() + 1 + usize::from(state.window)).min(TABLE_SLOTS);
        state.prefetched_to = to as u16;
        state.window
    }

    #[inline]
    fn guess(&self, local: &VcpuLocal, page: &Page, index: Index) -> Option<Guess> {
        let role = page.role();
        if self.load(page, index).is_present() {
            return None;
        }
        let gpte = self
            .read_gpte(role, Self::gpte_at(page, index), GpteWidth::Bytes8)
            .ok()?;
        let decoder = local.walker.decoder();
        let is_candidate = gpte.has(Gpte::ACCESSED) || mutant!(PrefetchUnaccessed);
        if !is_candidate || !decoder.is_valid(Level::L1, gpte) {
            return None;
        }
        let gfn = gpte.frame();
        let snapshot = self.mmu.shards.snapshot(gfn, Level::L1, &self.mmu.slots);
        let slot = if mutant!(PrefetchBeyondSlot) {
            self.slot(role.space(), page.gfn())?
        } else {
            self.slot(role.space(), gfn)?
        };
        let host = self.mmu.host.look_up(slot.backed(gfn), Need::Read).ok()?;
        let mut rights = role.rights() & gpte.rights();
        let logged = (SlotFlags::READ_ONLY | SlotFlags::LOG_DIRTY).intersects(slot.flags)
            && !mutant!(PrefetchIgnoresSlot);
        let is_dirty = gpte.has(Gpte::DIRTY) || mutant!(WriteBeforeDirty);
        if !is_dirty || !host.writable || logged {
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
    fn install_guesses(&self, id: PageId, page: &Page, guesses: &[Option<Guess>; BATCH]) -> bool {
        let mut state = page.lock.lock(&self.locks);
        if !page.is_alive() {
            return false;
        }
        let mut guesses = guesses.iter().flatten().peekable();
        while let Some(first) = guesses.peek() {
            // Neighbours are often frames of one region: one lock for as many as share it.
            let lock_of = first.leaf.gfn;
            let mut stripe = self.mmu.frames.lock(&self.locks, lock_of);
            while let Some(guess) =
                guesses.next_if(|g| self.mmu.frames.share_lock(g.leaf.gfn, lock_of))
            {
                if !self.install_guess(&mut stripe, (id, page), guess, &mut state) {
                    return false;
                }
            }
        }
        true
    }

    /// Installs one guess, under both locks; tells whether going on makes sense.
    #[inline]
    fn install_guess(
        &self,
        stripe: &mut Stripe,
        (id, page): (PageId, &Page),
        guess: &Guess,
        state: &mut TableState,
    ) -> bool {
        let at = Self::gpte_at(page, guess.index);
        let now = self.read_gpte(page.role(), at, GpteWidth::Bytes8);
        if !now.is_ok_and(|now| now == guess.gpte) && !mutant!(PrefetchWithoutRecheck) {
            return true;
        }
        match self.install_in(
            stripe,
            (id, page),
            (guess.index, Level::L1),
            &guess.leaf,
            Purpose::Any,
        ) {
            Ok(Installed::New) => {
                self.count_at(Event::Prefetch, guess.leaf.gfn);
                // Derived from this very word: nothing to judge.
                if let Some(copy) = state.copy.as_deref_mut() {
                    copy[guess.index.get() % 512] = guess.gpte.raw();
                }
            }
            Ok(_) => self.note_derived(page, guess.index, guess.gpte, state),
            Err(_) => return false,
        }
        true
    }
}
