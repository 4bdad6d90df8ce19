//! RFLAGS.

bitflags::bitflags! {
    /// RFLAGS (AMD APM vol. 1, section 3.1.4 and vol. 2, section 3.1.6).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Flags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always set.
        const ONE = 1 << 1;
        /// Parity of the low byte.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap after each instruction.
        const TF = 1 << 8;
        /// Interrupts enabled.
        const IF = 1 << 9;
        /// String instructions go down.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// The I/O privilege level, two bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: no instruction breakpoint for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, or access control under SMAP.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID exists.
        const ID = 1 << 21;
    }
}

impl Flags {
    /// What arithmetic sets.
    pub const ARITHMETIC: Self = Self::CF
        .union(Self::PF)
        .union(Self::AF)
        .union(Self::ZF)
        .union(Self::SF)
        .union(Self::OF);

    /// Replaces the flags of `mask` by those of `flags`, which has no others.
    #[inline(always)]
    pub(crate) const fn replace(&mut self, mask: Self, flags: Self) {
        *self = self.difference(mask).union(flags);
    }

    /// Returns the I/O privilege level.
    #[must_use]
    pub const fn iopl(self) -> u8 {
        (self.bits() >> 12 & 3) as u8
    }
}
