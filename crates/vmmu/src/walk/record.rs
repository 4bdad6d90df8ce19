//! What a walk saw and where it ended.
//!
//! [`Walk`] keeps, for each level, the entry as it was read and what the entries above it allowed ([`GpteRecord`]). The shadow
//! engine takes roles, links and the leaf from these copies and never looks at guest memory again for them.
//!
//! Invariants:
//! 1. [`Walk::record`] answers only for levels whose entry this walk read.
//! 2. A walk that ended well has [`Walk::gfn`] inside the page at [`Walk::base`].

use super::format::GuestFormat;
use super::gpte::{CacheBits, Gpte, Through};
use super::permission::Rights;
use crate::addr::{Gfn, Gpa, Gva, Level};
use crate::paging::ProtectionKey;

/// One entry that a walk read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpteRecord {
    pub(super) at: Gpa,
    pub(super) gpte: Gpte,
    pub(super) above: Through,
}

impl GpteRecord {
    pub(super) const NONE: Self = Self { at: Gpa::new(0), gpte: Gpte::new(0), above: Through::ALL };

    /// Returns the entry's address. A page-directory pointer of PAE paging taken from its register says where it was loaded from.
    #[inline]
    pub const fn at(&self) -> Gpa {
        self.at
    }
    /// Returns the frame of the table that the entry is in.
    #[inline]
    pub const fn table(&self) -> Gfn {
        Gfn::containing(self.at)
    }
    /// Returns the entry as it was read, with the A and D bits that this walk has stored since.
    #[inline]
    pub const fn gpte(&self) -> Gpte {
        self.gpte
    }
    /// Returns what the entries above this one allow, itself not counted: the inherited access in the role of the table's shadow.
    #[inline]
    pub const fn inherited(&self) -> Rights {
        self.above.rights()
    }
}

/// A walk's course and, if it ended well, its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk {
    pub(super) gva: Gva,
    pub(super) format: GuestFormat,
    pub(super) reached: Option<Level>,
    pub(super) records: [GpteRecord; 5],
    pub(super) through: Through,
    pub(super) leaf: Gpte,
    pub(super) leaf_level: Level,
    pub(super) gfn: Gfn,
    pub(super) base: Gfn,
    pub(super) dirty: bool,
}

impl Walk {
    /// Makes a walk that has not begun.
    #[inline]
    pub const fn new() -> Self {
        Self {
            gva: Gva::new(0),
            format: GuestFormat::Off,
            reached: None,
            records: [GpteRecord::NONE; 5],
            through: Through::ALL,
            leaf: Gpte::new(0),
            leaf_level: Level::L1,
            gfn: Gfn::new(0),
            base: Gfn::new(0),
            dirty: false,
        }
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
    pub fn record(&self, level: Level) -> Option<&GpteRecord> {
        let top = *self.format.levels().first()?;
        let reached = self.reached?;
        if level <= top && level >= reached { Some(&self.records[level as usize - 1]) } else { None }
    }
    /// Returns the records of the levels whose entry was read, from the root down. Empty without paging.
    pub fn records(&self) -> impl Iterator<Item = (Level, &GpteRecord)> {
        self.format.levels().iter().filter_map(|&level| Some((level, self.record(level)?)))
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
    /// Returns the first frame of the guest's page.
    #[inline]
    pub const fn base(&self) -> Gfn {
        self.base
    }
    /// Returns the level of the entry that maps the page.
    ///
    /// Around the address, guest virtual and guest physical memory run in parallel for at least a block of this level. The 4 MiB
    /// page of 32-bit paging is at level 2 and twice as large; without paging the answer is level 3.
    #[inline]
    pub const fn leaf_level(&self) -> Level {
        self.leaf_level
    }
    /// Returns the entry that maps the page, with the A and D bits that this walk has stored; all rights, A and D without paging.
    #[inline]
    pub const fn leaf(&self) -> Gpte {
        self.leaf
    }
    /// Returns what all entries together allow.
    #[inline]
    pub const fn rights(&self) -> Rights {
        self.through.rights()
    }
    /// Tells whether the guest knows the page to be dirty, so that a writable mapping hides nothing from it.
    ///
    /// Also true after a write whose D bit could not be stored because the table is in read-only memory: there is nothing that a
    /// later fault could record.
    #[inline]
    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }
    /// Tells whether the leaf's G bit is set; it counts only while CR4.PGE is set.
    #[inline]
    pub const fn is_global(&self) -> bool {
        self.leaf.has(Gpte::GLOBAL)
    }
    /// Returns the leaf's protection key, 0 outside long mode.
    #[inline]
    pub const fn protection_key(&self) -> ProtectionKey {
        if self.format.is_long() { self.leaf.protection_key() } else { ProtectionKey::truncate(0) }
    }
    /// Returns the leaf's memory-type bits.
    #[inline]
    pub const fn cache_bits(&self) -> CacheBits {
        match self.leaf_level {
            Level::L1 => self.leaf.cache_bits_4k(),
            _ => self.leaf.cache_bits_large(),
        }
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}
