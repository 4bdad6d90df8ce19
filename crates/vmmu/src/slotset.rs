//! Sets of a table's slots.
//!
//! Key type: [`SlotSet`]. Neighbours: `page` keeps one under the table lock, `derive` adds to it, `fill` takes it.

use crate::addr::{Index, TABLE_SLOTS};
use crate::page::PRESENT_WORDS;

/// Slots of a table, each once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SlotSet {
    bits: [u64; PRESENT_WORDS],
    len: u16,
    /// The slot that was added when the set was empty.
    first: u16,
}

impl SlotSet {
    /// Adds a slot.
    #[inline]
    pub(crate) fn insert(&mut self, slot: Index) {
        let (word, bit) = (slot.get() / 64, 1 << (slot.get() % 64));
        if self.bits[word] & bit == 0 {
            if self.len == 0 {
                self.first = slot.get() as u16;
            }
            self.bits[word] |= bit;
            self.len += 1;
        }
    }

    /// Takes the slot out if it is the only one: what most sets hold.
    #[inline]
    pub(crate) fn take_only(&mut self) -> Option<Index> {
        if self.len != 1 {
            return None;
        }
        let slot = Index::truncate(usize::from(self.first));
        self.bits[slot.get() / 64] = 0;
        self.len = 0;
        Some(slot)
    }
}

/// A set's slots in order.
#[derive(Debug)]
pub(crate) struct Slots {
    bits: [u64; PRESENT_WORDS],
    word: usize,
}

impl IntoIterator for SlotSet {
    type Item = Index;
    type IntoIter = Slots;
    fn into_iter(self) -> Slots {
        Slots {
            bits: self.bits,
            word: 0,
        }
    }
}

impl Iterator for Slots {
    type Item = Index;
    #[inline]
    fn next(&mut self) -> Option<Index> {
        loop {
            let bits = self.bits.get_mut(self.word)?;
            if *bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                return Some(Index::truncate((self.word * 64 + bit) % TABLE_SLOTS));
            }
            self.word += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod a_set_of_slots {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in_once_and_in_order() {
        let mut set = SlotSet::default();
        for slot in [511, 0, 64, 63, 0, 300] {
            set.insert(Index::truncate(slot));
        }
        assert_eq!(set.take_only(), None);
        let slots = set.into_iter().map(Index::get);
        assert!(slots.eq([0, 63, 64, 300, 511]));
    }

    #[test]
    fn tells_an_only_member_and_is_empty_then() {
        let mut set = SlotSet::default();
        assert_eq!(set.take_only(), None);
        for slot in [7, 400] {
            set.insert(Index::truncate(slot));
            set.insert(Index::truncate(slot));
            assert_eq!(set.take_only(), Some(Index::truncate(slot)));
            assert_eq!(
                set,
                SlotSet {
                    first: slot as u16,
                    ..SlotSet::default()
                }
            );
        }
    }
}
