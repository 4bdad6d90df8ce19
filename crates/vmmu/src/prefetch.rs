//! Prefetching: which neighbours of a page that faulted are worth installing with it.
//!
//! Key type: [`Window`]. Neighbours: `fill` installs, `shadow` asks after each fault that installed a leaf.
//!
//! The window is a number of entries and the distance between them. It grows while the guest goes on the way it went, and closes when prefetched
//! entries turn out unused; faults at equal distances open it again.
//!
//! Invariant:
//! 1. Prefetched entries come without the accessed bit, so that the processor's setting it tells which of them were used.

use crate::addr::{Index, TABLE_SLOTS};
use crate::fill::Miss;
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{Page, PageId};
use crate::spte::Spte;
use crate::stats::Observer;
use crate::walk::Decoder;

/// The first window.
const FIRST: u16 = 8;
/// The fault of a page that had none.
const NOWHERE: u16 = u16::MAX;
/// How much a window grows.
const GROWTH: u16 = 4;

/// Which slots of a level-1 page were prefetched with its last fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The slot of that fault.
    at: u16,
    /// How many slots behind it.
    count: u16,
    /// The distance from one to the next; between the last two faults if there are none.
    stride: u16,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            at: NOWHERE,
            count: 0,
            stride: 1,
        }
    }
}

impl Window {
    /// Returns the `n`th slot behind the fault, counted from 1, if the table has so many.
    #[inline]
    fn slot(self, n: u16) -> Option<Index> {
        let slot = usize::from(self.at) + usize::from(n) * usize::from(self.stride);
        Index::new(slot)
    }

    /// Returns the window for a fault at `at`, at most `most` entries; `used` tells whether a prefetched slot was used.
    fn next(self, at: Index, most: u16, used: impl Fn(Index) -> bool) -> Self {
        let here = at.get() as u16;
        let distance = match here.checked_sub(self.at) {
            // The page has never faulted: any distance will do.
            _ if self.at == NOWHERE => self.stride,
            Some(distance) if distance != 0 => distance,
            _ => TABLE_SLOTS as u16,
        };
        let closed = Self {
            at: here,
            count: 0,
            stride: distance,
        };
        let (stride, count) = if self.count == 0 {
            // Nothing was prefetched: two equal distances are reason enough.
            if distance != self.stride {
                return closed;
            }
            (self.stride, FIRST)
        } else {
            let is_used = |n: &u16| self.slot(*n).is_some_and(&used);
            let Some(first) = (1..=self.count).find(is_used) else {
                return closed;
            };
            // The guest's own stride, if it came here by it.
            let step = self.stride.saturating_mul(first);
            if distance % step == 0 {
                (step, self.count.saturating_mul(GROWTH))
            } else if is_used(&self.count) {
                (self.stride, self.count)
            } else {
                return closed;
            }
        };
        Self {
            at: here,
            count: count.min(most),
            stride,
        }
    }

    /// Tells whether there is nothing to prefetch.
    #[inline]
    pub(crate) fn is_closed(self) -> bool {
        self.count == 0
    }

    fn slots(self) -> impl Iterator<Item = Index> {
        (1..=self.count).map_while(move |n| self.slot(n))
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Prefetches the slots of `window` of a level-1 page.
    #[inline(never)]
    pub(crate) fn prefetch(&self, decoder: &Decoder, id: PageId, window: Window) {
        self.fill(id, decoder, window.slots(), Miss::GiveUp);
    }

    /// Decides how far to look behind a fault at `at`, from what became of the last guesses.
    pub(crate) fn window(&self, page: &Page, at: Index, last: Window) -> Window {
        last.next(at, self.mmu.config.prefetch, |slot| {
            self.load(page, slot).has(Spte::ACCESSED)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod a_window {
    use super::*;

    /// Plays a guest that touches `touched` in order; returns how many faults it takes, and how many slots are prefetched in vain.
    fn play(touched: impl Iterator<Item = usize>) -> (usize, usize) {
        let (mut window, mut faults) = (Window::default(), 0);
        let (mut present, mut used) = ([false; TABLE_SLOTS], [false; TABLE_SLOTS]);
        for slot in touched {
            if !present[slot] {
                faults += 1;
                window = window.next(Index::truncate(slot), 64, |slot| used[slot.get()]);
                for slot in window.slots() {
                    present[slot.get()] = true;
                }
                present[slot] = true;
            }
            used[slot] = true;
        }
        let idle = present.iter().zip(used).filter(|(p, u)| **p && !u);
        (faults, idle.count())
    }

    #[test]
    fn grows_while_the_guest_goes_on_in_order() {
        let (faults, idle) = play(0..TABLE_SLOTS);
        assert!(faults <= 11 && idle == 0, "{faults} faults, {idle} in vain");
    }

    #[test]
    fn takes_the_guests_stride() {
        for stride in [2, 3, 8] {
            let (faults, idle) = play((0..TABLE_SLOTS).step_by(stride));
            assert!(faults <= 8, "{faults} faults by {stride}");
            assert!(idle <= 8, "{idle} in vain by {stride}");
        }
    }

    #[test]
    fn closes_where_guesses_are_in_vain() {
        // A generator of full period: no two distances are alike.
        let random = core::iter::successors(Some(1), |x| Some((x * 293 + 131) % TABLE_SLOTS));
        let (faults, idle) = play(random.take(100));
        assert!(idle <= 16, "{faults} faults, {idle} in vain");
        let (faults, idle) = play((0..TABLE_SLOTS).rev());
        assert!(idle <= 8, "{faults} faults, {idle} in vain");
    }
}
