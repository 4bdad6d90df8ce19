//! What a processor keeps of its walks: leaves of both sizes, and the tables that leaves of 4 KiB are in.
//!
//! Key types: [`Tlb`], [`Leaf`].
//!
//! Invariant:
//! 1. No address has leaves of both sizes: processors are not made for that, so the library must not let it come to it (scenario T16).

use std::collections::BTreeMap;

const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// The level of a leaf of 4 KiB; one of 2 MiB has the next.
pub(crate) const SMALL: u32 = 1;
/// Frames of 2 MiB.
const BLOCK: u64 = 512;

/// An entry that maps memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    pub(crate) entry: u64,
    pub(crate) level: u32,
}

impl Leaf {
    /// Returns the host frame of an address.
    pub(crate) fn frame(self, va: u64) -> u64 {
        let first = frame_of(self.entry);
        if self.level == SMALL {
            first
        } else {
            first + (va >> 12) % BLOCK
        }
    }
}

/// Returns the frame that an entry names.
pub(crate) fn frame_of(entry: u64) -> u64 {
    (entry & FRAME) >> 12
}

/// The translations of one processor.
#[derive(Debug, Default)]
pub(crate) struct Tlb {
    /// Leaves of 4 KiB, by page.
    small: BTreeMap<u64, u64>,
    /// Leaves of 2 MiB, by block.
    large: BTreeMap<u64, u64>,
    /// Level-1 tables, by block.
    tables: BTreeMap<u64, u64>,
}

impl Tlb {
    /// Returns the leaf of an address.
    pub(crate) fn find(&self, va: u64) -> Option<Leaf> {
        let large = self.large.get(&(va >> 21)).map(|entry| (*entry, SMALL + 1));
        let small = self.small.get(&(va >> 12)).map(|entry| (*entry, SMALL));
        large.or(small).map(|(entry, level)| Leaf { entry, level })
    }

    /// Keeps a leaf.
    pub(crate) fn keep(&mut self, va: u64, leaf: Leaf) {
        let block = va >> 21;
        if leaf.level == SMALL {
            let is_large = self.large.contains_key(&block);
            assert!(!is_large, "{va:#x} has a large leaf, and gets a small one");
            self.small.insert(va >> 12, leaf.entry);
        } else {
            let mut pages = self.small.range(block * BLOCK..(block + 1) * BLOCK);
            let is_alone = pages.next().is_none();
            assert!(is_alone, "{va:#x} has a small leaf, and gets a large one");
            self.large.insert(block, leaf.entry);
        }
    }

    /// Returns the level-1 table of an address.
    pub(crate) fn table(&self, va: u64) -> Option<u64> {
        self.tables.get(&(va >> 21)).copied()
    }

    /// Keeps the level-1 table of an address.
    pub(crate) fn keep_table(&mut self, va: u64, table: u64) {
        self.tables.insert(va >> 21, table);
    }

    /// Drops the leaf of an address, as a fault does.
    pub(crate) fn drop_leaf(&mut self, va: u64) {
        self.small.remove(&(va >> 12));
        self.large.remove(&(va >> 21));
    }

    /// Drops everything.
    pub(crate) fn flush(&mut self) {
        *self = Self::default();
    }
}
