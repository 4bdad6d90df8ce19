//! The guest's page tables: made before the vCPUs run, in a part of guest memory for each.
//!
//! Key type: [`Tables`], which hands out frames for tables and writes entries.

use core::sync::atomic::Ordering;

use vmmu::addr::{Gfn, Gva, Level};

use crate::memory::Memory;

/// P, R/W, U/S, A: an entry that leads to a table.
const LINK: u64 = 0x27;
/// P, R/W, U/S: an entry that maps a page which nobody has used.
const FRESH: u64 = 7;
/// A and D.
const USED: u64 = 0x60;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Guest tables in the making: those of one vCPU, or of several that share them.
#[derive(Debug)]
pub struct Tables<'m> {
    memory: &'m Memory,
    next: u64,
}

impl<'m> Tables<'m> {
    /// Takes frames for tables from `first` on.
    #[must_use]
    pub fn from(memory: &'m Memory, first: Gfn) -> Self {
        Self {
            memory,
            next: first.get(),
        }
    }

    /// Takes a frame for a table and empties it.
    pub fn take(&mut self) -> Gfn {
        let table = self.next;
        self.next += 1;
        for word in self.memory.frame(table) {
            word.store(0, Ordering::Relaxed);
        }
        Gfn::new(table)
    }

    /// Returns the level-1 table of an address, and the entry's place in it, making tables on the way.
    fn leaf(&mut self, root: Gfn, gva: Gva) -> (u64, usize) {
        let mut table = root.get();
        for level in [Level::L4, Level::L3, Level::L2] {
            let index = level.index(gva.get()).get();
            let entry = self.memory.word(table, index).load(Ordering::Relaxed);
            table = if entry == 0 {
                let new = self.take().get();
                let link = new << 12 | LINK;
                self.memory
                    .word(table, index)
                    .store(link, Ordering::Relaxed);
                new
            } else {
                (entry & FRAME) >> 12
            };
        }
        (table, Level::L1.index(gva.get()).get())
    }

    /// Maps a page that nobody has used yet.
    pub fn map(&mut self, root: Gfn, gva: Gva, gfn: Gfn) {
        self.store(root, gva, gfn.get() << 12 | FRESH);
    }

    /// Maps a page that has been used, and written.
    pub fn map_used(&mut self, root: Gfn, gva: Gva, gfn: Gfn) {
        self.store(root, gva, gfn.get() << 12 | FRESH | USED);
    }

    fn store(&mut self, root: Gfn, gva: Gva, entry: u64) {
        let (table, index) = self.leaf(root, gva);
        self.memory
            .word(table, index)
            .store(entry, Ordering::Relaxed);
    }
}

/// Clears A and D of the entry that maps a page, as a guest does that looks for pages to swap out.
pub fn forget_use(memory: &Memory, root: Gfn, gva: Gva) {
    let mut table = root.get();
    for level in [Level::L4, Level::L3, Level::L2] {
        let entry = memory.word(table, level.index(gva.get()).get());
        table = (entry.load(Ordering::Relaxed) & FRAME) >> 12;
    }
    let entry = memory.word(table, Level::L1.index(gva.get()).get());
    entry.store(entry.load(Ordering::Relaxed) & !USED, Ordering::Relaxed);
}
