//! The guest's paging registers, and what follows from them.
//!
//! [`PagingState`] is the registers as the guest sees them, plus the [`CpuModel`] it was shown; it is plain data and cheap to copy.
//! [`PagingMode`] is the part of it that decides how entries are read and which accesses fault: the [`GuestFormat`], the
//! [`PagingRules`] in force and the model. Tables derived from a mode ([`Decoder`](crate::walk::Decoder),
//! [`PermissionTable`](crate::walk::PermissionTable)) stay valid until the mode changes, whatever CR3 and PKRU do.
//!
//! Invariants:
//! 1. Two states whose modes are equal translate alike but for CR3, PKRU and the PAE page-directory-pointer registers. A rule
//!    that has no effect in a format is never set in its mode, so equal behaviour is equal modes.
//! 2. A [`PhysBits`] is between 32 and 52.

use bitflags::bitflags;

use crate::addr::{Gpa, PAGE_SIZE};

pub use crate::walk::format::GuestFormat;

bitflags! {
    /// Control register 0 (AMD APM vol. 2, section 3.1.1; Intel SDM vol. 3, section 2.5).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation of the x87 unit.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type.
        const ET = 1 << 4;
        /// Numeric error.
        const NE = 1 << 5;
        /// Write protect: supervisor writes obey the R/W bit.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging enable.
        const PG = 1 << 31;
        const _ = !0;
    }
}

bitflags! {
    /// Control register 4 (AMD APM vol. 2, section 3.1.3; Intel SDM vol. 3, section 2.5).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// Time-stamp disable.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Page-size extensions: 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Physical-address extension: 8-byte entries.
        const PAE = 1 << 5;
        /// Machine-check enable.
        const MCE = 1 << 6;
        /// Page-global enable.
        const PGE = 1 << 7;
        /// Performance-counter enable.
        const PCE = 1 << 8;
        /// FXSAVE and FXRSTOR support.
        const OSFXSR = 1 << 9;
        /// Unmasked SIMD exception support.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// 57-bit linear addresses: 5-level paging in long mode.
        const LA57 = 1 << 12;
        /// Enable RDFSBASE and its like.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and extended states.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        const _ = !0;
    }
}

bitflags! {
    /// The extended feature enable register (AMD APM vol. 2, section 3.1.7).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Efer: u64 {
        /// System-call extensions.
        const SCE = 1 << 0;
        /// Long-mode enable.
        const LME = 1 << 8;
        /// Long-mode active: LME and paging on.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// Secure virtual machine enable.
        const SVME = 1 << 12;
        /// Long-mode segment-limit enable.
        const LMSLE = 1 << 13;
        /// Fast FXSAVE and FXRSTOR.
        const FFXSR = 1 << 14;
        /// Translation-cache extension.
        const TCE = 1 << 15;
        const _ = !0;
    }
}

bitflags! {
    /// The flags register, of which translation reads AC only (AMD APM vol. 2, section 3.1.6).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Rflags: u64 {
        /// Trap: single-step.
        const TF = 1 << 8;
        /// Interrupt enable.
        const IF = 1 << 9;
        /// Resume.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check in user mode; in supervisor mode it suspends SMAP for explicit accesses.
        const AC = 1 << 18;
        const _ = !0;
    }
}

/// Control register 3: the root table's address and, beside it, the PCID or the cache bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cr3(u64);

impl Cr3 {
    /// Makes the register from its content.
    #[inline]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }
    /// Returns the register's content.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Returns the address of the root table of a walk in `format` (AMD APM vol. 2, sections 5.2.1, 5.2.3 and 5.3.2).
    ///
    /// The PAE root is 32 bytes on a 32-byte boundary below 4 GiB, every other root a page. Without paging there is no root and
    /// the answer means nothing.
    #[inline]
    pub const fn root(self, format: GuestFormat) -> Gpa {
        Gpa::new(match format {
            GuestFormat::Off | GuestFormat::Bits32 => self.0 & 0xffff_f000,
            GuestFormat::Pae => self.0 & 0xffff_ffe0,
            GuestFormat::Level4 | GuestFormat::Level5 => self.0 & ((1 << 52) - PAGE_SIZE),
        })
    }
}

/// The protection-key rights register of user pages: for each of 16 keys AD (access disable) and WD (write disable)
/// (AMD APM vol. 2, section 5.6.7; Intel SDM vol. 3, section 4.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pkru(u32);

impl Pkru {
    /// Makes the register from its content.
    #[inline]
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }
    /// Returns the register's content.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
    /// Returns the two bits of `key`: AD in bit 0 and WD in bit 1.
    #[inline]
    pub(crate) const fn rights_of(self, key: ProtectionKey) -> u32 {
        (self.0 >> (2 * key.0)) & 3
    }
}

/// A protection key, 0 to 15: bits 62:59 of a long-mode leaf.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ProtectionKey(u8);

impl ProtectionKey {
    /// Makes a key from the low four bits of `key`.
    #[inline]
    pub const fn truncate(key: u64) -> Self {
        Self(key as u8 & 15)
    }
    /// Returns the key's number.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The width of physical addresses that the guest was shown (MAXPHYADDR, CPUID 8000_0008h EAX\[7:0\]), 32 to 52.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PhysBits(u8);

impl PhysBits {
    /// The widest physical address that the formats can name.
    pub const MAX: Self = Self(52);

    /// Makes a width if it is one that the formats can express.
    #[inline]
    pub const fn new(bits: u8) -> Option<Self> {
        if bits >= 32 && bits <= 52 {
            Some(Self(bits))
        } else {
            None
        }
    }
    /// Returns the number of bits.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

bitflags! {
    /// What of paging the guest's CPUID offers beyond the formats themselves, or what its vendor decides.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct CpuFeatures: u8 {
        /// 1 GiB pages in long mode (CPUID 8000_0001h EDX\[26\]). Without it bit 7 of a level-3 entry is reserved.
        const PAGES_1G = 1 << 0;
        /// 4 MiB pages above 4 GiB in 32-bit paging (CPUID 1 EDX\[17\]). Without it bits 21:13 of such an entry are reserved.
        const PSE36 = 1 << 1;
        /// Bit 8 is reserved in long-mode entries of level 3 and up that point at a table. AMD's processors have it so (AMD APM
        /// vol. 2, section 5.3.3, "MBZ"); Intel's ignore the bit (Intel SDM vol. 3, tables 4-14 to 4-16).
        const UPPER_GLOBAL_RESERVED = 1 << 2;
    }
}

/// The processor that the guest believes to run on, as far as translation is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CpuModel {
    /// The width of physical addresses; entry bits above it are reserved.
    pub phys_bits: PhysBits,
    /// Optional features.
    pub features: CpuFeatures,
}

/// The four page-directory-pointer registers of PAE paging, loaded at MOV to CR3 (Intel SDM vol. 3, section 4.4.1).
///
/// AMD's processors may read the entries from memory at each walk instead (AMD APM vol. 2, section 15.25.10): give the state
/// none then. [`Decoder::refuses_pdptes`](crate::walk::Decoder::refuses_pdptes) tells whether loading them is #GP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pdptes([u64; 4]);

impl Pdptes {
    /// Makes the registers from the four entries that CR3 pointed at.
    #[inline]
    pub const fn new(entries: [u64; 4]) -> Self {
        Self(entries)
    }
    /// Returns the four entries.
    #[inline]
    pub const fn get(self) -> [u64; 4] {
        self.0
    }
}

bitflags! {
    /// The switches of [`Cr0`], [`Cr4`] and [`Efer`] that change how entries are read or which accesses fault.
    ///
    /// Never set where the format gives them no effect.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct PagingRules: u8 {
        /// EFER.NXE: bit 63 is NX, else reserved. Has no effect in 32-bit paging.
        const NX = 1 << 0;
        /// CR4.PSE: 4 MiB pages. Has an effect in 32-bit paging only.
        const PSE = 1 << 1;
        /// CR0.WP: supervisor writes need the W right.
        const WP = 1 << 2;
        /// CR4.SMEP: supervisor fetches from user pages fault.
        const SMEP = 1 << 3;
        /// CR4.SMAP: supervisor data accesses to user pages fault.
        const SMAP = 1 << 4;
        /// CR4.PKE: protection keys. Has an effect in long mode only.
        const PKE = 1 << 5;
    }
}

/// What decides the reading of entries and the judging of accesses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PagingMode {
    format: GuestFormat,
    rules: PagingRules,
    cpu: CpuModel,
}

impl PagingMode {
    /// Makes a mode, dropping the rules that have no effect in `format`.
    #[inline]
    pub const fn new(format: GuestFormat, rules: PagingRules, cpu: CpuModel) -> Self {
        Self {
            format,
            rules: rules.intersection(effective(format)),
            cpu,
        }
    }
    /// Returns the format of the guest's tables.
    #[inline]
    pub const fn format(self) -> GuestFormat {
        self.format
    }
    /// Returns the rules in force.
    #[inline]
    pub const fn rules(self) -> PagingRules {
        self.rules
    }
    /// Returns the processor's model.
    #[inline]
    pub const fn cpu(self) -> CpuModel {
        self.cpu
    }
}

/// Returns the rules that have an effect in `format`.
const fn effective(format: GuestFormat) -> PagingRules {
    let common = PagingRules::WP
        .union(PagingRules::SMEP)
        .union(PagingRules::SMAP);
    match format {
        GuestFormat::Off => PagingRules::empty(),
        GuestFormat::Bits32 => common.union(PagingRules::PSE),
        GuestFormat::Pae => common.union(PagingRules::NX),
        GuestFormat::Level4 | GuestFormat::Level5 => {
            common.union(PagingRules::NX).union(PagingRules::PKE)
        }
    }
}

/// The registers that decide a translation, as the guest sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PagingState {
    /// Control register 0.
    pub cr0: Cr0,
    /// Control register 3.
    pub cr3: Cr3,
    /// Control register 4.
    pub cr4: Cr4,
    /// The extended feature enable register, LMA included.
    pub efer: Efer,
    /// The protection-key rights of user pages. WRPKRU can't be intercepted: bring it up to date before each walk that may matter.
    pub pkru: Pkru,
    /// The PAE registers; `None` to read the entries from memory at each walk.
    pub pdptes: Option<Pdptes>,
    /// What the guest's CPUID said.
    pub cpu: CpuModel,
}

impl PagingState {
    /// Makes the state after reset: paging off (AMD APM vol. 2, section 14.1.3).
    #[inline]
    pub const fn reset(cpu: CpuModel) -> Self {
        Self {
            cr0: Cr0::ET.union(Cr0::CD).union(Cr0::NW),
            cr3: Cr3::new(0),
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            pkru: Pkru::new(0),
            pdptes: None,
            cpu,
        }
    }
    /// Returns the format in which the guest's tables are read (AMD APM vol. 2, section 5.1; Intel SDM vol. 3, section 4.1.1).
    #[inline]
    pub const fn format(&self) -> GuestFormat {
        if !self.cr0.contains(Cr0::PG) {
            GuestFormat::Off
        } else if !self.cr4.contains(Cr4::PAE) {
            GuestFormat::Bits32
        } else if !self.efer.contains(Efer::LMA) {
            GuestFormat::Pae
        } else if self.cr4.contains(Cr4::LA57) {
            GuestFormat::Level5
        } else {
            GuestFormat::Level4
        }
    }
    /// Returns the part of the state that decides the reading of entries and the judging of accesses.
    pub const fn mode(&self) -> PagingMode {
        let mut rules = PagingRules::empty();
        if self.efer.contains(Efer::NXE) {
            rules = rules.union(PagingRules::NX);
        }
        if self.cr4.contains(Cr4::PSE) {
            rules = rules.union(PagingRules::PSE);
        }
        if self.cr0.contains(Cr0::WP) {
            rules = rules.union(PagingRules::WP);
        }
        if self.cr4.contains(Cr4::SMEP) {
            rules = rules.union(PagingRules::SMEP);
        }
        if self.cr4.contains(Cr4::SMAP) {
            rules = rules.union(PagingRules::SMAP);
        }
        if self.cr4.contains(Cr4::PKE) {
            rules = rules.union(PagingRules::PKE);
        }
        PagingMode::new(self.format(), rules, self.cpu)
    }
}
