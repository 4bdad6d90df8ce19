//! The register stack and its exceptions (AMD APM vol. 1, sections 6.2.2 and 6.8.3).
//!
//! Invariant: whoever sets flags goes through [`Fpu::raise`] or [`Fpu::add`], so that the summary stays right.

use crate::float::{DENORMAL, DIVIDE, Env, INVALID, Number, ROUNDED_UP, Target};
use crate::fpu::{Extended, Fpu};

/// FSW.SF: the invalid operation was one of the stack.
const STACK: u16 = 1 << 6;
/// The flags that operands raise; one that is not masked prevents the result.
const OF_OPERANDS: u16 = INVALID | DENORMAL | DIVIDE;

/// Whether an instruction removes the stack's top.
pub(super) trait Pops {
    /// How many registers it removes.
    const COUNT: u32;
}
/// Not at all.
pub(super) struct Keep;
impl Pops for Keep {
    const COUNT: u32 = 0;
}
/// Once.
pub(super) struct Pop;
impl Pops for Pop {
    const COUNT: u32 = 1;
}
/// Twice.
pub(super) struct PopTwice;
impl Pops for PopTwice {
    const COUNT: u32 = 2;
}

impl Fpu {
    /// Returns the environment of arithmetic.
    pub(super) const fn env(&self) -> Env {
        Env::x87(self.control)
    }

    /// Returns what results are rounded to.
    pub(super) const fn target(&self) -> Target {
        Target::extended(self.control)
    }

    /// Returns ST(i), if it is not empty.
    #[inline(always)]
    pub(super) fn get(&self, i: u8) -> Option<Extended> {
        let physical = self.physical(i);
        (self.in_use & 1 << physical != 0).then(|| self.registers[physical as usize])
    }

    /// Returns ST(i) as a number, if it is not empty.
    pub(super) fn number(&self, i: u8) -> Option<Number> {
        self.get(i).map(Extended::unpack)
    }

    /// Replaces ST(i).
    #[inline(always)]
    pub(super) fn set(&mut self, i: u8, value: Extended) {
        let physical = self.physical(i);
        self.registers[physical as usize] = value;
        self.in_use |= 1 << physical;
    }

    /// Empties ST(i).
    pub(super) fn free(&mut self, i: u8) {
        self.in_use &= !(1 << self.physical(i));
    }

    /// Removes as many registers as the instruction does.
    pub(super) fn pop<P: Pops>(&mut self) {
        for _ in 0..P::COUNT {
            self.free(0);
            self.set_top(self.top() + 1);
        }
    }

    /// Takes over flags; C1 says whether the result was rounded up.
    pub(super) fn raise(&mut self, flags: u16) {
        self.status &= !ROUNDED_UP;
        self.add(flags);
    }

    /// Takes over flags; C1 stays if it is set.
    pub(super) fn add(&mut self, flags: u16) {
        self.status |= flags & (ROUNDED_UP | 0x7f);
        self.summarize();
    }

    /// Takes over the flags of operands, and says whether the result may be written.
    pub(super) fn may_write(&mut self, env: &Env) -> bool {
        if env.unmasked() & OF_OPERANDS == 0 {
            self.raise(env.flags);
            return true;
        }
        self.raise(env.flags & OF_OPERANDS);
        false
    }

    /// Raises a stack underflow; says whether it is masked, so that the result is the indefinite number.
    pub(super) fn underflow(&mut self) -> bool {
        self.raise(INVALID | STACK);
        self.control & INVALID != 0
    }

    /// Pushes a register, which becomes the indefinite number if the stack is full and that is masked.
    pub(super) fn push(&mut self, value: Extended) {
        if self.get(7).is_none() {
            self.force_push(value);
        } else if self.overflow() {
            self.force_push(Extended::INDEFINITE);
        }
    }

    /// Pushes a register, whether or not there is room.
    pub(super) fn force_push(&mut self, value: Extended) {
        self.set_top(self.top().wrapping_sub(1));
        self.set(0, value);
    }

    /// Raises a stack overflow; says whether it is masked.
    fn overflow(&mut self) -> bool {
        self.raise(INVALID | STACK | ROUNDED_UP);
        self.control & INVALID != 0
    }

    /// Does what a full stack does to an instruction that replaces ST(0) and pushes.
    pub(super) fn overflow_both(&mut self) {
        if self.overflow() {
            self.set(0, Extended::INDEFINITE);
            self.force_push(Extended::INDEFINITE);
        }
    }

    /// Writes a result to ST(i), unless an exception prevents it; says whether it did.
    pub(super) fn write(&mut self, i: u8, result: &Number, env: &Env) -> bool {
        let may = self.may_write(env);
        if may {
            self.set(i, Extended::pack(result));
        }
        may
    }

    /// Does what an empty operand of an instruction with its result in ST(i) does; says whether that was to write.
    pub(super) fn write_empty(&mut self, i: u8) -> bool {
        let masked = self.underflow();
        if masked {
            self.set(i, Extended::INDEFINITE);
        }
        masked
    }

    /// Writes a result, and pops if it did.
    pub(super) fn finish<P: Pops>(&mut self, i: u8, result: &Number, env: &Env) {
        if self.write(i, result, env) {
            self.pop::<P>();
        }
    }

    /// As [`Fpu::finish`], for an empty operand.
    pub(super) fn finish_empty<P: Pops>(&mut self, i: u8) {
        if self.write_empty(i) {
            self.pop::<P>();
        }
    }
}

impl Extended {
    /// The result of an invalid operation.
    pub(super) const INDEFINITE: Self = Self {
        significand: 3 << 62,
        sign_exponent: 0xffff,
    };
}
