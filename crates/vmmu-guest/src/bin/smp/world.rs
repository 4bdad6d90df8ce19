//! The address spaces: a few roots, directories that several roots share, tables, and what is known of each entry.
//!
//! A slot of a root leads to a directory (a table of level 3 with one of level 2 below it), a region of that to a table or a large
//! page, a page of a table to a frame. Slot 0 is the same directory in every space, as an operating system's own half is, and
//! has global pages; the other directories change places among the spaces, and tables among the regions of directories.
//!
//! Invariants:
//! 1. Links of roots and directories, and who uses a table, change only with the structure held alone; those of pages with it
//!    held by any number ([`crate::structure`]).
//! 2. The tables of directory 0 are in no other directory: what is global there is so in every space.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmmu_guest::machine::register::load_root;
use vmmu_guest::machine::{Entry, Frame};

use crate::frames::{self, Tenure};
use crate::link::Link;
use crate::place::{
    PAGE_INDICES, PAGES, Place, REGION_INDICES, REGIONS, Region, SLOT_INDICES, SLOTS, SPACES, Scope,
};
use crate::startup::MOST;

/// Directories: one for slot 0 of all, and as many for the other slots as there are.
pub(crate) const DIRECTORIES: usize = 1 + SPACES * (SLOTS - 1);
/// Tables.
pub(crate) const TABLES: usize = 40;

/// The frames of roots and directories.
const UPPER: Frame = Frame::at(0xc0_0000);
/// Of an entry that leads to a table: the rights are the leaves' matter.
const LINK_BITS: u64 = Entry::P | Entry::W | Entry::U;

/// Entry 0 of the bootstrap root, which every root has: the image, all memory one to one, and the local APIC.
const BOOT_ENTRY: Entry = Entry::raw(0x2000 | Entry::P | Entry::W | Entry::A);

/// What a root's slot leads to.
static ROOTS: [[Link; SLOTS]; SPACES] = [const { [const { Link::new() }; SLOTS] }; SPACES];
/// What a directory's region leads to.
static REGION_LINKS: [[Link; REGIONS]; DIRECTORIES] =
    [const { [const { Link::new() }; REGIONS] }; DIRECTORIES];

/// A table of level 1.
pub(crate) struct Table {
    /// Its frame, and the generation of that.
    number: AtomicU64,
    generation: AtomicU64,
    /// How many regions lead to it; 0 if there is no such table now.
    pub(crate) users: AtomicU32,
    leaves: [Link; PAGES],
}

static TABLE: [Table; TABLES] = [const {
    Table {
        number: AtomicU64::new(0),
        generation: AtomicU64::new(0),
        users: AtomicU32::new(0),
        leaves: [const { Link::new() }; PAGES],
    }
}; TABLES];

impl Table {
    /// The frame that it is in.
    pub(crate) fn tenure(&self) -> Tenure {
        Tenure {
            number: self.number.load(Ordering::SeqCst) as usize,
            generation: self.generation.load(Ordering::SeqCst),
        }
    }

    /// How many regions lead to it.
    pub(crate) fn users(&self) -> u32 {
        self.users.load(Ordering::SeqCst)
    }

    /// Puts it into a frame.
    pub(crate) fn set_tenure(&self, tenure: Tenure) {
        self.number.store(tenure.number as u64, Ordering::SeqCst);
        self.generation.store(tenure.generation, Ordering::SeqCst);
    }

    /// Exchanges the entry of page `page`.
    pub(crate) fn exchange(&self, page: usize, entry: Entry) -> Entry {
        self.tenure().frame().exchange(PAGE_INDICES[page], entry)
    }

    /// Clears the accessed and dirty bits of page `page`.
    pub(crate) fn harvest(&self, page: usize) -> Entry {
        self.tenure()
            .frame()
            .clear_bits(PAGE_INDICES[page], Entry::A | Entry::D)
    }

    /// The entry of page `page`.
    pub(crate) fn entry(&self, page: usize) -> Entry {
        self.tenure().frame().get(PAGE_INDICES[page])
    }

    /// What is known of page `page`.
    pub(crate) fn leaf(&self, page: usize) -> &Link {
        &self.leaves[page]
    }
}

/// The table with number `number`.
pub(crate) fn table(number: usize) -> &'static Table {
    &TABLE[number]
}

/// What is known of slot `slot` of `space`: the number of a directory.
pub(crate) fn root_link(space: usize, slot: usize) -> &'static Link {
    &ROOTS[space][slot]
}

/// What is known of region `region` of `directory`: a [`Region`].
pub(crate) fn region_link(directory: usize, region: usize) -> &'static Link {
    &REGION_LINKS[directory][region]
}

/// The directory in a slot of a space, for who holds the structure.
pub(crate) fn directory(space: usize, slot: usize) -> usize {
    root_link(space, slot).now() as usize
}

/// What a region of a directory leads to, for who holds the structure.
pub(crate) fn region(directory: usize, region: usize) -> Region {
    Region::from_word(region_link(directory, region).now())
}

/// Whether what is in `directory` is the same in every space, so that it may be global.
pub(crate) const fn scope_of(directory: usize) -> Scope {
    if directory == 0 {
        Scope::Global
    } else {
        Scope::Local
    }
}

fn root(space: usize) -> Frame {
    UPPER.next(space as u64)
}

/// The two frames of a directory: of level 3 and of level 2.
fn directory_frames(directory: usize) -> (Frame, Frame) {
    let level3 = UPPER.next((SPACES + 2 * directory) as u64);
    (level3, level3.next(1))
}

/// Exchanges the entry of a root's slot for one that leads to `directory`.
pub(crate) fn exchange_root(space: usize, slot: usize, directory: usize) -> Entry {
    root(space).exchange(SLOT_INDICES[slot], root_entry(directory))
}

/// The entry of a root that leads to `directory`.
pub(crate) fn root_entry(directory: usize) -> Entry {
    Entry::new(directory_frames(directory).0, LINK_BITS)
}

/// Exchanges the entry of a directory's region for one that leads to `new`.
pub(crate) fn exchange_region(directory: usize, region: usize, new: Region) -> Entry {
    let index = REGION_INDICES[region];
    directory_frames(directory)
        .1
        .exchange(index, region_entry(new))
}

/// The entry of a directory that leads to `region`, without the bits that processors set.
pub(crate) fn region_entry(region: Region) -> Entry {
    match region {
        Region::None => Entry::EMPTY,
        Region::Table(number) => Entry::new(table(number).tenure().frame(), LINK_BITS),
        Region::Large(..) => region.large_entry().unwrap_or(Entry::EMPTY),
    }
}

/// The entry of a directory's region as it is in memory.
pub(crate) fn region_entry_now(directory: usize, region: usize) -> Entry {
    directory_frames(directory).1.get(REGION_INDICES[region])
}

/// The entry of a root's slot as it is in memory.
pub(crate) fn root_entry_now(space: usize, slot: usize) -> Entry {
    root(space).get(SLOT_INDICES[slot])
}

/// Clears the accessed and dirty bits of a directory's region.
pub(crate) fn harvest_region(directory: usize, region: usize) -> Entry {
    directory_frames(directory)
        .1
        .clear_bits(REGION_INDICES[region], Entry::A | Entry::D)
}

/// The space that each processor uses, or [`NO_SPACE`].
static CURRENT: [AtomicU64; MOST] = [const { AtomicU64::new(NO_SPACE) }; MOST];
/// Of a processor that doesn't run a program: no set of spaces has it.
const NO_SPACE: u64 = 63;

/// All spaces, as a set.
pub(crate) const EVERY_SPACE: u64 = (1 << SPACES) - 1;

/// The spaces that have `directory` in a slot, as a set.
pub(crate) fn spaces_with(directory: usize) -> u64 {
    let has = |&space: &usize| (0..SLOTS).any(|slot| self::directory(space, slot) == directory);
    (0..SPACES)
        .filter(has)
        .fold(0, |set, space| set | 1 << space)
}

/// The processors that use one of `spaces`, as a set.
///
/// Called after an entry is stored: a processor that names the space later loads CR3 after that, and has nothing older.
pub(crate) fn processors_in(spaces: u64) -> u64 {
    let uses = |&number: &usize| spaces >> CURRENT[number].load(Ordering::SeqCst) & 1 != 0;
    (0..MOST)
        .filter(uses)
        .fold(0, |set, number| set | 1 << number)
}

/// Makes `space` the one of processor `number`, which is the one that calls.
pub(crate) fn enter(number: usize, space: usize) {
    CURRENT[number].store(space as u64, Ordering::SeqCst);
    load_root(root(space));
}

/// Builds the spaces: every directory is there, and empty.
pub(crate) fn prepare() {
    frames::prepare();
    for number in 0..(SPACES + 2 * DIRECTORIES) as u64 {
        UPPER.next(number).clear();
    }
    for number in 0..DIRECTORIES {
        let (level3, level2) = directory_frames(number);
        level3.set(0, Entry::new(level2, LINK_BITS));
    }
    for space in 0..SPACES {
        root(space).set(0, BOOT_ENTRY);
        for slot in 0..SLOTS {
            // Two spaces share each directory of slot 1 at first.
            let directory = match slot {
                0 => 0,
                1 => 1 + space / 2 * 2,
                _ => 2 + space * 2,
            };
            if let Some(change) = root_link(space, slot).try_change() {
                change.announce(directory as u64);
            }
            exchange_root(space, slot, directory);
        }
    }
}

/// Where a table is: every region that leads to it, as a place of its page `page`, in every space.
pub(crate) fn places_of(number: usize, page: usize) -> impl Iterator<Item = Place> {
    Place::all(page).filter(move |place| {
        let directory = directory(place.space, place.slot);
        region(directory, place.region) == Region::Table(number)
    })
}
