//! What a walk saw and where it ended.
//!
//! [`Walk`] keeps the entry of each level as it was read. Where an entry was and what the entries above it allowed follow from these
//! copies and are worked out on demand, as a [`GpteRecord`]; so a walk costs one store a level. The shadow engine takes roles, links
//! and the leaf from here and never looks at guest memory again for them.
//!
//! Invariants:
//! 1. [`Walk::record`] answers only for levels whose entry this walk read.
//! 2. A walk that ended well has [`Walk::gfn`] inside the page at [`Walk::base`].

use super::format::GuestFormat;
use super::gpte::{CacheBits, Gpte, Through};
use super::permission::Rights;
use crate::addr::{Gfn, Gpa, Gva, Level, PAGE_SHIFT};
use crate::paging::ProtectionKey;

/// One entry that a walk read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpteRecord {
    /// The entry's level.
    pub level: Level,
    /// The entry's address. A page-directory pointer of PAE paging taken from its register says where it was loaded from.
    pub at: Gpa,
    /// The entry as it was read, with the A and D bits that the walk has stored since.
    pub gpte: Gpte,
    /// What the entries above this one allow, itself not counted: the inherited access in the role of the table's shadow.
    pub inherited: Rights,
}

impl GpteRecord {
    /// Returns the frame of the table that the entry is in.
    #[inline]
    pub const fn table(&self) -> Gfn {
        Gfn::containing(self.at)
    }
}

/// A walk's course and, if it ended well, its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk {
    pub(super) gva: Gva,
    pub(super) root: Gpa,
    pub(super) gptes: [Gpte; 5],
    pub(super) gfn: Gfn,
    pub(super) format: GuestFormat,
    /// The lowest level whose entry was read; the leaf's if the walk ended well.
    pub(super) reached: Option<Level>,
    pub(super) rights: Rights,
    /// The access was a write whose D bit could not be stored.
    pub(super) undirtied: bool,
    /// The walk found the leaf's A bit clear, and stored it.
    pub(super) first_use: bool,
}

/// What stands for the leaf without paging.
const UNTRANSLATED: Gpte = Gpte::PRESENT
    .with(Gpte::WRITABLE)
    .with(Gpte::USER)
    .with(Gpte::ACCESSED)
    .with(Gpte::DIRTY);

impl Walk {
    /// Makes a walk that has not begun.
    #[inline]
    pub const fn new() -> Self {
        Self {
            gva: Gva::new(0),
            root: Gpa::new(0),
            gptes: [Gpte::new(0); 5],
            gfn: Gfn::new(0),
            format: GuestFormat::Off,
            reached: None,
            rights: Rights::empty(),
            undirtied: false,
            first_use: false,
        }
    }
    /// Begins a walk of `linear` from `root`.
    #[inline]
    pub(super) const fn begin(&mut self, format: GuestFormat, linear: u64, root: Gpa) {
        self.gva = Gva::new(linear);
        self.root = root;
        self.format = format;
        self.reached = None;
        self.rights = Rights::empty();
        self.undirtied = false;
        self.first_use = false;
    }
    /// Fills in the result of a walk without paging (AMD APM vol. 2, section 5.1).
    pub(super) const fn pass_through(&mut self, linear: u64) {
        self.begin(GuestFormat::Off, linear, Gpa::new(0));
        self.gfn = Gfn::new(linear >> PAGE_SHIFT);
        self.rights = Rights::all();
    }

    /// Tells whether the page had not been used before, by the accessed bit of its leaf.
    #[inline]
    pub const fn is_first_use(&self) -> bool {
        self.first_use
    }
    /// Returns the address that was walked; outside long mode its low 32 bits count.
    #[inline]
    pub const fn gva(&self) -> Gva {
        self.gva
    }
    /// Returns the format of the tables.
    #[inline]
    pub const fn format(&self) -> GuestFormat {
        self.format
    }
    /// Returns the record of `level` if the walk read an entry there.
    #[inline]
    pub fn record(&self, level: Level) -> Option<GpteRecord> {
        let top = *self.format.levels().first()?;
        if level > top || level < self.reached? {
            return None;
        }
        let mut through = Through::NOTHING;
        let mut table = self.root;
        for &above in self.format.levels() {
            let gpte = self.gptes[above as usize - 1];
            if above == level {
                let at = table.wrapping_add(self.format.entry_offset(level, self.gva.get()));
                return Some(GpteRecord {
                    level,
                    at,
                    gpte,
                    inherited: through.rights(),
                });
            }
            if self.format.has_rights(above) {
                through = through.pass(gpte);
            }
            table = gpte.frame().address();
        }
        None
    }
    /// Returns the entry of `level` if the walk read one there.
    #[inline]
    pub(crate) fn entry(&self, level: Level) -> Option<Gpte> {
        let is_read = level <= self.format.top()? && level >= self.reached?;
        is_read.then(|| self.gptes[level as usize - 1])
    }
    /// Returns the records of the levels whose entry was read, from the root down. Empty without paging.
    #[inline]
    pub fn records(&self) -> impl Iterator<Item = GpteRecord> {
        self.format
            .levels()
            .iter()
            .map_while(|&level| self.record(level))
    }
    /// Returns the frame of the 4 KiB page that the address lies in.
    #[inline]
    pub const fn gfn(&self) -> Gfn {
        self.gfn
    }
    /// Returns the guest physical address that the walked address translates to.
    #[inline]
    pub const fn gpa(&self) -> Gpa {
        self.gfn.address().wrapping_add(self.gva.page_offset())
    }
    /// Returns the first frame of the guest's page; without paging, of its 1 GiB block.
    #[inline]
    pub const fn base(&self) -> Gfn {
        match self.reached {
            Some(level) => self.format.leaf_base(level, self.leaf()),
            None => self.gfn.align_down(Level::L3),
        }
    }
    /// Returns the level of the entry that maps the page.
    ///
    /// Around the address, guest virtual and guest physical memory run in parallel for at least a block of this level. The 4 MiB
    /// page of 32-bit paging is at level 2 and twice as large; without paging the answer is level 3.
    #[inline]
    pub const fn leaf_level(&self) -> Level {
        match self.reached {
            Some(level) => level,
            None => Level::L3,
        }
    }
    /// Returns the entry that maps the page, with the A and D bits that this walk has stored; all rights, A and D without paging.
    #[inline]
    pub const fn leaf(&self) -> Gpte {
        match self.reached {
            Some(level) => self.gptes[level as usize - 1],
            None => UNTRANSLATED,
        }
    }
    /// Returns what all entries together allow.
    #[inline]
    pub const fn rights(&self) -> Rights {
        self.rights
    }
    /// Tells whether the guest knows the page to be dirty, so that a writable mapping hides nothing from it.
    ///
    /// Also true after a write whose D bit could not be stored because the table is in read-only memory: there is nothing that a
    /// later fault could record.
    #[inline]
    pub const fn is_dirty(&self) -> bool {
        self.undirtied || self.leaf().has(Gpte::DIRTY)
    }
    /// Tells whether the leaf's G bit is set; it counts only while CR4.PGE is set.
    #[inline]
    pub const fn is_global(&self) -> bool {
        self.leaf().has(Gpte::GLOBAL)
    }
    /// Returns the leaf's protection key, 0 outside long mode.
    #[inline]
    pub const fn protection_key(&self) -> ProtectionKey {
        if self.format.is_long() {
            self.leaf().protection_key()
        } else {
            ProtectionKey::truncate(0)
        }
    }
    /// Returns the leaf's memory-type bits.
    #[inline]
    pub const fn cache_bits(&self) -> CacheBits {
        match self.leaf_level() {
            Level::L1 => self.leaf().cache_bits_4k(),
            _ => self.leaf().cache_bits_large(),
        }
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}
