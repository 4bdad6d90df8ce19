//! One walk of the paging structures, an entry at a time and without reading memory itself.
//!
//! Key types: [`Walk`], which says which entry it needs ([`Walk::needs`]) and is fed its value
//! ([`Walk::feed`]); [`Path`], the entries used so far. `translate`, `allowed` and `npt` drive it. As
//! a walk is a value, a suspended one is just what an entry of a paging-structure cache holds (SDM
//! section 4.10.3).
//!
//! Invariants
//! 1. A walk uses each entry's value once, top down.
//! 2. The path holds the present, valid entries used; the one that stopped the walk is not in it.

use crate::format::{self, Entry, Level, PageSize};
use crate::{Controls, Cr3, Linear, Mode, Pdptes, Physical, Rights, Width};

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Its address.
    pub at: Physical,
    /// Its size.
    pub width: Width,
    /// The level of the table it lies in.
    pub level: Level,
}

/// An entry that a walk used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Where it lies.
    pub slot: Slot,
    /// The value that was used.
    pub value: u64,
}

/// The entries that a walk used, from the top down; entries from PDPTE registers are not in memory and not here.
#[derive(Clone, Copy)]
pub struct Path {
    steps: [Step; Self::MAX],
    len: usize,
}

impl Path {
    /// The longest path: five levels.
    pub const MAX: usize = 5;

    pub(crate) const fn new() -> Self {
        const UNUSED: Step = Step {
            slot: Slot {
                at: Physical::new(0),
                width: Width::Eight,
                level: Level::PageTable,
            },
            value: 0,
        };
        Self {
            steps: [UNUSED; Self::MAX],
            len: 0,
        }
    }

    /// Returns the entries.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        self.steps.get(..self.len).unwrap_or(&[])
    }

    /// Returns the entry used last: after a completed walk, the one that maps the page.
    #[must_use]
    pub fn last(&self) -> Option<Step> {
        self.steps().last().copied()
    }

    fn push(&mut self, step: Step) {
        if let Some(place) = self.steps.get_mut(self.len) {
            *place = step;
            self.len += 1;
        }
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.steps() == other.steps()
    }
}

impl Eq for Path {}

impl core::fmt::Debug for Path {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.steps()).finish()
    }
}

/// A completed walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The physical address that the linear address translates to.
    pub physical: Physical,
    /// The size of the page; `None` while paging is off.
    pub size: Option<PageSize>,
    /// The combined rights.
    pub rights: Rights,
    /// Whether a TLB may keep it over a CR3 load (SDM section 4.10.2.4).
    pub scope: Scope,
    /// The entries used.
    pub path: Path,
}

/// How long a TLB may keep a translation (SDM section 4.10.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Until the address space is left.
    AddressSpace,
    /// G = 1 in the entry that maps the page, and CR4.PGE = 1: over CR3 loads too.
    Global,
}

/// Why there is no translation (SDM section 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// P = 0.
    NotPresent,
    /// The given reserved bits are 1 in a present entry.
    Reserved(u64),
}

/// What a walk does after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It needs the next entry.
    More,
    /// It is complete.
    Done(Mapping),
    /// It cannot be completed.
    Stopped(Stop),
}

/// A walk under way.
#[derive(Clone, Debug)]
pub struct Walk<'c> {
    controls: &'c Controls,
    address: u64,
    level: Level,
    table: Physical,
    rights: Rights,
    path: Path,
}

/// A walk at its start.
#[derive(Clone, Debug)]
pub enum Start<'c> {
    /// The walk needs entries from memory.
    Walk(Walk<'c>),
    /// Paging is off: nothing to walk (SDM section 4.1.1).
    Done(Mapping),
    /// The address is not canonical (SDM section 4.5, APM section 5.3.1).
    NonCanonical,
    /// A PDPTE register stops the walk.
    Stopped(Stop),
}

impl<'c> Walk<'c> {
    /// Starts the translation of a linear address.
    ///
    /// Outside IA-32e mode linear addresses have 32 bits (SDM section 3.3), so the upper half is ignored. In
    /// compatibility mode the caller passes the zero-extended address.
    #[must_use]
    pub fn start(controls: &'c Controls, root: Cr3, linear: Linear) -> Start<'c> {
        let low = linear.get() & u64::from(u32::MAX);
        match controls.mode() {
            Mode::Off => Start::Done(unpaged(low)),
            Mode::Bits32 => Start::Walk(Self::at_root(controls, root, low)),
            Mode::Pae => Self::start_pae(controls, root, low),
            Mode::FourLevel if !is_canonical(linear, 48) => Start::NonCanonical,
            Mode::FiveLevel if !is_canonical(linear, 57) => Start::NonCanonical,
            Mode::FourLevel | Mode::FiveLevel => {
                Start::Walk(Self::at_root(controls, root, linear.get()))
            }
        }
    }

    /// Starts at the table that CR3 points at, whatever the upper bits of the address.
    pub(crate) fn at_root(controls: &'c Controls, root: Cr3, address: u64) -> Self {
        Self {
            controls,
            address,
            level: format::top_level(controls.mode()),
            table: format::root_table(controls, root),
            rights: Rights::FULL,
            path: Path::new(),
        }
    }

    /// SDM section 4.4.2: bits 31:30 select a PDPTE register. MOV to CR3 refused reserved bits, but the
    /// caller's registers are its claim only, so they are checked as an entry in memory is.
    fn start_pae(controls: &'c Controls, root: Cr3, address: u64) -> Start<'c> {
        let mut walk = Self::at_root(controls, root, address);
        let Pdptes::Registers([pdpte0, pdpte1, pdpte2, pdpte3]) = controls.pdptes() else {
            return Start::Walk(walk);
        };
        let pdpte = match format::index(Mode::Pae, walk.level, address) {
            0 => pdpte0,
            1 => pdpte1,
            2 => pdpte2,
            _ => pdpte3,
        };
        match format::decode(controls, walk.level, pdpte) {
            Entry::NotPresent => Start::Stopped(Stop::NotPresent),
            Entry::Reserved(bits) => Start::Stopped(Stop::Reserved(bits)),
            Entry::Table(table, _) | Entry::Page(format::Page { base: table, .. }, _) => {
                walk.descend(table);
                Start::Walk(walk)
            }
        }
    }

    /// Returns the entry that the walk needs next.
    #[must_use]
    pub fn needs(&self) -> Slot {
        let mode = self.controls.mode();
        let width = format::width(mode);
        let index = format::index(mode, self.level, self.address);
        Slot {
            at: Physical::new(self.table.get() + index * width.bytes()),
            width,
            level: self.level,
        }
    }

    /// Returns the valid entries used so far.
    #[must_use]
    pub const fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the control state that the walk was started with.
    #[must_use]
    pub const fn controls(&self) -> &'c Controls {
        self.controls
    }

    /// Goes on with the value of the entry that [`needs`](Self::needs) named.
    pub fn feed(&mut self, value: u64) -> Progress {
        match format::decode(self.controls, self.level, value) {
            Entry::NotPresent => Progress::Stopped(Stop::NotPresent),
            Entry::Reserved(bits) => Progress::Stopped(Stop::Reserved(bits)),
            Entry::Table(table, rights) => {
                self.use_entry(value, rights);
                self.descend(table);
                Progress::More
            }
            Entry::Page(page, rights) => {
                self.use_entry(value, rights);
                self.rights.set_key(page.key);
                Progress::Done(self.complete(page))
            }
        }
    }

    fn use_entry(&mut self, value: u64, rights: format::EntryRights) {
        let slot = self.needs();
        self.path.push(Step { slot, value });
        self.rights.narrow(rights);
    }

    fn descend(&mut self, table: Physical) {
        self.table = table;
        self.level = self.level.below();
    }

    fn complete(&self, page: format::Page) -> Mapping {
        let offset = self.address & (page.size.bytes() - 1);
        Mapping {
            physical: Physical::new(page.base.get() | offset),
            size: Some(page.size),
            rights: self.rights,
            scope: if page.global {
                Scope::Global
            } else {
                Scope::AddressSpace
            },
            path: self.path,
        }
    }
}

/// SDM section 4.1.1: with CR0.PG = 0 linear addresses are physical addresses.
fn unpaged(address: u64) -> Mapping {
    Mapping {
        physical: Physical::new(address),
        size: None,
        rights: Rights::FULL,
        scope: Scope::AddressSpace,
        path: Path::new(),
    }
}

/// Says whether all bits from `width - 1` up are equal (SDM vol. 1 section 3.3.7.1).
fn is_canonical(linear: Linear, width: u32) -> bool {
    let upper = linear.get() as i64 >> (width - 1);
    upper == 0 || upper == -1
}
