//! The address spaces: a few roots, directories that several roots share, tables, and what is known of each entry.
//!
//! A [`Place`] names a page in a space: a slot of the root leads to a directory (a table of level 3 with one of level 2 below
//! it), a region of it to a table, a page of that to a frame. Slot 0 is the same directory in every space, as an operating
//! system's own half is; slot 1 is shared by pairs of spaces; slot 2 is each space's own.
//!
//! Key types: [`Place`], [`Path`] (what is known of the entries on the way to it), [`Leaf`].

use core::sync::atomic::{AtomicU64, Ordering};

use vmmu_guest::machine::{Entry, Frame, Level, Va};

use crate::frames::{self, Tenure};
use crate::link::{Link, Seen};
use crate::random::Random;
use crate::startup::MOST;

/// Address spaces.
pub(crate) const SPACES: usize = 4;
/// Slots of a root that are used.
pub(crate) const SLOTS: usize = 3;
/// Regions of a directory that are used.
pub(crate) const REGIONS: usize = 4;
/// Pages of a table that are used.
pub(crate) const PAGES: usize = 8;
/// Directories.
const DIRECTORIES: usize = 3 + SPACES;
/// Tables.
pub(crate) const TABLES: usize = DIRECTORIES * REGIONS;

/// Where the slots are in a root.
const SLOT_INDICES: [usize; SLOTS] = [1, 2, 300];
/// Where the regions are in a directory's table of level 2.
const REGION_INDICES: [usize; REGIONS] = [0, 1, 2, 511];
/// Where the pages are in a table.
const PAGE_INDICES: [usize; PAGES] = [0, 1, 2, 3, 7, 8, 510, 511];

/// The frames of roots and directories, which never change.
const UPPER: Frame = Frame::at(0xc0_0000);
/// Present, writable, accessed: what leads from table to table.
const LINK_BITS: u64 = Entry::P | Entry::W | Entry::U;

/// A page of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) space: usize,
    pub(crate) slot: usize,
    pub(crate) region: usize,
    pub(crate) page: usize,
}

impl Place {
    /// Any page of `space`.
    pub(crate) fn random_in(space: usize, random: &mut Random) -> Self {
        Self {
            space,
            slot: random.below(SLOTS as u64) as usize,
            region: random.below(REGIONS as u64) as usize,
            page: random.below(PAGES as u64) as usize,
        }
    }

    /// Its address.
    pub(crate) fn address(self) -> Va {
        let slot = SLOT_INDICES[self.slot] as u64;
        let address = slot << Level::Pml4.shift()
            | (REGION_INDICES[self.region] as u64) << Level::Pd.shift()
            | (PAGE_INDICES[self.page] as u64) << Level::Pt.shift();
        Va::new(if slot >= 256 {
            address | 0xffff_0000_0000_0000
        } else {
            address
        })
    }
}

/// What an entry of a table leads to: a frame with rights, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf(u64);

impl Leaf {
    /// Not present.
    pub(crate) const NONE: Self = Self(0);
    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;

    pub(crate) const fn new(tenure: Tenure, writable: bool) -> Self {
        let rights = if writable { Self::WRITABLE } else { 0 };
        Self(Self::PRESENT | rights | (tenure.number as u64) << 8 | tenure.generation << 32)
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    pub(crate) const fn is_writable(self) -> bool {
        self.0 & Self::WRITABLE != 0
    }

    /// The frame, if it is present.
    pub(crate) const fn tenure(self) -> Option<Tenure> {
        if self.0 & Self::PRESENT == 0 {
            return None;
        }
        Some(Tenure {
            number: (self.0 >> 8 & 0xffff) as usize,
            generation: self.0 >> 32,
        })
    }

    /// The entry that says so, neither accessed nor dirty.
    pub(crate) fn entry(self) -> Entry {
        let rights = if self.is_writable() { Entry::W } else { 0 };
        self.tenure().map_or(Entry::EMPTY, |tenure| {
            Entry::new(tenure.frame(), Entry::P | Entry::U | rights)
        })
    }
}

/// A table of level 1.
pub(crate) struct Table {
    frame: AtomicU64,
    leaves: [Link; PAGES],
}

impl Table {
    fn frame(&self) -> Frame {
        Frame::at(self.frame.load(Ordering::SeqCst))
    }

    /// Exchanges the entry of page `page`.
    pub(crate) fn exchange(&self, page: usize, entry: Entry) -> Entry {
        self.frame().exchange(PAGE_INDICES[page], entry)
    }

    /// Clears the accessed and dirty bits of page `page`.
    pub(crate) fn harvest(&self, page: usize) -> Entry {
        self.frame()
            .clear_bits(PAGE_INDICES[page], Entry::A | Entry::D)
    }

    /// The entry of page `page`.
    pub(crate) fn entry(&self, page: usize) -> Entry {
        self.frame().get(PAGE_INDICES[page])
    }

    /// What is known of page `page`.
    pub(crate) fn leaf(&self, page: usize) -> &Link {
        &self.leaves[page]
    }
}

static TABLE: [Table; TABLES] = [const {
    Table {
        frame: AtomicU64::new(0),
        leaves: [const { Link::new() }; PAGES],
    }
}; TABLES];

/// The space that each processor uses, or [`NO_SPACE`].
static CURRENT: [AtomicU64; MOST] = [const { AtomicU64::new(NO_SPACE) }; MOST];
/// Of a processor that doesn't run a program: no set of spaces has it.
const NO_SPACE: u64 = 63;

/// The directory in `slot` of `space`.
const fn directory(space: usize, slot: usize) -> usize {
    match slot {
        0 => 0,
        1 => 1 + space / 2,
        _ => 3 + space,
    }
}

/// The table of `region` of `slot` of `space`.
pub(crate) fn table(place: Place) -> &'static Table {
    &TABLE[directory(place.space, place.slot) * REGIONS + place.region]
}

/// The spaces in which a table is reached, as a set.
fn spaces_that_reach(place: Place) -> u64 {
    let same = |&space: &usize| directory(space, place.slot) == directory(place.space, place.slot);
    (0..SPACES)
        .filter(same)
        .fold(0, |set, space| set | 1 << space)
}

/// The processors that use a space in which `place`'s table is reached, as a set.
///
/// Called after the entry is stored: a processor that names the space later loads CR3 after that, and has nothing older.
pub(crate) fn processors_that_reach(place: Place) -> u64 {
    let spaces = spaces_that_reach(place);
    let uses = |&number: &usize| spaces >> CURRENT[number].load(Ordering::SeqCst) & 1 != 0;
    (0..MOST)
        .filter(uses)
        .fold(0, |set, number| set | 1 << number)
}

/// What is known of a place when it is about to be accessed.
pub(crate) struct Path {
    pub(crate) place: Place,
    link: &'static Link,
    leaf: Seen,
}

impl Path {
    /// Looks at the entries; nothing while one of them is being prepared for a change.
    pub(crate) fn look(place: Place) -> Option<Self> {
        let link = table(place).leaf(place.page);
        Some(Self {
            place,
            link,
            leaf: link.look()?,
        })
    }

    /// Whether all of it was true all the time since.
    pub(crate) fn still_holds(&self) -> bool {
        self.link.is_still(self.leaf)
    }

    /// Whether no change is under way.
    pub(crate) fn is_stable(&self) -> bool {
        self.leaf.is_stable()
    }

    /// What an access may find: one of two while a change is under way, else the same twice.
    pub(crate) fn leaves(&self) -> [Leaf; 2] {
        [
            Leaf::from_word(self.leaf.now),
            Leaf::from_word(self.leaf.before),
        ]
    }
}

fn root(space: usize) -> Frame {
    UPPER.next(space as u64)
}

/// Makes `space` the one of processor `number`, which is the one that calls.
pub(crate) fn enter(number: usize, space: usize) {
    CURRENT[number].store(space as u64, Ordering::SeqCst);
    vmmu_guest::machine::register::load_root(root(space));
}

/// Builds the spaces: every table is there, and empty.
pub(crate) fn prepare(boot_root: Frame0, random: &mut Random) {
    frames::prepare();
    for number in 0..(SPACES + 2 * DIRECTORIES) as u64 {
        UPPER.next(number).clear();
    }
    let directories = UPPER.next(SPACES as u64);
    let level3 = |number: usize| directories.next(2 * number as u64);
    for number in 0..DIRECTORIES {
        let level2 = level3(number).next(1);
        level3(number).set(0, Entry::new(level2, LINK_BITS));
        for (region, index) in REGION_INDICES.into_iter().enumerate() {
            let frame = frames::take_table(random)
                .expect("there are more frames than tables")
                .frame();
            TABLE[number * REGIONS + region]
                .frame
                .store(frame.address(), Ordering::SeqCst);
            level2.set(index, Entry::new(frame, LINK_BITS));
        }
    }
    for space in 0..SPACES {
        root(space).set(0, boot_root.0);
        for (slot, index) in SLOT_INDICES.into_iter().enumerate() {
            root(space).set(index, Entry::new(level3(directory(space, slot)), LINK_BITS));
        }
    }
}

/// Entry 0 of the bootstrap root, which every root has: the image, all memory one to one, and the local APIC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame0(pub(crate) Entry);
