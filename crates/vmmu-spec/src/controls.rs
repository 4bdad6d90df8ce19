//! The control state that decides how an address is translated.
//!
//! Key types: [`Controls`], made from [`Cr0`], [`Cr4`], [`Efer`] and a [`Processor`], and the
//! [`Mode`] that follows from them. The neighbours `format` and `rights` read it.
//!
//! Invariants
//! 1. A [`Controls`] is one of the combinations that a processor can be in; the others are refused
//!    by [`Controls::new`], where MOV to CR0 or WRMSR would raise #GP.
//! 2. The [`Mode`] is derived once, at construction.

use bitflags::bitflags;
use thiserror::Error;

use crate::{PhysBits, Physical};

bitflags! {
    /// The bits of CR0 that translation looks at (SDM section 2.5).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Write protect: supervisor-mode writes respect R/W.
        const WP = 1 << 16;
        /// Paging.
        const PG = 1 << 31;
    }

    /// The bits of CR4 that translation looks at (SDM section 2.5).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr4: u64 {
        /// Page size extensions: 4 MiB pages with 32-bit paging.
        const PSE = 1 << 4;
        /// Physical address extension: 8-byte entries.
        const PAE = 1 << 5;
        /// Page global enable.
        const PGE = 1 << 7;
        /// 57-bit linear addresses: 5-level paging in IA-32e mode.
        const LA57 = 1 << 12;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user-mode pages.
        const PKE = 1 << 22;
    }

    /// The bits of EFER that translation looks at (SDM section 2.2.1, APM section 3.1.7).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Efer: u64 {
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active: equals LME and CR0.PG.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
    }

    /// What a processor offers, as far as it decides which entry bits are reserved.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u8 {
        /// 1 GiB pages (CPUID 80000001H:EDX.Page1GB): without them PS in a PDPTE is reserved.
        const GIGABYTE_PAGES = 1 << 0;
        /// Bit 8 is reserved in PML5Es, PML4Es and those PDPTEs of long mode that reference a table: AMD has it as
        /// must-be-zero (APM section 5.3.3), Intel ignores it (SDM section 4.5, tables 4-14 to 4-16).
        const UPPER_BIT_8_RESERVED = 1 << 1;
        /// 4 MiB pages above 4 GiB (CPUID 1:EDX.PSE-36): without it bits 21:13 of such a PDE are reserved
        /// (SDM section 4.3).
        const PSE36 = 1 << 2;
    }
}

/// What does not change while a processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Processor {
    phys_bits: PhysBits,
    features: Features,
}

impl Processor {
    /// Makes a processor of the given physical-address width.
    #[must_use]
    pub const fn new(phys_bits: PhysBits, features: Features) -> Self {
        Self {
            phys_bits,
            features,
        }
    }

    /// Returns MAXPHYADDR.
    #[must_use]
    pub const fn phys_bits(self) -> PhysBits {
        self.phys_bits
    }

    /// Returns the features.
    #[must_use]
    pub const fn features(self) -> Features {
        self.features
    }
}

/// The paging mode (SDM section 4.1.1, table 4-1; APM section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// CR0.PG = 0: linear addresses are physical addresses.
    Off,
    /// Two levels of 4-byte entries, 32-bit linear addresses (SDM section 4.3).
    Bits32,
    /// Three levels of 8-byte entries, 32-bit linear addresses (SDM section 4.4).
    Pae,
    /// Four levels, 48-bit linear addresses (SDM section 4.5).
    FourLevel,
    /// Five levels, 57-bit linear addresses (SDM section 4.5).
    FiveLevel,
}

impl Mode {
    /// Says whether this is a mode of IA-32e (long) mode.
    #[must_use]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::FourLevel | Self::FiveLevel)
    }
}

/// The protection-key rights register PKRU (SDM section 4.6.2, APM section 5.6.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pkru(u32);

impl Pkru {
    /// Wraps the register's value.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the register's value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Says whether the key's access-disable bit (2 x key) is set.
    pub(crate) const fn access_disabled(self, key: ProtectionKey) -> bool {
        self.0 >> (2 * key.0) & 1 != 0
    }

    /// Says whether the key's write-disable bit (2 x key + 1) is set.
    pub(crate) const fn write_disabled(self, key: ProtectionKey) -> bool {
        self.0 >> (2 * key.0 + 1) & 1 != 0
    }
}

/// A protection key: bits 62:59 of the entry that maps the page (SDM section 4.6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProtectionKey(u8);

impl ProtectionKey {
    /// Takes the key from an 8-byte entry.
    pub(crate) const fn of_entry(entry: u64) -> Self {
        Self((entry >> 59 & 0xf) as u8)
    }

    /// Returns the key's number, 0 to 15.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Where PAE paging finds its four page-directory-pointer-table entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pdptes {
    /// In registers loaded by MOV to CR3 (SDM section 4.4.1); reserved bits raised #GP there.
    Registers([u64; 4]),
    /// In memory at each walk, as AMD does for a guest under nested paging (APM section 15.25.10);
    /// reserved bits raise #PF when the entry is used.
    Memory,
}

/// The value of CR3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cr3(u64);

impl Cr3 {
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

    /// Returns the table's address under `mask`; PWT, PCD and the PCID are not part of it.
    pub(crate) const fn table(self, mask: u64) -> Physical {
        Physical::new(self.0 & mask)
    }
}

/// A combination of control bits that no processor can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ControlsError {
    /// CR0.PG without CR0.PE (SDM section 2.5: #GP).
    #[error("paging without protected mode")]
    PagingWithoutProtection,
    /// EFER.LMA is not LME and PG (SDM section 4.1.1).
    #[error("long mode active differs from long mode enable with paging")]
    LongModeActive,
    /// IA-32e mode without CR4.PAE (SDM section 4.1.2: #GP).
    #[error("long mode without physical address extension")]
    LongModeWithoutPae,
}

/// The control state of one translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    processor: Processor,
    mode: Mode,
    cr0: Cr0,
    cr4: Cr4,
    efer: Efer,
    pkru: Pkru,
    pdptes: Pdptes,
}

impl Controls {
    /// Makes a control state with PKRU = 0 and PDPTEs read from memory.
    ///
    /// # Errors
    ///
    /// Returns the rule that the combination breaks.
    pub fn new(
        processor: Processor,
        cr0: Cr0,
        cr4: Cr4,
        efer: Efer,
    ) -> Result<Self, ControlsError> {
        let mode = mode(cr0, cr4, efer)?;
        Ok(Self {
            processor,
            mode,
            cr0,
            cr4,
            efer,
            pkru: Pkru::default(),
            pdptes: Pdptes::Memory,
        })
    }

    /// Returns the same state with another PKRU.
    #[must_use]
    pub const fn with_pkru(self, pkru: Pkru) -> Self {
        Self { pkru, ..self }
    }

    /// Returns the same state with another source of PDPTEs; only PAE paging looks at it.
    #[must_use]
    pub const fn with_pdptes(self, pdptes: Pdptes) -> Self {
        Self { pdptes, ..self }
    }

    /// Returns the processor.
    #[must_use]
    pub const fn processor(&self) -> Processor {
        self.processor
    }

    /// Returns the paging mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns CR0.
    #[must_use]
    pub const fn cr0(&self) -> Cr0 {
        self.cr0
    }

    /// Returns CR4.
    #[must_use]
    pub const fn cr4(&self) -> Cr4 {
        self.cr4
    }

    /// Returns EFER.
    #[must_use]
    pub const fn efer(&self) -> Efer {
        self.efer
    }

    /// Returns PKRU.
    #[must_use]
    pub const fn pkru(&self) -> Pkru {
        self.pkru
    }

    /// Returns the source of PDPTEs.
    #[must_use]
    pub const fn pdptes(&self) -> Pdptes {
        self.pdptes
    }
}

/// Derives the mode (SDM section 4.1.1).
fn mode(cr0: Cr0, cr4: Cr4, efer: Efer) -> Result<Mode, ControlsError> {
    let paging = cr0.contains(Cr0::PG);
    let long = paging && efer.contains(Efer::LME);
    if paging && !cr0.contains(Cr0::PE) {
        return Err(ControlsError::PagingWithoutProtection);
    }
    if long != efer.contains(Efer::LMA) {
        return Err(ControlsError::LongModeActive);
    }
    if long && !cr4.contains(Cr4::PAE) {
        return Err(ControlsError::LongModeWithoutPae);
    }
    Ok(match (paging, long) {
        (false, _) => Mode::Off,
        (true, false) if cr4.contains(Cr4::PAE) => Mode::Pae,
        (true, false) => Mode::Bits32,
        (true, true) if cr4.contains(Cr4::LA57) => Mode::FiveLevel,
        (true, true) => Mode::FourLevel,
    })
}

#[cfg(test)]
mod modes {
    use super::{Controls, ControlsError, Cr0, Cr4, Efer, Features, Mode, Processor};
    use crate::PhysBits;

    fn mode_of(cr0: Cr0, cr4: Cr4, efer: Efer) -> Result<Mode, ControlsError> {
        let processor = Processor::new(PhysBits::MAX, Features::empty());
        Controls::new(processor, cr0, cr4, efer).map(|controls| controls.mode())
    }

    /// SDM table 4-1.
    #[test]
    fn the_mode_follows_pg_pae_lme_and_la57() {
        let paged = Cr0::PE | Cr0::PG;
        let long = Efer::LME | Efer::LMA;
        let rows = [
            (Cr0::PE, Cr4::PAE, Efer::LME, Mode::Off),
            (paged, Cr4::PSE, Efer::NXE, Mode::Bits32),
            // LA57 has no effect outside IA-32e mode.
            (paged, Cr4::LA57, Efer::empty(), Mode::Bits32),
            (paged, Cr4::PAE | Cr4::LA57, Efer::empty(), Mode::Pae),
            (paged, Cr4::PAE, long, Mode::FourLevel),
            (paged, Cr4::PAE | Cr4::LA57, long, Mode::FiveLevel),
        ];
        for (cr0, cr4, efer, mode) in rows {
            assert_eq!(
                mode_of(cr0, cr4, efer),
                Ok(mode),
                "{cr0:?} {cr4:?} {efer:?}"
            );
        }
    }

    #[test]
    fn states_that_raise_gp_on_the_way_in_are_refused() {
        let paged = Cr0::PE | Cr0::PG;
        let long = Efer::LME | Efer::LMA;
        let rows = [
            (
                Cr0::PG,
                Cr4::PAE,
                Efer::empty(),
                ControlsError::PagingWithoutProtection,
            ),
            (paged, Cr4::PAE, Efer::LME, ControlsError::LongModeActive),
            (Cr0::PE, Cr4::PAE, long, ControlsError::LongModeActive),
            (paged, Cr4::empty(), long, ControlsError::LongModeWithoutPae),
        ];
        for (cr0, cr4, efer, error) in rows {
            assert_eq!(
                mode_of(cr0, cr4, efer),
                Err(error),
                "{cr0:?} {cr4:?} {efer:?}"
            );
        }
    }
}
