//! What a processor offers, as far as instructions and register writes depend on it.
//!
//! Key types: [`Features`], [`Instructions`].

bitflags::bitflags! {
    /// Instructions that a processor may lack; then they raise #UD.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Instructions: u32 {
        /// RDTSCP.
        const RDTSCP = 1 << 0;
        /// RDPID.
        const RDPID = 1 << 1;
        /// INVPCID.
        const INVPCID = 1 << 2;
        /// MONITOR and MWAIT, which wait for nothing: a spurious wake-up is always allowed.
        const MONITOR = 1 << 3;
        /// SYSENTER and SYSEXIT in long mode too, as Intel's processors have them.
        const LONG_SYSENTER = 1 << 4;
    }
}

/// What a processor offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// The bits of CR4 that may be set.
    pub cr4: u64,
    /// The bits of EFER that may be set.
    pub efer: u64,
    /// The width of a physical address in bits: MAXPHYADDR.
    pub physical_bits: u8,
    /// Optional instructions.
    pub instructions: Instructions,
}

impl Features {
    /// A 64-bit processor with SSE2, SMEP, SMAP, UMIP and FSGSBASE: no XSAVE, no protection keys, 4-level paging.
    pub const BASELINE: Self = Self {
        // TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, SMEP, SMAP.
        cr4: 0x0031_0ffc,
        // SCE, LME, LMA, NXE.
        efer: 0xd01,
        physical_bits: 46,
        instructions: Instructions::RDTSCP,
    };
}
