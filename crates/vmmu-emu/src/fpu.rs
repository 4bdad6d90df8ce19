//! The registers of the floating-point and vector units.
//!
//! Key types: [`Fpu`], [`Extended`].
//!
//! Invariants:
//! 1. `registers` are physical: ST(i) is `registers[(TOP + i) % 8]`, MM(i) is the significand of `registers[i]`.
//! 2. `in_use` has a bit for each physical register that is not empty, as FXSAVE stores it; the full tag word derives from it and the values.
//! 3. MXCSR has no reserved bit set; FCW has bit 6 set and bits 7 and 13 to 15 clear.
//! 4. FSW's exception summary and busy bits are set if and only if a flag that FCW does not mask is set.

/// An 80-bit floating-point number, or an MMX register in its significand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extended {
    /// The significand, with the integer bit at the top.
    pub significand: u64,
    /// The sign at bit 15, and the exponent, biased by 16383.
    pub sign_exponent: u16,
}

/// The registers of the x87 unit, MMX and SSE (AMD APM vol. 1, sections 4.3, 5.4, 6.2; vol. 2, section 11.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fpu {
    /// The physical x87 registers.
    pub registers: [Extended; 8],
    /// Which physical registers are not empty, a bit each.
    pub in_use: u8,
    /// The control word.
    pub control: u16,
    /// The status word, TOP included.
    pub status: u16,
    /// The opcode of the last x87 instruction that was not a control instruction: 11 bits.
    pub opcode: u16,
    /// Its address, and in legacy formats its code segment.
    pub instruction: (u16, u64),
    /// The address of its memory operand, and in legacy formats that one's segment.
    pub data: (u16, u64),
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl Fpu {
    /// The bits of MXCSR that exist, as FXSAVE tells.
    pub const MXCSR_MASK: u32 = 0xffff;
    /// FCW after FNINIT: all exceptions masked, 64-bit precision, to nearest.
    pub(crate) const INITIAL_CONTROL: u16 = 0x37f;

    /// Returns the state after a reset (AMD APM vol. 2, section 14.1.3).
    #[must_use]
    pub const fn reset() -> Self {
        let zero = Extended {
            significand: 0,
            sign_exponent: 0,
        };
        Self {
            registers: [zero; 8],
            in_use: 0xff,
            control: 0x40,
            status: 0,
            opcode: 0,
            instruction: (0, 0),
            data: (0, 0),
            xmm: [0; 16],
            mxcsr: 0x1f80,
        }
    }

    /// Does what FNINIT does: the values of the registers stay (AMD APM vol. 5, FINIT).
    pub(crate) const fn initialize(&mut self) {
        self.control = Self::INITIAL_CONTROL;
        self.status = 0;
        self.in_use = 0;
        self.opcode = 0;
        self.instruction = (0, 0);
        self.data = (0, 0);
    }

    /// Returns which physical register is the stack's top.
    #[inline(always)]
    #[must_use]
    pub const fn top(&self) -> u8 {
        (self.status >> 11 & 7) as u8
    }

    /// Moves the stack's top.
    #[inline(always)]
    pub(crate) const fn set_top(&mut self, top: u8) {
        self.status = self.status & !0x3800 | (top as u16 & 7) << 11;
    }

    /// Returns the physical number of ST(i).
    #[inline(always)]
    pub(crate) const fn physical(&self, i: u8) -> u8 {
        self.top().wrapping_add(i) & 7
    }

    /// Returns ST(i), empty or not.
    #[inline(always)]
    #[must_use]
    pub const fn st(&self, i: u8) -> Extended {
        self.registers[self.physical(i) as usize]
    }

    /// Replaces the control word.
    pub(crate) const fn set_control(&mut self, control: u16) {
        self.control = control & 0x1f3f | 0x40;
        self.summarize();
    }

    /// Replaces the status word; the summary follows from it and the control word.
    pub(crate) const fn set_status(&mut self, status: u16) {
        self.status = status;
        self.summarize();
    }

    /// Derives the exception summary and the busy bit (AMD APM vol. 1, section 6.2.2).
    pub(crate) const fn summarize(&mut self) {
        let pending = self.status & !self.control & 0x3f != 0;
        self.status = self.status & 0x7f7f | if pending { 0x8080 } else { 0 };
    }

    /// Says whether an unmasked x87 exception waits to be raised.
    #[inline(always)]
    pub(crate) const fn has_pending(&self) -> bool {
        self.status & 0x80 != 0
    }

    /// Returns the full tag word: 00 valid, 01 zero, 10 special, 11 empty for each register (AMD APM vol. 1, section 6.2.4).
    pub(crate) fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, i| word | self.tag(i) << (2 * i))
    }

    fn tag(&self, physical: u8) -> u16 {
        if self.in_use & 1 << physical == 0 {
            return 3;
        }
        let register = self.registers[physical as usize];
        match (register.sign_exponent & 0x7fff, register.significand) {
            (0, 0) => 1,
            (0 | 0x7fff, _) => 2,
            (_, significand) if significand >> 63 == 0 => 2,
            _ => 0,
        }
    }

    /// Takes over a full tag word: only "empty" counts, the rest follows from the values.
    pub(crate) fn set_tag_word(&mut self, word: u16) {
        self.in_use = (0..8).fold(0, |bits, i| bits | u8::from(word >> (2 * i) & 3 != 3) << i);
    }
}

#[cfg(test)]
mod derived_registers {
    use super::{Extended, Fpu};

    #[test]
    fn tags_follow_from_values() {
        let mut fpu = Fpu::reset();
        assert_eq!(fpu.tag_word(), 0x5555);
        fpu.in_use = 0b111;
        fpu.registers[1] = Extended {
            significand: 1 << 63,
            sign_exponent: 0x3fff,
        };
        fpu.registers[2].sign_exponent = 0x7fff;
        assert_eq!(fpu.tag_word(), 0xffe1);
        fpu.set_tag_word(0x3fff);
        assert_eq!(fpu.in_use, 0x80);
    }

    #[test]
    fn the_summary_follows_from_flags_and_masks() {
        let mut fpu = Fpu::reset();
        fpu.initialize();
        fpu.set_status(1);
        assert!(!fpu.has_pending());
        fpu.set_control(0x37e);
        assert!(fpu.has_pending());
        assert_eq!(fpu.status, 0x8081);
    }
}
