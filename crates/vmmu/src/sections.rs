//! Going through the entries of a page with its table lock given up after every [`MOST`] of them.
//!
//! Key type: [`Sections`]. Neighbour: `derive`, which knows what becomes of an entry; none depends on another.
//!
//! Invariant:
//! 1. Which slots may be present is read in the section that looks at them.

use crate::debt::Debt;
use crate::derive::Derived;
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{PRESENT_WORDS, Page, PageId, TableState};
use crate::stats::Observer;
use crate::sync::{Guard, MOST};
use crate::walk::Decoder;

/// The table lock of a page, given up and taken again after [`MOST`] entries.
pub(crate) struct Sections<'c> {
    page: &'c Page,
    /// `None` only between two sections.
    state: Option<Guard<'c, TableState>>,
    room: usize,
}

impl<'c> Sections<'c> {
    /// Begins with a section that has touched no entry yet.
    pub(crate) fn new(page: &'c Page, state: Guard<'c, TableState>) -> Self {
        Self {
            page,
            state: Some(state),
            room: MOST,
        }
    }

    /// Returns which of the slots `among` of a presence word may be present, as many as one section has room for, and what the lock guards meanwhile.
    pub(crate) fn take<H: Host, O: Observer>(
        &mut self,
        call: &'c Call<'_, H, O>,
        word: usize,
        among: u64,
    ) -> (&mut TableState, u64) {
        let page = self.page;
        let mut some = first_of(among & page.present_word(word));
        if some.count_ones() as usize > self.room {
            self.state = None;
            self.room = MOST;
            self.state = Some(page.lock.lock(&call.locks));
            some = first_of(among & page.present_word(word));
        }
        self.room -= some.count_ones() as usize;
        let state = self
            .state
            .get_or_insert_with(|| page.lock.lock(&call.locks));
        (state, some)
    }
}

/// Tells whether what has to be looked at, all entries or those of one presence word, fits into one section. Under the table lock no entry appears.
#[inline]
pub(crate) fn is_one_section(page: &Page, differing: Option<&[u64; PRESENT_WORDS]>) -> bool {
    match differing {
        Some(words) => MOST >= 64 && words.iter().filter(|&&word| word != 0).count() <= 1,
        None => page.population() as usize <= MOST,
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Derives section by section.
    #[inline(never)]
    pub(crate) fn derive_many<'c>(
        &'c self,
        (id, page): (PageId, &'c Page),
        differing: Option<[u64; PRESENT_WORDS]>,
        decoder: &Decoder,
        state: Guard<'c, TableState>,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Derived {
        let mut sections = Sections::new(page, state);
        let mut derived = Derived::Same;
        for word in 0..PRESENT_WORDS {
            let mut left = differing.map_or(u64::MAX, |differing| differing[word]);
            while left != 0 {
                let (state, some) = sections.take(self, word, left);
                if differing.is_none() {
                    state.doubt.clear(word);
                }
                if some == 0 {
                    break;
                }
                left &= !some;
                let one = self.derive_word((id, page), (word, some), decoder, state, debt);
                derived = derived.max(one);
            }
        }
        derived
    }
}

/// Returns as many of the slots as a new section has room for.
#[inline]
const fn first_of(slots: u64) -> u64 {
    if MOST < 64 {
        slots & slots.wrapping_neg()
    } else {
        slots
    }
}
