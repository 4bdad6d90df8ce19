//! The host's own tables: RAM above 4 GiB, and the pages below the stacks that must not be touched.
//!
//! The entry code maps the first 4 GiB one to one with 2 MiB pages.
//!
//! Invariants:
//! 1. What is mapped is mapped one to one; only the guard pages are not.

use alloc::boxed::Box;

use vmmu::addr::{Hpa, Index, Level};

use super::register::{cr3, reload_cr3};

const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A table for good.
#[repr(align(4096))]
struct Table([u64; 512]);

impl Table {
    /// Makes a table whose slots `entry` fills, and returns the entry that leads to it.
    fn link(entry: impl Fn(u64) -> u64) -> u64 {
        let table = Box::leak(Box::new(Table([0; 512])));
        for (slot, word) in (0..).zip(table.0.iter_mut()) {
            *word = entry(slot);
        }
        (&raw const *table) as u64 | PRESENT_WRITABLE
    }
}

/// Maps all RAM above 4 GiB up to `end`.
///
/// # Panics
/// If there is RAM above 512 GiB.
pub(crate) fn map_above_4g(end: Hpa) {
    assert!(end.get() <= 512 << 30, "there is RAM above 512 GiB");
    for gib in 4..end.get().div_ceil(1 << 30) {
        let link = Table::link(|slot| gib << 30 | slot << 21 | LARGE | PRESENT_WRITABLE);
        set_entry(Level::L3, gib << 30, link);
    }
    reload_cr3();
}

/// Takes the page at `guard` away, so that a stack that runs into it is reported.
pub(crate) fn unmap(guard: Hpa) {
    let (address, block) = (guard.get(), guard.get() & !(Level::L2.bytes() - 1));
    // SAFETY:
    // - The entry is one of the host's tables.
    let old = unsafe { entry(Level::L2, address).read_volatile() };
    if old & LARGE != 0 {
        let link = Table::link(|slot| (block + slot * 4096) | PRESENT_WRITABLE);
        set_entry(Level::L2, address, link);
    }
    set_entry(Level::L1, address, 0);
    reload_cr3();
}

/// Sets the entry of `level` that `address` goes through; the tables above it are there.
fn set_entry(level: Level, address: u64, new: u64) {
    // SAFETY:
    // - The entry is one of the host's tables; the new one maps the same memory as the old one, or what nothing uses.
    unsafe { entry(level, address).write_volatile(new) }
}

/// Returns where the entry of `level` lies that `address` goes through.
fn entry(level: Level, address: u64) -> *mut u64 {
    let (mut table, mut at) = (cr3().get(), Level::L4);
    while at != level {
        // SAFETY:
        // - The table is one of the host's, which its own root leads to; tables are identity-mapped.
        table = unsafe { slot(table, at.index(address)).read_volatile() } & ADDRESS;
        at = at.below().expect("the level is not 0");
    }
    slot(table, at.index(address))
}

fn slot(table: u64, index: Index) -> *mut u64 {
    (table as *mut u64).wrapping_add(index.get())
}
