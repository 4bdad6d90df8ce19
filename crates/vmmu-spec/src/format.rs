//! What each bit of a paging-structure entry means, by mode and level.
//!
//! Key types: [`Level`], [`PageSize`] and the decoded [`Entry`]. `walk` is the only user.
//!
//! Invariants
//! 1. An entry with P = 0 is not looked at any further (SDM section 4.7: reserved bits are checked
//!    in present entries only).
//! 2. An entry that sets a reserved bit yields nothing else.

use crate::address::bits;
use crate::controls::{Cr4, Efer, Features, Mode, ProtectionKey};
use crate::{Controls, Cr3, Physical, Width};

/// P, bit 0 of every entry.
const PRESENT: u64 = 1 << 0;
/// R/W, bit 1.
const WRITABLE: u64 = 1 << 1;
/// U/S, bit 2.
const USER: u64 = 1 << 2;
/// A, bit 5 (SDM section 4.8).
pub(crate) const ACCESSED: u64 = 1 << 5;
/// D, bit 6 of an entry that maps a page (SDM section 4.8).
pub(crate) const DIRTY: u64 = 1 << 6;
/// PS, bit 7 above level 1.
const PAGE_SIZE: u64 = 1 << 7;
/// G, bit 8 of an entry that maps a page (SDM section 4.10.2.4).
const GLOBAL: u64 = 1 << 8;
/// XD, bit 63 of an 8-byte entry; AMD says NX.
const NO_EXECUTE: u64 = 1 << 63;

/// The level of a paging structure, the one that maps 4 KiB pages being 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Page table, with PTEs.
    PageTable = 1,
    /// Page directory, with PDEs.
    Directory = 2,
    /// Page-directory-pointer table, with PDPTEs.
    DirectoryPointer = 3,
    /// PML4 table, with PML4Es.
    Pml4 = 4,
    /// PML5 table, with PML5Es.
    Pml5 = 5,
}

impl Level {
    /// Returns the level's number, 1 to 5.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the next level on the way down.
    pub(crate) const fn below(self) -> Self {
        match self {
            Self::PageTable | Self::Directory => Self::PageTable,
            Self::DirectoryPointer => Self::Directory,
            Self::Pml4 => Self::DirectoryPointer,
            Self::Pml5 => Self::Pml4,
        }
    }
}

/// The size of the page that a translation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, in every mode.
    FourKiB,
    /// 2 MiB: PAE, 4-level and 5-level paging.
    TwoMiB,
    /// 4 MiB: 32-bit paging with CR4.PSE.
    FourMiB,
    /// 1 GiB: 4-level and 5-level paging, if the processor has it.
    OneGiB,
}

impl PageSize {
    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::FourKiB => 1 << 12,
            Self::TwoMiB => 1 << 21,
            Self::FourMiB => 1 << 22,
            Self::OneGiB => 1 << 30,
        }
    }
}

/// What an entry contributes to the access rights of a translation (SDM section 4.6.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryRights {
    pub(crate) writable: bool,
    pub(crate) user: bool,
    pub(crate) executable: bool,
}

/// The page that an entry maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) base: Physical,
    pub(crate) size: PageSize,
    pub(crate) global: bool,
    pub(crate) key: Option<ProtectionKey>,
}

/// A decoded entry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// P = 0.
    NotPresent,
    /// P = 1 and the given reserved bits are 1.
    Reserved(u64),
    /// A reference to a table of the next level.
    Table(Physical, EntryRights),
    /// A page.
    Page(Page, EntryRights),
}

/// Returns the level of the table that CR3 points at.
pub(crate) const fn top_level(mode: Mode) -> Level {
    match mode {
        Mode::FiveLevel => Level::Pml5,
        Mode::FourLevel => Level::Pml4,
        Mode::Pae => Level::DirectoryPointer,
        Mode::Bits32 | Mode::Off => Level::Directory,
    }
}

/// Returns the address of the table that CR3 points at (SDM tables 4-3, 4-7 and 4-12).
pub(crate) fn root_table(controls: &Controls, root: Cr3) -> Physical {
    root.table(match controls.mode() {
        Mode::Pae => bits(31, 5),
        Mode::Bits32 | Mode::Off => bits(31, 12),
        Mode::FourLevel | Mode::FiveLevel => table_mask(controls),
    })
}

/// Returns the width of the entries of a mode.
pub(crate) const fn width(mode: Mode) -> Width {
    match mode {
        Mode::Bits32 | Mode::Off => Width::Four,
        Mode::Pae | Mode::FourLevel | Mode::FiveLevel => Width::Eight,
    }
}

/// Returns which entry of a table of `level` an address selects.
pub(crate) const fn index(mode: Mode, level: Level, address: u64) -> u64 {
    let above = level.number() - 1;
    match mode {
        // SDM section 4.3: bits 31:22 and 21:12.
        Mode::Bits32 | Mode::Off => address >> (12 + 10 * above) & 0x3ff,
        // SDM section 4.4: bits 31:30, 29:21 and 20:12.
        Mode::Pae if matches!(level, Level::DirectoryPointer) => address >> 30 & 0x3,
        // SDM section 4.5: nine bits a level.
        Mode::Pae | Mode::FourLevel | Mode::FiveLevel => address >> (12 + 9 * above) & 0x1ff,
    }
}

/// Says whether entries of `level` have an accessed flag: all but the PDPTEs of PAE paging, whose
/// bit 5 is reserved (SDM table 4-8).
pub(crate) const fn has_accessed(mode: Mode, level: Level) -> bool {
    !matches!((mode, level), (Mode::Pae, Level::DirectoryPointer))
}

/// Decodes the entry `value` of a table of `level`.
pub(crate) fn decode(controls: &Controls, level: Level, value: u64) -> Entry {
    if value & PRESENT == 0 {
        return Entry::NotPresent;
    }
    let size = page_size(controls, level, value);
    let reserved = value & reserved_bits(controls, level, size);
    if reserved != 0 {
        return Entry::Reserved(reserved);
    }
    let rights = rights(controls, level, value);
    match size {
        None => Entry::Table(Physical::new(value & table_mask(controls)), rights),
        Some(size) => Entry::Page(page(controls, size, value), rights),
    }
}

/// Returns the size of the page that a present entry maps; `None` if it references a table.
fn page_size(controls: &Controls, level: Level, value: u64) -> Option<PageSize> {
    let ps = value & PAGE_SIZE != 0;
    match (controls.mode(), level) {
        (_, Level::PageTable) => Some(PageSize::FourKiB),
        // SDM section 4.3: without CR4.PSE the PS flag is ignored.
        (Mode::Bits32 | Mode::Off, _) => {
            (ps && controls.cr4().contains(Cr4::PSE)).then_some(PageSize::FourMiB)
        }
        // SDM sections 4.4.2 and 4.5: CR4.PSE has no effect here.
        (_, Level::Directory) => ps.then_some(PageSize::TwoMiB),
        (Mode::FourLevel | Mode::FiveLevel, Level::DirectoryPointer) => {
            (ps && has_gigabyte_pages(controls)).then_some(PageSize::OneGiB)
        }
        (_, Level::DirectoryPointer | Level::Pml4 | Level::Pml5) => None,
    }
}

fn has_gigabyte_pages(controls: &Controls) -> bool {
    let features = controls.processor().features();
    features.contains(Features::GIGABYTE_PAGES)
}

/// Returns the bits that must be zero in a present entry.
fn reserved_bits(controls: &Controls, level: Level, size: Option<PageSize>) -> u64 {
    match controls.mode() {
        Mode::Bits32 | Mode::Off => reserved_bits32(controls, size),
        Mode::Pae => reserved_pae(controls, level, size),
        Mode::FourLevel | Mode::FiveLevel => reserved_long(controls, level, size),
    }
}

/// SDM section 4.3: only a PDE that maps a page has reserved bits, 21:(M-19) for M = min(40,
/// MAXPHYADDR), or 32 without PSE-36; the bits below are address bits 39:32 (table 4-4).
fn reserved_bits32(controls: &Controls, size: Option<PageSize>) -> u64 {
    let processor = controls.processor();
    let width = if processor.features().contains(Features::PSE36) {
        processor.phys_bits().get().min(40)
    } else {
        32
    };
    match size {
        Some(PageSize::FourMiB) => bits(21, width - 19),
        _ => 0,
    }
}

/// SDM section 4.4: tables 4-8 (PDPTE) to 4-11; bits 62:M and, unless NXE, 63.
fn reserved_pae(controls: &Controls, level: Level, size: Option<PageSize>) -> u64 {
    let beyond = controls.processor().phys_bits().get();
    if level == Level::DirectoryPointer {
        return bits(63, beyond) | bits(8, 5) | bits(2, 1);
    }
    bits(62, beyond) | reserved_no_execute(controls) | reserved_in_page(size)
}

/// SDM section 4.5, tables 4-14 to 4-20; APM section 5.3: bits 51:M, unless NXE 63, PS where it has no
/// meaning, and with AMD bit 8 where the entry is of level 3 or above and maps no page.
fn reserved_long(controls: &Controls, level: Level, size: Option<PageSize>) -> u64 {
    let beyond = controls.processor().phys_bits().get();
    let features = controls.processor().features();
    let is_upper_table = level >= Level::DirectoryPointer && size.is_none();
    let bit_8 = if is_upper_table && features.contains(Features::UPPER_BIT_8_RESERVED) {
        GLOBAL
    } else {
        0
    };
    // PS of a PDE is meaningful, of a PTE it is PAT.
    let ps = if is_upper_table { PAGE_SIZE } else { 0 };
    bits(51, beyond) | reserved_no_execute(controls) | reserved_in_page(size) | bit_8 | ps
}

/// SDM sections 4.4.2 and 4.5: if EFER.NXE = 0, XD is reserved.
fn reserved_no_execute(controls: &Controls) -> u64 {
    if controls.efer().contains(Efer::NXE) {
        0
    } else {
        NO_EXECUTE
    }
}

/// The address bits below a large page, bit 12 (PAT) excepted.
fn reserved_in_page(size: Option<PageSize>) -> u64 {
    match size {
        Some(PageSize::OneGiB) => bits(29, 13),
        Some(PageSize::TwoMiB) => bits(20, 13),
        _ => 0,
    }
}

/// Returns the address bits of an entry that references a table.
fn table_mask(controls: &Controls) -> u64 {
    match controls.mode() {
        Mode::Bits32 | Mode::Off => bits(31, 12),
        Mode::Pae | Mode::FourLevel | Mode::FiveLevel => {
            bits(controls.processor().phys_bits().get() - 1, 12)
        }
    }
}

/// Returns what the entry contributes to the rights.
fn rights(controls: &Controls, level: Level, value: u64) -> EntryRights {
    // SDM section 4.6.1: the PDPTEs of PAE paging have no R/W, U/S and XD flags.
    if !has_accessed(controls.mode(), level) {
        return EntryRights {
            writable: true,
            user: true,
            executable: true,
        };
    }
    EntryRights {
        writable: value & WRITABLE != 0,
        user: value & USER != 0,
        // With NXE = 0 the bit is reserved, with 4-byte entries it does not exist: clear here.
        executable: value & NO_EXECUTE == 0,
    }
}

/// Returns the page that an entry of valid format maps.
fn page(controls: &Controls, size: PageSize, value: u64) -> Page {
    let base = match size {
        PageSize::FourKiB => value & table_mask(controls),
        // PSE-36: bits 20:13 are address bits 39:32; those beyond M are 0 by now.
        PageSize::FourMiB => value & bits(31, 22) | (value & bits(20, 13)) << 19,
        PageSize::TwoMiB | PageSize::OneGiB => value & table_mask(controls) & !(size.bytes() - 1),
    };
    Page {
        base: Physical::new(base),
        size,
        global: value & GLOBAL != 0 && controls.cr4().contains(Cr4::PGE),
        // SDM section 4.6.2: protection keys exist with 4-level and 5-level paging only.
        key: controls
            .mode()
            .is_long()
            .then(|| ProtectionKey::of_entry(value)),
    }
}
