//! Nested paging in Intel's format: extended page tables (SDM section 28.3).
//!
//! Key function: [`translate_ept`]. EPT entries share no format with ordinary ones, so this module
//! has a walk of its own.
//!
//! Invariants
//! 1. A misconfiguration found on the way comes before any violation (SDM section 28.3.3.2).
//! 2. Rights are the AND of all entries used; an entry without any is not present.

use bitflags::bitflags;

use crate::address::bits;
use crate::{
    GuestPhysical, Kind, Level, Memory, PageSize, PhysBits, Physical, Slot, Update, Width,
};

/// Bit 7 of an entry above level 1: it maps a page.
const PAGE: u64 = 1 << 7;
/// Bit 8, if enabled (SDM section 28.3.5).
const ACCESSED: u64 = 1 << 8;
/// Bit 9 of an entry that maps a page, if enabled.
const DIRTY: u64 = 1 << 9;

bitflags! {
    /// What the processor offers and the EPT pointer enables.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EptFeatures: u8 {
        /// Entries with X alone are valid (IA32_VMX_EPT_VPID_CAP bit 0).
        const EXECUTE_ONLY = 1 << 0;
        /// 1 GiB pages (IA32_VMX_EPT_VPID_CAP bit 17).
        const GIGABYTE_PAGES = 1 << 1;
        /// Accessed and dirty flags are on (EPTP bit 6).
        const ACCESSED_DIRTY = 1 << 2;
        /// Five levels (EPTP bits 5:3 = 4) in place of four (3).
        const FIVE_LEVEL = 1 << 3;
    }

    /// Bits 2:0 of an entry (SDM table 28-1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EptRights: u64 {
        /// R: reads.
        const READ = 1 << 0;
        /// W: writes.
        const WRITE = 1 << 1;
        /// X: fetches.
        const EXECUTE = 1 << 2;
    }

    /// The exit qualification of an EPT violation (SDM table 27-7), as far as it follows from the walk.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EptQualification: u64 {
        /// The access was a read.
        const READ = 1 << 0;
        /// The access was a write, or of a guest table while A and D flags are on.
        const WRITE = 1 << 1;
        /// The access was a fetch.
        const FETCH = 1 << 2;
        /// R is 1 in every entry used.
        const READABLE = 1 << 3;
        /// W is 1 in every entry used.
        const WRITABLE = 1 << 4;
        /// X is 1 in every entry used.
        const EXECUTABLE = 1 << 5;
        /// There is a linear address.
        const LINEAR = 1 << 7;
        /// The address is the translation of the linear address, not that of a guest table's entry.
        const FINAL = 1 << 8;
    }
}

/// What decides how EPT entries are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptControls {
    phys_bits: PhysBits,
    features: EptFeatures,
}

impl EptControls {
    /// Makes a control state.
    #[must_use]
    pub const fn new(phys_bits: PhysBits, features: EptFeatures) -> Self {
        Self {
            phys_bits,
            features,
        }
    }

    fn has(&self, feature: EptFeatures) -> bool {
        self.features.contains(feature)
    }

    fn table_mask(&self) -> u64 {
        bits(self.phys_bits.get() - 1, 12)
    }
}

/// The EPT pointer (SDM section 24.6.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Eptp(u64);

impl Eptp {
    /// Wraps the field's value. Only the table's address counts: what the other bits enable is in [`EptFeatures`].
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
}

/// Why a guest-physical address is accessed; all are due to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EptAccess {
    /// To read an entry of the guest's tables.
    GuestTableRead,
    /// To set accessed or dirty bits in an entry of the guest's tables.
    GuestTableWrite,
    /// To make the guest's access itself.
    Final(Kind),
}

/// The result of [`translate_ept`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum EptOutcome {
    /// The access goes to a physical address.
    Translation(EptTranslation),
    /// EPT violation, with this exit qualification.
    Violation(EptQualification),
    /// EPT misconfiguration at the entry; reads have no say in it.
    Misconfiguration(Slot),
    /// The address has more bits than the tables can map.
    OutOfRange(GuestPhysical),
    /// The walk needs an entry where there is no memory.
    Unbacked(Slot),
}

/// A completed walk that permits the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptTranslation {
    /// The physical address.
    pub physical: Physical,
    /// The size of the page.
    pub size: PageSize,
    /// The AND of the rights of all entries used.
    pub rights: EptRights,
    updates: [Option<Update>; 5],
}

impl EptTranslation {
    /// Iterates over the accessed and dirty bits that are set, top down (SDM section 28.3.5).
    pub fn updates(&self) -> impl Iterator<Item = Update> + '_ {
        self.updates.iter().flatten().copied()
    }
}

/// A valid entry.
enum EptEntry {
    NotPresent,
    Misconfigured,
    Table(Physical),
    Page(Physical, PageSize),
}

/// Translates a guest-physical address by the tables that `pointer` (EPTP) names.
pub fn translate_ept<M: Memory + ?Sized>(
    controls: &EptControls,
    pointer: Eptp,
    address: GuestPhysical,
    access: EptAccess,
    memory: &M,
) -> EptOutcome {
    let (mut level, address_bits) = if controls.has(EptFeatures::FIVE_LEVEL) {
        (Level::Pml5, 57)
    } else {
        (Level::Pml4, 48)
    };
    if address.get() >> address_bits != 0 {
        return EptOutcome::OutOfRange(address);
    }
    let mut table = Physical::new(pointer.0 & controls.table_mask());
    let mut rights = EptRights::all();
    let mut updates = [None; 5];
    for update in &mut updates {
        let slot = slot(table, level, address);
        let Some(value) = memory.read(slot.at, slot.width) else {
            return EptOutcome::Unbacked(slot);
        };
        let entry = decode(controls, level, value);
        rights &= EptRights::from_bits_truncate(value);
        *update = update_of(controls, slot, value, &entry, access);
        match entry {
            EptEntry::Misconfigured => return EptOutcome::Misconfiguration(slot),
            EptEntry::NotPresent => return violation(controls, EptRights::empty(), access),
            EptEntry::Table(next) => {
                table = next;
                level = level.below();
            }
            EptEntry::Page(..) if !rights.contains(needed(controls, access)) => {
                return violation(controls, rights, access);
            }
            EptEntry::Page(base, size) => {
                let offset = address.get() & (size.bytes() - 1);
                return EptOutcome::Translation(EptTranslation {
                    physical: Physical::new(base.get() | offset),
                    size,
                    rights,
                    updates,
                });
            }
        }
    }
    // Level 1 maps a page or stops the walk, so five turns end it.
    violation(controls, EptRights::empty(), access)
}

fn slot(table: Physical, level: Level, address: GuestPhysical) -> Slot {
    let index = address.get() >> (12 + 9 * (level.number() - 1)) & 0x1ff;
    Slot {
        at: Physical::new(table.get() + 8 * index),
        width: Width::Eight,
        level,
    }
}

/// SDM sections 28.3.2 and 28.3.3.1.
fn decode(controls: &EptControls, level: Level, value: u64) -> EptEntry {
    let rights = EptRights::from_bits_truncate(value);
    if rights.is_empty() {
        return EptEntry::NotPresent;
    }
    let size = page_size(controls, level, value);
    let memory_type = value >> 3 & 7;
    let write_without_read = rights.contains(EptRights::WRITE) && !rights.contains(EptRights::READ);
    let execute_only = rights == EptRights::EXECUTE && !controls.has(EptFeatures::EXECUTE_ONLY);
    let bad_type = size.is_some() && matches!(memory_type, 2 | 3 | 7);
    let reserved = value & reserved_bits(controls, level, size) != 0;
    if write_without_read || execute_only || bad_type || reserved {
        return EptEntry::Misconfigured;
    }
    let base = value & controls.table_mask();
    match size {
        None => EptEntry::Table(Physical::new(base)),
        Some(size) => EptEntry::Page(Physical::new(base & !(size.bytes() - 1)), size),
    }
}

fn page_size(controls: &EptControls, level: Level, value: u64) -> Option<PageSize> {
    let page = value & PAGE != 0;
    match level {
        Level::PageTable => Some(PageSize::FourKiB),
        Level::Directory => page.then_some(PageSize::TwoMiB),
        Level::DirectoryPointer => {
            (page && controls.has(EptFeatures::GIGABYTE_PAGES)).then_some(PageSize::OneGiB)
        }
        Level::Pml4 | Level::Pml5 => None,
    }
}

/// SDM tables 28-1 to 28-6: bits 51:N, the address bits below a large page, and 7:3 of an entry that
/// references a table.
fn reserved_bits(controls: &EptControls, level: Level, size: Option<PageSize>) -> u64 {
    let beyond = bits(51, controls.phys_bits.get());
    beyond
        | match size {
            Some(PageSize::OneGiB) => bits(29, 12),
            Some(PageSize::TwoMiB) => bits(20, 12),
            Some(_) => 0,
            // Bit 7 of a PDE that references a table is 0 by definition.
            None if level == Level::Directory => bits(6, 3),
            None => bits(7, 3),
        }
}

/// SDM section 28.3.5: A in every entry used, D in the one that maps the page, on writes.
fn update_of(
    controls: &EptControls,
    slot: Slot,
    value: u64,
    entry: &EptEntry,
    access: EptAccess,
) -> Option<Update> {
    let writes = needed(controls, access).contains(EptRights::WRITE);
    let dirty = match entry {
        EptEntry::Page(..) if writes => DIRTY,
        _ => 0,
    };
    let set = (ACCESSED | dirty) & !value;
    (controls.has(EptFeatures::ACCESSED_DIRTY) && set != 0).then_some(Update { slot, set })
}

/// SDM section 28.3.3.2: what the entries have to allow. With A and D flags on, every access to a
/// guest table is a write.
fn needed(controls: &EptControls, access: EptAccess) -> EptRights {
    match access {
        EptAccess::GuestTableRead if controls.has(EptFeatures::ACCESSED_DIRTY) => {
            EptRights::READ | EptRights::WRITE
        }
        EptAccess::GuestTableRead | EptAccess::Final(Kind::Read) => EptRights::READ,
        EptAccess::GuestTableWrite | EptAccess::Final(Kind::Write) => EptRights::WRITE,
        EptAccess::Final(Kind::Fetch) => EptRights::EXECUTE,
    }
}

/// SDM table 27-7.
fn violation(controls: &EptControls, rights: EptRights, access: EptAccess) -> EptOutcome {
    let asked = EptQualification::from_bits_truncate(needed(controls, access).bits());
    let granted = EptQualification::from_bits_truncate(rights.bits() << 3);
    let place = match access {
        EptAccess::Final(_) => EptQualification::FINAL,
        EptAccess::GuestTableRead | EptAccess::GuestTableWrite => EptQualification::empty(),
    };
    EptOutcome::Violation(asked | granted | EptQualification::LINEAR | place)
}
