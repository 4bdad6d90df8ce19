//! The control registers that decide how an address is translated, and what the processor has.
//!
//! Key types: [`Registers`], [`Nested`], [`Model`], [`PagingMode`]. [`crate::Cpu`] holds one of
//! each; [`crate::format`] and [`crate::access`] read them.
//!
//! Invariants:
//! 1. Registers are plain values: changing them flushes nothing. What flushes is the operation
//!    that changes them (see [`crate::invalidate`]).

use bitflags::bitflags;

use crate::addr::{Hpa, Pcid, Va};
use crate::fault::Fault;
use crate::format::Format;

bitflags! {
    /// The bits of CR0 that matter to translation (APM vol. 2, 3.1.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Write protect: supervisor writes honour read-only pages.
        const WP = 1 << 16;
        /// Paging enable.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// The bits of CR4 that matter to translation (APM vol. 2, 3.1.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Cr4: u64 {
        /// Page-size extensions: 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Physical-address extension.
        const PAE = 1 << 5;
        /// Global pages.
        const PGE = 1 << 7;
        /// 5-level paging.
        const LA57 = 1 << 12;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// No supervisor execution of user pages.
        const SMEP = 1 << 20;
        /// No supervisor data access to user pages, unless EFLAGS.AC.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
    }
}

bitflags! {
    /// The bits of EFER that matter to translation (APM vol. 2, 3.1.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Efer: u64 {
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
    }
}

/// The rights that PKRU takes away from user pages, two bits per key (APM vol. 2, 5.6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Pkru(u32);

impl Pkru {
    /// Wraps the register's value.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// Says whether `key` forbids every data access.
    #[must_use]
    pub const fn access_disabled(self, key: u8) -> bool {
        self.0 >> (2 * (key & 15)) & 1 != 0
    }

    /// Says whether `key` forbids writes.
    #[must_use]
    pub const fn write_disabled(self, key: u8) -> bool {
        self.0 >> (2 * (key & 15)) & 2 != 0
    }
}

/// The value of CR3: table address, and a PCID when CR4.PCIDE is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Cr3(u64);

impl Cr3 {
    /// Bit 63 of the operand of MOV to CR3: keep what is cached for the PCID.
    pub const NO_FLUSH: u64 = 1 << 63;

    /// Wraps the register's value.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Returns the register's value.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// Linear is physical.
    Off,
    /// Through tables of this format.
    Tables(Format),
}

/// The registers that decide a translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Registers {
    /// CR0.
    pub cr0: Cr0,
    /// CR3; guest-physical when there is nested paging, host-physical otherwise.
    pub cr3: Cr3,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// PKRU.
    pub pkru: Pkru,
}

impl Registers {
    /// Returns registers for 4-level paging at `root`, with WP, NX and global pages on.
    #[must_use]
    pub fn long4(root: Hpa) -> Self {
        Self {
            cr0: Cr0::PE | Cr0::WP | Cr0::PG,
            cr3: Cr3::new(root.get()),
            cr4: Cr4::PAE | Cr4::PGE,
            efer: Efer::LME | Efer::LMA | Efer::NXE,
            pkru: Pkru::default(),
        }
    }

    /// Returns registers for 5-level paging at `root`, otherwise as [`Registers::long4`].
    #[must_use]
    pub fn long5(root: Hpa) -> Self {
        let four = Self::long4(root);
        Self {
            cr4: four.cr4 | Cr4::LA57,
            ..four
        }
    }

    /// Returns registers for PAE paging at `root`, with WP, NX and global pages on.
    #[must_use]
    pub fn pae(root: Hpa) -> Self {
        Self {
            efer: Efer::NXE,
            ..Self::long4(root)
        }
    }

    /// Returns registers for 32-bit paging at `root`, with WP, 4 MiB and global pages on.
    #[must_use]
    pub fn bits32(root: Hpa) -> Self {
        Self {
            efer: Efer::empty(),
            cr4: Cr4::PSE | Cr4::PGE,
            ..Self::long4(root)
        }
    }

    /// Returns the paging mode (Intel SDM vol. 3, 4.1.1).
    #[must_use]
    #[inline]
    pub fn mode(&self) -> PagingMode {
        if !self.cr0.contains(Cr0::PG) {
            PagingMode::Off
        } else if !self.cr4.contains(Cr4::PAE) {
            PagingMode::Tables(Format::Bits32)
        } else if !self.efer.contains(Efer::LME) {
            PagingMode::Tables(Format::Pae)
        } else if !self.cr4.contains(Cr4::LA57) {
            PagingMode::Tables(Format::Long4)
        } else {
            PagingMode::Tables(Format::Long5)
        }
    }

    /// Returns the process-context identifier in use.
    #[must_use]
    #[inline]
    pub fn pcid(&self) -> Pcid {
        if self.cr4.contains(Cr4::PCIDE) {
            Pcid::new(self.cr3.get() as u16)
        } else {
            Pcid::default()
        }
    }

    /// Returns `va` as these registers' mode sees it: 32 bits of it, or all if canonical.
    #[inline]
    pub(crate) fn linear(&self, va: Va) -> Result<Va, Fault> {
        let bits = match self.mode() {
            PagingMode::Tables(Format::Long4) => 48,
            PagingMode::Tables(Format::Long5) => 57,
            // Paging off in long mode does not exist; outside of it addresses have 32 bits.
            _ => return Ok(Va::new(va.get() & 0xffff_ffff)),
        };
        let unused = 64 - bits;
        let extended = ((va.get() << unused) as i64 >> unused) as u64;
        if extended == va.get() {
            Ok(va)
        } else {
            Err(Fault::NotCanonical(va))
        }
    }
}

bitflags! {
    /// What the nested tables may use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct NestedFlags: u8 {
        /// Bit 63 of an NPT entry means no execution (the host's EFER.NXE); reserved otherwise.
        const NXE = 1 << 0;
        /// EPT entries have accessed and dirty bits (EPTP bit 6). NPT always has them.
        const ACCESSED_DIRTY = 1 << 1;
    }
}

/// The second dimension: tables from guest-physical to host-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nested {
    /// [`Format::Npt4`], [`Format::Npt5`], [`Format::Ept4`] or [`Format::Ept5`].
    pub format: Format,
    /// The root table.
    pub root: Hpa,
    /// What the tables may use.
    pub flags: NestedFlags,
}

impl Nested {
    /// Returns 4-level NPT at `root`, with no-execute.
    #[must_use]
    pub fn npt4(root: Hpa) -> Self {
        Self {
            format: Format::Npt4,
            root,
            flags: NestedFlags::NXE,
        }
    }

    /// Returns 4-level EPT at `root`, with accessed and dirty bits.
    #[must_use]
    pub fn ept4(root: Hpa) -> Self {
        Self {
            format: Format::Ept4,
            root,
            flags: NestedFlags::ACCESSED_DIRTY,
        }
    }
}

bitflags! {
    /// What the processor has or does, where real ones differ.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u8 {
        /// 1 GiB pages; without them the large bit is reserved at level 3.
        const GB_PAGES = 1 << 0;
        /// EPT entries may allow execution without reading.
        const EPT_EXECUTE_ONLY = 1 << 1;
        /// Bit 8 of a long-mode or NPT entry of level 3 and up that points at a table must be
        /// zero (APM vol. 2, 5.3.3); Intel ignores it.
        const UPPER_BIT8_RESERVED = 1 << 2;
        /// PAE loads its four PDPTEs into registers with CR3 (Intel SDM vol. 3, 4.4.1); without
        /// this they are read when needed. Nested NPT always reads them when needed
        /// (APM vol. 2, 15.25.10).
        const PDPTE_REGISTERS = 1 << 3;
    }
}

/// A processor's fixed properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Model {
    /// MAXPHYADDR: physical address bits from here on are reserved in entries.
    pub phys_bits: u8,
    /// What it has or does.
    pub features: Features,
}

impl Model {
    /// A processor with 48 physical address bits, 1 GiB pages, and the strictest checks.
    pub const STRICT: Self = Self {
        phys_bits: 48,
        features: Features::all(),
    };
}

impl Default for Model {
    fn default() -> Self {
        Self::STRICT
    }
}
