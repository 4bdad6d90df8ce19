//! The meaning of an entry's bits at each level of a mode.
//!
//! [`Decoder`] holds, for each level, the bits that must be clear and the bit that makes the entry a leaf. The walk uses it; so does
//! whoever looks at single entries without walking, as sync and prefetch do.
//!
//! Invariants:
//! 1. An [`Entry`] has a frame only if it is present and has no reserved bit set.
//! 2. A decoder depends on a [`PagingMode`]'s format, NX, PSE and model; never on WP, SMEP, SMAP or PKE.

use super::format::GuestFormat;
use super::gpte::{CacheBits, Gpte};
use super::permission::Rights;
use crate::addr::{Gfn, Level};
use crate::paging::{CpuFeatures, PagingMode, PagingRules, Pdptes, ProtectionKey};

/// What an entry means at its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// P is clear; the other bits are the guest's own.
    NotPresent,
    /// P is set and so is a reserved bit.
    Reserved,
    /// The entry points at a table of the level below.
    Table(TableEntry),
    /// The entry maps a page.
    Leaf(LeafEntry),
}

/// An entry that points at a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableEntry {
    /// The table's frame.
    pub gfn: Gfn,
    /// What the way to the table allows, this entry included.
    pub rights: Rights,
    /// The entry itself.
    pub gpte: Gpte,
}

/// An entry that maps a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafEntry {
    /// The page's first frame.
    pub base: Gfn,
    /// The level of the entry; at level 2 of 32-bit paging the page is 4 MiB.
    pub level: Level,
    /// What the way to the page allows, this entry included.
    pub rights: Rights,
    /// The entry itself.
    pub gpte: Gpte,
}

impl LeafEntry {
    /// Tells whether A is set: the guest's processor has used the mapping, so prefetching it shows the guest nothing new.
    #[inline]
    pub const fn is_accessed(self) -> bool {
        self.gpte.has(Gpte::ACCESSED)
    }
    /// Tells whether D is set: a writable mapping may be made without hiding the first write from the guest.
    #[inline]
    pub const fn is_dirty(self) -> bool {
        self.gpte.has(Gpte::DIRTY)
    }
    /// Tells whether G is set; it counts only while CR4.PGE is set.
    #[inline]
    pub const fn is_global(self) -> bool {
        self.gpte.has(Gpte::GLOBAL)
    }
    /// Returns the protection key, which means something in long mode only.
    #[inline]
    pub const fn protection_key(self) -> ProtectionKey {
        self.gpte.protection_key()
    }
    /// Returns the memory-type bits.
    #[inline]
    pub const fn cache_bits(self) -> CacheBits {
        match self.level {
            Level::L1 => self.gpte.cache_bits_4k(),
            _ => self.gpte.cache_bits_large(),
        }
    }
}

/// Where an entry leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Nowhere: it is not present or has a reserved bit set.
    Invalid,
    /// To a table of the level below.
    Table,
    /// To a page.
    Leaf,
}

/// The reading of entries in one mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoder {
    format: GuestFormat,
    /// By level and PS bit: P, and the bits that must be clear beside it.
    checked: [[u64; 2]; 5],
    /// By level: the bit that makes a valid entry a leaf. P itself at level 1, PS where there are large pages, else none.
    leaf: [u64; 5],
}

impl Decoder {
    /// Makes the decoder of a mode.
    pub const fn new(mode: PagingMode) -> Self {
        let mut decoder = Self {
            format: mode.format(),
            checked: [[Gpte::PRESENT.raw(); 2]; 5],
            leaf: [0; 5],
        };
        let levels = mode.format().levels();
        let mut i = 0;
        while i < levels.len() {
            let slot = slot(levels[i]);
            decoder.checked[slot][0] |= reserved_in_table(mode, levels[i]);
            decoder.checked[slot][1] |= reserved_in_leaf(mode, levels[i]);
            decoder.leaf[slot] = leaf_bit(mode, levels[i]);
            i += 1;
        }
        decoder
    }

    /// Returns the format of the entries.
    #[inline]
    pub const fn format(&self) -> GuestFormat {
        self.format
    }

    /// Returns the bits of `gpte`, an entry of `level`, that ought to be clear were it present and are not.
    #[inline]
    pub const fn reserved_bits(&self, level: Level, gpte: Gpte) -> Gpte {
        Gpte::new(gpte.raw() & self.checked[slot(level)][ps(gpte)]).without(Gpte::PRESENT)
    }

    /// Tells whether `gpte` is present at `level` without a reserved bit set: it translates or leads on.
    #[inline]
    pub const fn is_valid(&self, level: Level, gpte: Gpte) -> bool {
        gpte.raw() & self.checked[slot(level)][ps(gpte)] == Gpte::PRESENT.raw()
    }

    /// Tells whether `gpte`, valid at `level`, maps a page.
    #[inline]
    pub const fn is_leaf(&self, level: Level, gpte: Gpte) -> bool {
        gpte.raw() & self.leaf[slot(level)] != 0
    }

    /// Judges `gpte` as [`Decoder::is_valid`] and [`Decoder::is_leaf`] do, for a format known when the walk is compiled: which
    /// mask applies is branched on, not looked up.
    #[inline(always)]
    pub(super) const fn step_in(&self, format: GuestFormat, level: Level, gpte: Gpte) -> Step {
        let [table, leaf] = self.checked[slot(level)];
        if format.may_be_large(level) && gpte.has(Gpte::LARGE) {
            if gpte.raw() & leaf != Gpte::PRESENT.raw() {
                Step::Invalid
            } else if matches!(format, GuestFormat::Bits32) && !self.is_leaf(level, gpte) {
                Step::Table
            } else {
                // Elsewhere PS is reserved where it makes no leaf.
                Step::Leaf
            }
        } else if gpte.raw() & table != Gpte::PRESENT.raw() {
            Step::Invalid
        } else if matches!(level, Level::L1) {
            Step::Leaf
        } else {
            Step::Table
        }
    }

    /// Returns what `gpte` means at `level` below entries that allow `inherited`.
    #[inline(always)]
    pub const fn decode(&self, level: Level, gpte: Gpte, inherited: Rights) -> Entry {
        if !gpte.has(Gpte::PRESENT) {
            return Entry::NotPresent;
        }
        if !self.is_valid(level, gpte) {
            return Entry::Reserved;
        }
        let rights = if self.format.has_rights(level) {
            inherited.intersection(gpte.rights())
        } else {
            inherited
        };
        if self.is_leaf(level, gpte) {
            Entry::Leaf(LeafEntry {
                base: self.format.leaf_base(level, gpte),
                level,
                rights,
                gpte,
            })
        } else {
            Entry::Table(TableEntry {
                gfn: gpte.frame(),
                rights,
                gpte,
            })
        }
    }

    /// Tells whether loading `pdptes` into the page-directory-pointer registers is #GP: one of them is present and has a reserved
    /// bit set (Intel SDM vol. 3, section 4.4.1). Only for a decoder of PAE paging.
    pub fn refuses_pdptes(&self, pdptes: Pdptes) -> bool {
        pdptes
            .get()
            .into_iter()
            .map(Gpte::new)
            .any(|entry| entry.has(Gpte::PRESENT) && !self.is_valid(Level::L3, entry))
    }
}

/// Returns where a level's masks are.
#[inline]
const fn slot(level: Level) -> usize {
    level as usize - 1
}

/// Returns which mask of its level an entry is checked with.
#[inline]
const fn ps(gpte: Gpte) -> usize {
    (gpte.raw() >> 7 & 1) as usize
}

/// Returns the mask of bits `high`:`low`, none if `high` is below `low`.
const fn bits(high: u32, low: u32) -> u64 {
    if high < low {
        0
    } else {
        (!0 >> (63 - high)) & (!0 << low)
    }
}

/// Returns the bit that makes an entry a leaf.
const fn leaf_bit(mode: PagingMode, level: Level) -> u64 {
    let large = match (mode.format(), level) {
        (_, Level::L1) => return Gpte::PRESENT.raw(),
        (GuestFormat::Bits32, Level::L2) => mode.rules().contains(PagingRules::PSE),
        (_, Level::L2) => true,
        (GuestFormat::Level4 | GuestFormat::Level5, Level::L3) => {
            mode.cpu().features.contains(CpuFeatures::PAGES_1G)
        }
        _ => false,
    };
    if large { Gpte::LARGE.raw() } else { 0 }
}

/// Returns the address and NX bits that every 8-byte entry with rights must have clear (AMD APM vol. 2, sections 5.2.3 and 5.3).
const fn reserved_high(mode: PagingMode) -> u64 {
    let phys_bits = mode.cpu().phys_bits.get() as u32;
    let nx = if mode.rules().contains(PagingRules::NX) {
        0
    } else {
        Gpte::NO_EXECUTE.raw()
    };
    match mode.format() {
        GuestFormat::Off | GuestFormat::Bits32 => 0,
        GuestFormat::Pae => bits(62, phys_bits) | nx,
        GuestFormat::Level4 | GuestFormat::Level5 => bits(51, phys_bits) | nx,
    }
}

/// Returns the bits reserved while PS is clear (Intel SDM vol. 3, tables 4-5, 4-8, 4-10 and 4-14 to 4-20).
const fn reserved_in_table(mode: PagingMode, level: Level) -> u64 {
    let high = reserved_high(mode);
    match (mode.format(), level) {
        (GuestFormat::Off | GuestFormat::Bits32, _) => 0,
        (GuestFormat::Pae, Level::L3) => {
            bits(63, mode.cpu().phys_bits.get() as u32) | bits(8, 5) | bits(2, 1)
        }
        (_, Level::L1 | Level::L2) => high,
        (_, Level::L3) => high | upper_global(mode),
        (_, Level::L4 | Level::L5) => high | upper_global(mode) | Gpte::LARGE.raw(),
    }
}

/// Returns the bits reserved while PS is set; bit 7 of a level-1 entry is PAT and changes nothing.
const fn reserved_in_leaf(mode: PagingMode, level: Level) -> u64 {
    if leaf_bit(mode, level) != Gpte::LARGE.raw() {
        // No large page here: PS is ignored in 32-bit paging without PSE and reserved elsewhere.
        let ps = if matches!(level, Level::L1) || matches!(mode.format(), GuestFormat::Bits32) {
            0
        } else {
            Gpte::LARGE.raw()
        };
        return reserved_in_table(mode, level) | ps;
    }
    match (mode.format(), level) {
        (GuestFormat::Bits32, _) => bits(
            21,
            13 + pse36_bits(mode.cpu().phys_bits.get() as u32, mode.cpu().features),
        ),
        (_, Level::L3) => reserved_high(mode) | bits(29, 13),
        _ => reserved_high(mode) | bits(20, 13),
    }
}

/// Returns how many address bits above 31 a 4 MiB page has (Intel SDM vol. 3, table 4-4: M is the smaller of 40 and MAXPHYADDR).
const fn pse36_bits(phys_bits: u32, features: CpuFeatures) -> u32 {
    match features.contains(CpuFeatures::PSE36) {
        false => 0,
        true if phys_bits < 40 => phys_bits - 32,
        true => 8,
    }
}

/// Returns the G bit where the processor reserves it above the leaves.
const fn upper_global(mode: PagingMode) -> u64 {
    if mode
        .cpu()
        .features
        .contains(CpuFeatures::UPPER_GLOBAL_RESERVED)
    {
        Gpte::GLOBAL.raw()
    } else {
        0
    }
}
