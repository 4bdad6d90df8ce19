//! Places of the address spaces, and what their entries lead to.
//!
//! Key types: [`Place`] (a page of a space), [`Leaf`] (what an entry of a table of level 1 leads to), [`Region`] (what one of level 2
//! does). Both fit into the word of a [`Link`](crate::link::Link), and give the entry that the processor walks.

use vmmu_guest::machine::{Entry, Frame, Level, Va};

use crate::frames::{self, Tenure};
use crate::random::Random;

/// Address spaces.
pub(crate) const SPACES: usize = 4;
/// Slots of a root that are used.
pub(crate) const SLOTS: usize = 3;
/// Regions of a directory that are used.
pub(crate) const REGIONS: usize = 4;
/// Pages of a table that are used.
pub(crate) const PAGES: usize = 8;

/// Where the slots are in a root.
pub(crate) const SLOT_INDICES: [usize; SLOTS] = [1, 2, 300];
/// Where the regions are in a directory's table of level 2.
pub(crate) const REGION_INDICES: [usize; REGIONS] = [0, 1, 2, 511];
/// Where the pages are in a table.
pub(crate) const PAGE_INDICES: [usize; PAGES] = [0, 1, 2, 3, 7, 8, 510, 511];

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
            slot: random.index(SLOTS),
            region: random.index(REGIONS),
            page: random.index(PAGES),
        }
    }

    /// Page `page` of every region of every space.
    pub(crate) fn all(page: usize) -> impl Iterator<Item = Self> {
        (0..SPACES * SLOTS * REGIONS).map(move |number| Self {
            space: number / (SLOTS * REGIONS),
            slot: number / REGIONS % SLOTS,
            region: number % REGIONS,
            page,
        })
    }

    /// The first address of its region.
    pub(crate) const fn region_address(self) -> Va {
        let slot = SLOT_INDICES[self.slot] as u64;
        let region = REGION_INDICES[self.region] as u64;
        let address = slot << Level::Pml4.shift() | region << Level::Pd.shift();
        Va::new(if slot >= 256 {
            address | 0xffff_0000_0000_0000
        } else {
            address
        })
    }

    /// Its address, where its region is divided into pages.
    pub(crate) const fn address(self) -> Va {
        self.region_address().page(PAGE_INDICES[self.page] as u64)
    }
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const SHARED: u64 = 1 << 2;
const GLOBAL: u64 = 1 << 3;
const LARGE: u64 = 1 << 4;

/// What may be done with what an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    ReadOnly,
    Writable,
    /// Read-only because other entries lead to the same frame: who writes gets a copy.
    Shared,
}

impl Rights {
    /// Mostly writable.
    pub(crate) fn random(random: &mut Random) -> Self {
        if random.chance(70) {
            Self::Writable
        } else {
            Self::ReadOnly
        }
    }

    const fn to_bits(self) -> u64 {
        match self {
            Self::ReadOnly => 0,
            Self::Writable => WRITABLE,
            Self::Shared => SHARED,
        }
    }
}

/// Whether an entry says "global".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Local,
    Global,
}

impl Scope {
    const fn to_bits(self) -> u64 {
        match self {
            Self::Local => 0,
            Self::Global => GLOBAL,
        }
    }
}

/// The bits of an entry with what is packed in `word`.
const fn entry_bits(word: u64) -> u64 {
    let mut bits = Entry::P | Entry::U;
    if word & WRITABLE != 0 {
        bits |= Entry::W;
    }
    if word & GLOBAL != 0 {
        bits |= Entry::G;
    }
    bits
}

/// What an entry of a table leads to: a frame with rights, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf(u64);

impl Leaf {
    /// Not present.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const fn new(tenure: Tenure, rights: Rights, scope: Scope) -> Self {
        let bits = PRESENT | rights.to_bits() | scope.to_bits();
        Self(bits | (tenure.number as u64) << 8 | tenure.generation << 32)
    }

    /// The same with other rights.
    pub(crate) const fn with(self, rights: Rights) -> Self {
        Self(self.0 & !(WRITABLE | SHARED) | rights.to_bits())
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    pub(crate) const fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    pub(crate) const fn is_shared(self) -> bool {
        self.0 & SHARED != 0
    }

    pub(crate) const fn scope(self) -> Scope {
        if self.0 & GLOBAL == 0 {
            Scope::Local
        } else {
            Scope::Global
        }
    }

    /// The frame, if it is present.
    pub(crate) const fn tenure(self) -> Option<Tenure> {
        if self.0 & PRESENT == 0 {
            return None;
        }
        Some(Tenure {
            number: (self.0 >> 8 & 0xffff) as usize,
            generation: self.0 >> 32,
        })
    }

    /// The entry that says so, neither accessed nor dirty.
    pub(crate) fn entry(self) -> Entry {
        self.tenure().map_or(Entry::EMPTY, |tenure| {
            Entry::new(tenure.frame(), entry_bits(self.0))
        })
    }
}

/// 2 MiB that a large page may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// The frames that tables and data share.
    Pool,
    /// Memory that keeps its stamps.
    Still,
}

impl Block {
    pub(crate) const fn frame(self) -> Frame {
        match self {
            Self::Pool => frames::FIRST,
            Self::Still => frames::STILL,
        }
    }
}

/// What an entry of a directory leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// Not present.
    None,
    /// The table with this number.
    Table(usize),
    /// A large page.
    Large(Block, Rights, Scope),
}

impl Region {
    pub(crate) const fn from_word(word: u64) -> Self {
        if word & PRESENT == 0 {
            return Self::None;
        }
        let number = (word >> 8) as usize;
        if word & LARGE == 0 {
            return Self::Table(number);
        }
        let block = if number == 0 {
            Block::Pool
        } else {
            Block::Still
        };
        let rights = if word & WRITABLE == 0 {
            Rights::ReadOnly
        } else {
            Rights::Writable
        };
        let scope = if word & GLOBAL == 0 {
            Scope::Local
        } else {
            Scope::Global
        };
        Self::Large(block, rights, scope)
    }

    pub(crate) const fn to_word(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Table(number) => PRESENT | (number as u64) << 8,
            Self::Large(block, rights, scope) => {
                let number = match block {
                    Block::Pool => 0,
                    Block::Still => 1,
                };
                PRESENT | LARGE | rights.to_bits() | scope.to_bits() | number << 8
            }
        }
    }

    /// The entry of a large page, neither accessed nor dirty.
    pub(crate) fn large_entry(self) -> Option<Entry> {
        match self {
            Self::Large(block, ..) => {
                let bits = entry_bits(self.to_word()) | Entry::PS;
                Some(Entry::new(block.frame(), bits))
            }
            _ => None,
        }
    }
}
