//! Binary floating-point arithmetic as the x87 and SSE units do it, exact in results and in flags.
//!
//! One implementation for 24, 53 and 64 bits: operands are unpacked into a [`Number`], an operation yields a result of up to 128 bits with a sticky
//! bit, and [`round`](round::round) makes it a [`Number`] of the target's precision. General libraries for IEEE 754 lack what software sees here:
//! the precision control, the direction of rounding in C1, tininess detected after rounding, zeros for denormal numbers, results of unmasked exceptions.
//!
//! - [`Env`]: rounding, masks and rules of the unit; it collects the flags.
//! - [`arithmetic`]: add, multiply, divide, square root. [`remainder`]: FPREM, FSCALE, FXTRACT. [`compare`]. [`integer`]: conversions. [`series`]:
//!   transcendental functions. [`nan`]: what becomes of NaNs.
//!
//! Invariants:
//! 1. An operand that is finite and not zero is normalised: its significand has the top bit set.
//! 2. A result has a clear top bit only if it is denormal in its target, and then the target's least exponent.

pub(crate) mod arithmetic;
pub(crate) mod compare;
pub(crate) mod integer;
pub(crate) mod nan;
pub(crate) mod number;
pub(crate) mod remainder;
pub(crate) mod round;
pub(crate) mod series;
pub(crate) mod wide;

pub(crate) use number::{Class, Double, Format, Number, Single};
pub(crate) use round::Target;

/// Bits of FSW and MXCSR, and of their masks: an invalid operation.
pub(crate) const INVALID: u16 = 1 << 0;
/// A denormal operand.
pub(crate) const DENORMAL: u16 = 1 << 1;
/// A division by zero.
pub(crate) const DIVIDE: u16 = 1 << 2;
/// An overflow.
pub(crate) const OVERFLOW: u16 = 1 << 3;
/// An underflow.
pub(crate) const UNDERFLOW: u16 = 1 << 4;
/// An inexact result ("precision").
pub(crate) const INEXACT: u16 = 1 << 5;
/// All of them.
pub(crate) const ALL: u16 = 0x3f;
/// FSW.C1: the result was rounded away from zero.
pub(crate) const ROUNDED_UP: u16 = 1 << 9;

/// The rounding mode, as FCW and MXCSR encode it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

impl Rounding {
    /// Decodes the field.
    #[inline(always)]
    pub(crate) const fn new(field: u32) -> Self {
        match field & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// The unit, which decides about NaNs (AMD APM vol. 1, sections 4.8.1 and 6.8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Of two NaNs the first counts.
    Sse,
    /// Of two NaNs the larger counts.
    X87,
}

/// What an operation depends on besides its operands, and the flags that it raises.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env {
    pub(crate) rounding: Rounding,
    pub(crate) unit: Unit,
    /// The exceptions that are masked.
    pub(crate) masks: u16,
    /// MXCSR.DAZ: denormal operands are zeros.
    pub(crate) zero_operands: bool,
    /// MXCSR.FZ: tiny results are zeros, if underflow is masked.
    pub(crate) zero_results: bool,
    /// What was raised so far, [`ROUNDED_UP`] included.
    pub(crate) flags: u16,
}

impl Env {
    /// Returns the environment that MXCSR describes.
    #[inline(always)]
    pub(crate) const fn sse(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::new(mxcsr >> 13),
            unit: Unit::Sse,
            masks: (mxcsr >> 7) as u16 & ALL,
            zero_operands: mxcsr & 1 << 6 != 0,
            zero_results: mxcsr & 1 << 15 != 0,
            flags: 0,
        }
    }

    /// Returns the environment that FCW describes.
    pub(crate) const fn x87(control: u16) -> Self {
        Self {
            rounding: Rounding::new(control as u32 >> 10),
            unit: Unit::X87,
            masks: control & ALL,
            zero_operands: false,
            zero_results: false,
            flags: 0,
        }
    }

    /// Returns the flags raised that are not masked.
    #[inline(always)]
    pub(crate) const fn unmasked(&self) -> u16 {
        self.flags & !self.masks & ALL
    }

    /// Returns an operand as the operation sees it.
    #[inline(always)]
    pub(crate) const fn operand(&self, number: Number) -> Number {
        if self.zero_operands && number.denormal {
            Number::zero(number.sign)
        } else {
            number
        }
    }

    /// Raises a flag if an operand is denormal.
    #[inline(always)]
    pub(crate) const fn note_denormal(&mut self, number: &Number) {
        if number.denormal {
            self.flags |= DENORMAL;
        }
    }

    /// Raises an invalid operation; returns its result.
    pub(crate) const fn invalid(&mut self) -> Number {
        self.flags |= INVALID;
        Number::INDEFINITE
    }
}
