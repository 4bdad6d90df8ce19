//! Table formats: where an address's entry is, and what an entry says.
//!
//! Key types: [`Format`], [`Limits`], [`Step`]. [`crate::walk`] drives it; nothing here touches
//! memory.
//!
//! Invariants:
//! 1. [`Format::decode`] looks at one entry alone; rights of the levels above are the walker's.
//! 2. A reserved bit is reported before a right or an address is.

use crate::access::Rights;
use crate::addr::{Level, PageSize};
use crate::regs::{Features, Model, NestedFlags};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A format of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit paging: two levels of 4-byte entries, 4 MiB pages (APM vol. 2, 5.2.1).
    Bits32,
    /// PAE paging: four PDPTEs and two levels of 8-byte entries (APM vol. 2, 5.2.2).
    Pae,
    /// 4-level paging of long mode (APM vol. 2, 5.3).
    Long4,
    /// 5-level paging of long mode.
    Long5,
    /// Nested tables of SVM: 4-level paging where all accesses are user accesses (APM 15.25).
    Npt4,
    /// Nested tables of SVM, five levels.
    Npt5,
    /// Extended page tables of VMX (Intel SDM vol. 3, 29.3).
    Ept4,
    /// Extended page tables of VMX, five levels.
    Ept5,
}

/// What decides which bits of an entry are reserved, and which count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Limits {
    pub(crate) model: Model,
    /// Bit 63 denies execution; reserved otherwise.
    pub(crate) nxe: bool,
    /// 32-bit paging has 4 MiB pages; the bit is ignored otherwise.
    pub(crate) pse: bool,
    /// EPT entries have A and D.
    pub(crate) ept_ad: bool,
}

impl Limits {
    pub(crate) fn nested(model: Model, flags: NestedFlags) -> Self {
        Self {
            model,
            nxe: flags.contains(NestedFlags::NXE),
            pse: false,
            ept_ad: flags.contains(NestedFlags::ACCESSED_DIRTY),
        }
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    NotPresent,
    /// A reserved bit is set, or an EPT entry is misconfigured.
    Reserved,
    /// The next table is at this address.
    Table(u64),
    /// The page starts at this address.
    Page(u64, PageSize),
}

/// The masks of the accessed and the dirty bit; 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusBits {
    pub(crate) accessed: u64,
    pub(crate) dirty: u64,
}

impl Format {
    /// Returns the level of the root table.
    #[must_use]
    #[inline]
    pub const fn top(self) -> Level {
        match self {
            Self::Bits32 => Level::L2,
            Self::Pae => Level::L3,
            Self::Long4 | Self::Npt4 | Self::Ept4 => Level::L4,
            Self::Long5 | Self::Npt5 | Self::Ept5 => Level::L5,
        }
    }

    /// Says whether this is the format of nested tables.
    #[must_use]
    #[inline]
    pub const fn is_nested(self) -> bool {
        matches!(self, Self::Npt4 | Self::Npt5) || self.is_ept()
    }

    /// Says whether this is one of the two EPT formats.
    #[must_use]
    #[inline]
    pub const fn is_ept(self) -> bool {
        matches!(self, Self::Ept4 | Self::Ept5)
    }

    /// Returns the number of bytes of an entry.
    #[must_use]
    #[inline]
    pub const fn entry_bytes(self) -> u64 {
        if matches!(self, Self::Bits32) { 4 } else { 8 }
    }

    /// Returns the number of address bits that an entry of `level` covers.
    #[must_use]
    #[inline]
    pub const fn shift(self, level: Level) -> u32 {
        let per_level = if matches!(self, Self::Bits32) { 10 } else { 9 };
        12 + per_level * (level.get() as u32 - 1)
    }

    /// Returns the offset, in its table, of the entry of `level` for `address`.
    #[must_use]
    #[inline]
    pub const fn entry_offset(self, level: Level, address: u64) -> u64 {
        let index = address >> self.shift(level);
        match self {
            Self::Bits32 => (index & 0x3ff) * 4,
            Self::Pae if level.get() == 3 => (index & 3) * 8,
            _ => (index & 0x1ff) * 8,
        }
    }

    /// Returns the address of the root table in a CR3, nCR3 or EPTP.
    #[inline]
    pub(crate) const fn root_address(self, raw: u64) -> u64 {
        match self {
            Self::Bits32 => raw & 0xffff_f000,
            Self::Pae => raw & 0xffff_ffe0,
            _ => raw & ADDRESS,
        }
    }

    /// Returns where the entries of `level` have their accessed and dirty bits.
    #[inline]
    pub(crate) const fn status_bits(self, level: Level, limits: &Limits) -> StatusBits {
        if self.is_ept() {
            let on = limits.ept_ad as u64;
            StatusBits {
                accessed: on << 8,
                dirty: on << 9,
            }
        } else if matches!(self, Self::Pae) && level.get() == 3 {
            // PDPTEs have neither (Intel SDM vol. 3, table 4-8).
            StatusBits {
                accessed: 0,
                dirty: 0,
            }
        } else {
            StatusBits {
                accessed: ACCESSED,
                dirty: DIRTY,
            }
        }
    }

    /// Returns what an entry allows by itself.
    #[inline]
    pub(crate) fn rights(self, entry: u64, level: Level) -> Rights {
        if self.is_ept() {
            // Bits 0 to 2 are read, write and execute, as in [`Rights`].
            return Rights::from_bits_truncate((entry & 7) as u8) | Rights::USER;
        }
        if self == Self::Pae && level == Level::L3 {
            return Rights::all();
        }
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, entry & WRITABLE != 0);
        rights.set(Rights::USER, entry & USER != 0);
        // With NXE clear, bit 63 is reserved and the walk never comes here.
        rights.set(Rights::EXECUTE, entry & NO_EXECUTE == 0);
        rights
    }

    /// Returns the protection key of a leaf (long mode only; elsewhere the bits mean nothing).
    #[inline]
    pub(crate) const fn key(self, entry: u64) -> u8 {
        match self {
            Self::Long4 | Self::Long5 => (entry >> 59 & 15) as u8,
            _ => 0,
        }
    }

    /// Says whether a leaf is global.
    #[inline]
    pub(crate) const fn global(self, entry: u64) -> bool {
        !self.is_nested() && entry & GLOBAL != 0
    }

    /// Decodes one entry.
    #[inline]
    pub(crate) fn decode(self, entry: u64, level: Level, limits: &Limits) -> Step {
        match self {
            Self::Bits32 => decode_32(entry, level, limits),
            Self::Pae if level == Level::L3 => decode_pdpte(entry, limits),
            Self::Ept4 | Self::Ept5 => decode_ept(entry, level, limits),
            _ => decode_64(self, entry, level, limits),
        }
    }
}

/// Returns the bits of an address field that lie at or above MAXPHYADDR.
#[inline]
fn beyond(limits: &Limits) -> u64 {
    ADDRESS & !((1 << limits.model.phys_bits) - 1)
}

/// 4-byte entries (Intel SDM vol. 3, tables 4-3 to 4-6).
fn decode_32(entry: u64, level: Level, limits: &Limits) -> Step {
    if entry & PRESENT == 0 {
        return Step::NotPresent;
    }
    if level == Level::L1 {
        return Step::Page(entry & 0xffff_f000, PageSize::Size4K);
    }
    if entry & LARGE == 0 || !limits.pse {
        return Step::Table(entry & 0xffff_f000);
    }
    // PSE-36: bits 20:13 are address bits 39:32, as far as MAXPHYADDR goes; bit 21 is reserved.
    let base = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
    if entry & 1 << 21 != 0 || base & beyond(limits) != 0 {
        return Step::Reserved;
    }
    Step::Page(base, PageSize::Size4M)
}

/// PDPTEs of PAE (Intel SDM vol. 3, table 4-8).
fn decode_pdpte(entry: u64, limits: &Limits) -> Step {
    if entry & PRESENT == 0 {
        return Step::NotPresent;
    }
    if entry & (0xfff0_0000_0000_01e6 | beyond(limits)) != 0 {
        return Step::Reserved;
    }
    Step::Table(entry & ADDRESS)
}

/// 8-byte entries of PAE, long mode and NPT (Intel SDM vol. 3, tables 4-9 to 4-20; APM vol. 2,
/// 5.2.2, 5.3.3 and 5.3.4).
#[inline]
fn decode_64(format: Format, entry: u64, level: Level, limits: &Limits) -> Step {
    if entry & PRESENT == 0 {
        return Step::NotPresent;
    }
    let mut reserved = beyond(limits);
    if !limits.nxe {
        reserved |= NO_EXECUTE;
    }
    if format == Format::Pae {
        reserved |= 0x7ff << 52;
    }
    let large = entry & LARGE != 0;
    let bit8 = limits
        .model
        .features
        .contains(Features::UPPER_BIT8_RESERVED);
    if bit8 && level >= Level::L3 && format != Format::Pae && !large {
        reserved |= GLOBAL;
    }
    if level >= Level::L4 {
        reserved |= LARGE;
    } else if large && level == Level::L3 {
        let has = limits.model.features.contains(Features::GB_PAGES);
        reserved |= if has { 0x3fff_e000 } else { LARGE };
    } else if large && level == Level::L2 {
        reserved |= 0x1f_e000;
    }
    if entry & reserved != 0 {
        return Step::Reserved;
    }
    leaf_or_table(entry, level, large)
}

/// EPT entries (Intel SDM vol. 3, tables 29-1 to 29-7, and 29.3.3.1 for misconfigurations).
fn decode_ept(entry: u64, level: Level, limits: &Limits) -> Step {
    let (read, write, execute) = (entry & 1 != 0, entry & 2 != 0, entry & 4 != 0);
    if !(read || write || execute) {
        return Step::NotPresent;
    }
    let execute_only_ok = limits.model.features.contains(Features::EPT_EXECUTE_ONLY);
    let bad_rights = !read && (write || !execute_only_ok);
    let large = entry & LARGE != 0;
    let leaf = level == Level::L1 || (large && level <= Level::L3);
    let mut reserved = beyond(limits);
    if level >= Level::L4 {
        reserved |= 0xf8;
    } else if !leaf {
        reserved |= 0x78;
    } else if level == Level::L3 {
        let has = limits.model.features.contains(Features::GB_PAGES);
        reserved |= if has { 0x3fff_f000 } else { LARGE };
    } else if level == Level::L2 {
        reserved |= 0x1f_f000;
    }
    let memory_type = entry >> 3 & 7;
    let bad_type = leaf && matches!(memory_type, 2 | 3 | 7);
    if bad_rights || bad_type || entry & reserved != 0 {
        return Step::Reserved;
    }
    leaf_or_table(entry, level, large)
}

#[inline]
fn leaf_or_table(entry: u64, level: Level, large: bool) -> Step {
    match (level, large) {
        (Level::L1, _) => Step::Page(entry & ADDRESS, PageSize::Size4K),
        (Level::L2, true) => Step::Page(entry & ADDRESS & !0x1f_ffff, PageSize::Size2M),
        (Level::L3, true) => Step::Page(entry & ADDRESS & !0x3fff_ffff, PageSize::Size1G),
        _ => Step::Table(entry & ADDRESS),
    }
}
