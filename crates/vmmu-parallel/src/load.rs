//! What the vCPUs touch.
//!
//! Key type: [`Load`]. A worker is a vCPU with its thread; each has an area of guest memory, tables first, data behind.

use vmmu::addr::{Gfn, Gva};

use crate::guest::Tables;
use crate::memory::Memory;

/// Frames that one level-1 table maps, and that one gfn lock covers.
const REGION: u64 = 512;
/// Where the addresses begin that are touched.
const BASE: u64 = 0x80_0000_0000;
/// Where those begin that map the hot frame.
const HOT_BASE: u64 = 0x100_0000_0000;
/// One worker's part of the pages, where every page is the same frame: what the library spends on a frame's mappings is bounded by how much of the guest
/// is mapped at all.
const HOT_PART: u64 = 8;

/// What vCPUs share, or do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Each has an address space and memory of its own: two processes.
    Disjoint,
    /// One address space, memory and level-1 tables of their own: threads of a process that work apart.
    SharedSpace,
    /// One address space, the same level-1 tables and the same 2 MiB of memory, each its part of them: neighbouring buffers.
    SharedTable,
    /// The same, but alternate pages: even the cache lines of the guest's entries are shared.
    Alternate,
    /// An address space and memory of their own, and in it many pages that are one frame of all.
    HotFrame,
}

impl Load {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] = [
        Self::Disjoint,
        Self::SharedSpace,
        Self::SharedTable,
        Self::Alternate,
        Self::HotFrame,
    ];

    /// Returns the name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disjoint => "disjoint tables",
            Self::SharedSpace => "one space, own leaf tables",
            Self::SharedTable => "the same leaf tables",
            Self::Alternate => "alternate pages",
            Self::HotFrame => "one hot frame",
        }
    }

    /// Returns how often the pages that are touched are taken away and touched again in one measurement.
    #[must_use]
    pub const fn passes(self) -> u64 {
        match self {
            Self::HotFrame => HOT_PART,
            _ => 1,
        }
    }

    /// Returns after how many pages the workers wait for each other: they are to stay in the same tables.
    #[must_use]
    pub const fn meets_after(self, size: Size) -> Option<u64> {
        match self {
            Self::SharedTable | Self::Alternate => Some(REGION / size.workers),
            _ => None,
        }
    }

    /// Returns the share of the control's gain to reach.
    #[must_use]
    pub const fn goal(self) -> Option<f64> {
        match self {
            Self::Disjoint => Some(0.95),
            Self::SharedSpace | Self::SharedTable | Self::Alternate => Some(0.75),
            Self::HotFrame => None,
        }
    }
}

/// How large a load is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// The workers, a power of two.
    pub workers: u64,
    /// Pages that each touches in one measurement, a multiple of 512.
    pub pages: u64,
}

impl Size {
    /// Frames of one worker's area: a region for tables, and its data.
    const fn area(self) -> u64 {
        REGION + self.pages
    }

    /// Returns how many guest frames there have to be.
    #[must_use]
    pub const fn frames(self) -> u64 {
        self.area() * self.workers
    }

    /// Returns how many tables the library may need: the guest's, in every role.
    #[must_use]
    pub const fn tables(self) -> usize {
        ((self.pages / REGION + 16) * self.workers * 2) as usize
    }

    const fn data(self, worker: u64) -> u64 {
        worker * self.area() + REGION
    }

    /// Returns page and frame number `at` of all: neighbours in the tables are neighbours in memory.
    const fn anywhere(self, at: u64) -> (u64, u64) {
        (at, self.data(at / self.pages) + at % self.pages)
    }
}

/// A load laid out in guest memory.
#[derive(Debug)]
pub struct Layout {
    load: Load,
    size: Size,
    roots: Vec<Gfn>,
}

impl Layout {
    /// Writes the guest's tables.
    #[must_use]
    pub fn new(memory: &Memory, load: Load, size: Size) -> Self {
        let mut layout = Self {
            load,
            size,
            roots: Vec::new(),
        };
        let mut shared = None;
        for worker in 0..size.workers {
            let mut own = Tables::from(memory, Gfn::new(worker * size.area()));
            let is_shared = !matches!(load, Load::Disjoint | Load::HotFrame);
            let tables = if is_shared {
                shared.get_or_insert(own)
            } else {
                &mut own
            };
            let root = match layout.roots.first() {
                Some(first) if is_shared => *first,
                _ => tables.take(),
            };
            for page in 0..size.pages {
                let (gva, gfn) = layout.own_page(worker, page);
                tables.map(root, gva, gfn);
            }
            for page in 0..layout.pages() {
                let (gva, gfn) = layout.page(worker, page);
                tables.map(root, gva, gfn);
            }
            layout.roots.push(root);
        }
        layout
    }

    /// Returns the load.
    #[must_use]
    pub const fn load(&self) -> Load {
        self.load
    }

    /// Returns the load's size.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Returns a worker's root.
    #[must_use]
    pub fn root(&self, worker: u64) -> Gfn {
        self.roots[worker as usize]
    }

    /// Returns how many pages a worker touches in one pass.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.size.pages / self.load.passes()
    }

    /// Returns the frames of a worker's area that are taken away before pages are touched again: the first, and how many.
    #[must_use]
    pub const fn taken(&self, worker: u64) -> (Gfn, u64) {
        match self.load {
            Load::HotFrame => (Gfn::new(self.size.data(0)), 1),
            _ => (Gfn::new(self.size.data(worker)), self.size.pages),
        }
    }

    /// Returns the address and the frame of a page that a worker touches.
    #[inline]
    #[must_use]
    pub const fn page(&self, worker: u64, page: u64) -> (Gva, Gfn) {
        match self.load {
            Load::HotFrame => (
                Gva::new(HOT_BASE + page * 4096),
                Gfn::new(self.size.data(0)),
            ),
            _ => self.own_page(worker, page),
        }
    }

    /// Returns the address and the frame of a page of a worker's own.
    #[inline]
    #[must_use]
    pub const fn own_page(&self, worker: u64, page: u64) -> (Gva, Gfn) {
        let size = self.size;
        let own = size.data(worker) + page;
        let (at, gfn) = match self.load {
            Load::Disjoint | Load::HotFrame => (page, own),
            Load::SharedSpace => (worker * size.pages + page, own),
            Load::SharedTable => {
                let share = REGION / size.workers;
                size.anywhere(page / share * REGION + worker * share + page % share)
            }
            Load::Alternate => size.anywhere(page * size.workers + worker),
        };
        (Gva::new(BASE + at * 4096), Gfn::new(gfn))
    }
}
