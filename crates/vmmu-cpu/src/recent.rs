//! A direct-mapped array in front of the translation lookaside buffer: what most accesses find, found fast.
//!
//! Key type: [`Recent`]; its owner is [`crate::tlb::Tlb`], which asks it first and keeps it true.
//!
//! Invariants:
//! 1. It holds an entry for an address only while the buffer has that entry and no other for the address: whoever has a choice makes it in the buffer.
//! 2. It adds nothing: with or without it the processor does the same.

use crate::addr::PageSize;
use crate::tlb::{Tag, TlbEntry};

/// How many 4 KiB pages have a place.
const SLOTS: usize = 1024;

/// The array.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Empty until the first entry comes.
    slots: Vec<Slot>,
    /// What was put in under another number is gone.
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u64,
    tag: u64,
    /// The number of the 4 KiB page asked for, which may be a part of the entry's.
    page: u64,
    entry: TlbEntry,
}

impl Recent {
    #[inline]
    const fn index(page: u64) -> usize {
        (page ^ page >> 10) as usize % SLOTS
    }

    /// Returns the only entry for `address`, if it is here.
    #[inline]
    pub(crate) fn get(&self, tag: Tag, address: u64) -> Option<&TlbEntry> {
        let page = address >> PageSize::Size4K.shift();
        let slot = self.slots.get(Self::index(page))?;
        let here =
            slot.page == page && slot.tag == tag.packed() && slot.generation == self.generation;
        here.then_some(&slot.entry)
    }

    /// Puts in the only entry for `address`.
    pub(crate) fn put(&mut self, tag: Tag, address: u64, entry: &TlbEntry) {
        let page = address >> PageSize::Size4K.shift();
        let slot = Slot {
            generation: self.generation,
            tag: tag.packed(),
            page,
            entry: *entry,
        };
        if self.slots.is_empty() {
            let gone = self.generation.wrapping_sub(1);
            let empty = Slot {
                generation: gone,
                ..slot
            };
            self.slots = vec![empty; SLOTS];
        }
        self.slots[Self::index(page)] = slot;
    }

    /// Takes out what the buffer may say otherwise about after entries of a page came or went.
    pub(crate) fn forget(&mut self, address: u64, size: PageSize) {
        if size != PageSize::Size4K {
            self.clear();
            return;
        }
        let page = address >> PageSize::Size4K.shift();
        let gone = self.generation.wrapping_sub(1);
        if let Some(slot) = self.slots.get_mut(Self::index(page)) {
            slot.generation = gone;
        }
    }

    /// Takes everything out.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.generation += 1;
    }
}
