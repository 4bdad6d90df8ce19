//! Guest tables: entries, and the tree that most tests begin with.
//!
//! Key items: the bits of an entry, the tree.
//!
//! The tree is a 4-level tree in guest frames [`ROOT`] to [`ROOT`] + 3 that maps the first gibibyte of addresses; and a window at [`WINDOW`] through
//! which the kernel reaches guest frames 0 to 511 in tables of their own.

use vmmu::paging::{Cr0, Cr3, Cr4, Efer, PagingState, Pkru};
use vmmu_spec::{Access, Kind, Privilege};

use crate::machine::{MODEL, Machine};

/// Present.
pub const P: u64 = 1;
/// Writable.
pub const W: u64 = 1 << 1;
/// User.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Large page.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execute.
pub const NX: u64 = 1 << 63;
/// A reserved bit for 48-bit physical addresses.
pub const RESERVED: u64 = 1 << 51;
/// What a table entry usually has.
pub const TABLE: u64 = P | W | U;
/// What an ordinary page has, used and written before.
pub const PAGE: u64 = P | W | U | A | D;

/// The guest frame of the tree's root; the tables below follow.
pub const ROOT: u64 = 16;
/// The first frame of the window's three tables.
pub const WINDOW_TABLES: u64 = 8;
/// Where the window maps guest frame 0.
pub const WINDOW: u64 = 0xffff_8000_0000_0000;

/// A user's data read.
pub const USER_READ: Access = Access::new(Kind::Read, Privilege::User);
/// A user's data write.
pub const USER_WRITE: Access = Access::new(Kind::Write, Privilege::User);
/// A user's instruction fetch.
pub const USER_FETCH: Access = Access::new(Kind::Fetch, Privilege::User);
/// A kernel's data read.
pub const READ: Access = Access::new(Kind::Read, Privilege::Supervisor);
/// A kernel's data write.
pub const WRITE: Access = Access::new(Kind::Write, Privilege::Supervisor);
/// A kernel's instruction fetch.
pub const FETCH: Access = Access::new(Kind::Fetch, Privilege::Supervisor);

/// Returns an entry that leads to a guest frame.
#[must_use]
pub const fn entry(gfn: u64, flags: u64) -> u64 {
    gfn << 12 | flags
}

/// Returns where entry `index` of the table in a guest frame lies.
#[must_use]
pub const fn slot(gfn: u64, index: u64) -> u64 {
    (gfn << 12) + index * 8
}

/// Returns the registers of a 4-level guest with WP and NXE.
#[must_use]
pub const fn long4(root: u64) -> PagingState {
    PagingState {
        cr0: Cr0::PE.union(Cr0::PG).union(Cr0::WP),
        cr3: Cr3::new(root << 12),
        cr4: Cr4::PAE.union(Cr4::PGE),
        efer: Efer::LME.union(Efer::LMA).union(Efer::NXE),
        pkru: Pkru::new(0),
        pdptes: None,
        cpu: MODEL,
    }
}

/// Maps the window into the root at a guest frame, making its tables.
pub fn map_window(machine: &mut Machine, root: u64) {
    let first = WINDOW_TABLES;
    machine.poke(slot(root, 256), entry(first, TABLE));
    machine.poke(slot(first, 0), entry(first + 1, TABLE));
    machine.poke(slot(first + 1, 0), entry(first + 2, TABLE));
    for gfn in 0..512 {
        machine.poke(slot(first + 2, gfn), entry(gfn, P | W | A | D | NX));
    }
}

/// Makes a chain of tables from [`ROOT`] down to a level-1 table at [`ROOT`] + 3, and the window.
pub fn map_tree(machine: &mut Machine) {
    for level in 0..3 {
        machine.poke(slot(ROOT + level, 0), entry(ROOT + level + 1, TABLE));
    }
    map_window(machine, ROOT);
}

/// Returns the window's address of a guest-physical one below 2 MiB.
#[must_use]
pub const fn window(gpa: u64) -> u64 {
    WINDOW + gpa
}
