//! Rounding to a target's precision and range (AMD APM vol. 1, sections 4.10 and 6.8).
//!
//! Key type: [`Target`]; key function: [`round`].

use super::number::{INTEGER, Number};
use super::{Env, INEXACT, OVERFLOW, ROUNDED_UP, Rounding, UNDERFLOW};

/// A precision and a range of exponents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// Bits of the significand, the integer bit included.
    pub(crate) precision: u32,
    /// The least exponent of a normalised number.
    pub(crate) min: i32,
    /// The largest exponent.
    pub(crate) max: i32,
    /// What an unmasked overflow subtracts from the exponent and an underflow adds.
    pub(crate) adjust: i32,
}

impl Target {
    /// The extended format, at the precision that FCW's control asks for; the range does not change (AMD APM vol. 1, section 6.2.3).
    pub(crate) const fn extended(control: u16) -> Self {
        let precision = match control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Self {
            precision,
            ..Self::EXTENDED
        }
    }

    /// The extended format at its full precision.
    pub(crate) const EXTENDED: Self = Self {
        precision: 64,
        min: -16382,
        max: 16383,
        adjust: 24576,
    };

    /// Returns the largest finite number.
    const fn largest(&self, sign: bool) -> Number {
        Number::finite(sign, self.max, u64::MAX << (64 - self.precision))
    }
}

/// A significand cut to a precision.
struct Cut {
    /// Aligned to the top.
    significand: u64,
    /// It was rounded up to the next power of two.
    carry: bool,
    inexact: bool,
    up: bool,
}

#[inline(always)]
fn cut(sign: bool, significand: u128, precision: u32, rounding: Rounding) -> Cut {
    const HALF: u128 = 1 << 127;
    let rest = significand << precision;
    let kept = (significand >> (128 - precision)) as u64;
    let inexact = rest != 0;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || rest == HALF && kept & 1 != 0,
        Rounding::Down => sign && inexact,
        Rounding::Up => !sign && inexact,
        Rounding::Zero => false,
    };
    // With 64 bits of precision a carry leaves 0.
    let sum = kept.wrapping_add(u64::from(up));
    let carry = up && sum & (u64::MAX >> (64 - precision)) == 0;
    Cut {
        significand: if carry {
            INTEGER
        } else {
            sum << (64 - precision)
        },
        carry,
        inexact,
        up,
    }
}

/// Shifts right; bits lost stay as the lowest one.
#[inline(always)]
pub(crate) const fn shift_right_sticky(value: u128, by: u32) -> u128 {
    if by == 0 {
        value
    } else if by < 128 {
        value >> by | (value << (128 - by) != 0) as u128
    } else {
        (value != 0) as u128
    }
}

/// Rounds `significand / 2^127 * 2^exponent`, whose top bit is set and whose lowest one stands for all that is below.
#[inline(always)]
pub(crate) fn round(
    env: &mut Env,
    sign: bool,
    exponent: i32,
    significand: u128,
    target: &Target,
) -> Number {
    let unbounded = cut(sign, significand, target.precision, env.rounding);
    let rounded_exponent = exponent + i32::from(unbounded.carry);
    if rounded_exponent > target.max {
        return overflow(env, sign, rounded_exponent, &unbounded, target);
    }
    if rounded_exponent < target.min {
        return underflow(env, sign, exponent, significand, &unbounded, target);
    }
    note(env, &unbounded);
    Number::finite(sign, rounded_exponent, unbounded.significand)
}

#[inline(always)]
fn note(env: &mut Env, cut: &Cut) {
    if cut.inexact {
        env.flags |= INEXACT;
    }
    if cut.up {
        env.flags |= ROUNDED_UP;
    }
}

#[cold]
fn overflow(env: &mut Env, sign: bool, exponent: i32, cut: &Cut, target: &Target) -> Number {
    env.flags |= OVERFLOW;
    if env.masks & OVERFLOW == 0 {
        note(env, cut);
        return Number::finite(sign, exponent - target.adjust, cut.significand);
    }
    env.flags |= INEXACT;
    let to_infinity = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    if to_infinity {
        env.flags |= ROUNDED_UP;
        Number::infinity(sign)
    } else {
        target.largest(sign)
    }
}

/// Rounds what is tiny after rounding without bounds.
#[cold]
fn underflow(
    env: &mut Env,
    sign: bool,
    exponent: i32,
    significand: u128,
    unbounded: &Cut,
    target: &Target,
) -> Number {
    if env.masks & UNDERFLOW == 0 {
        env.flags |= UNDERFLOW;
        note(env, unbounded);
        let exponent = exponent + i32::from(unbounded.carry) + target.adjust;
        return Number::finite(sign, exponent, unbounded.significand);
    }
    if env.zero_results {
        env.flags |= UNDERFLOW | INEXACT;
        return Number::zero(sign);
    }
    let shifted = shift_right_sticky(significand, target.min.abs_diff(exponent));
    let denormal = cut(sign, shifted, target.precision, env.rounding);
    note(env, &denormal);
    if denormal.inexact {
        env.flags |= UNDERFLOW;
    }
    if denormal.significand == 0 {
        return Number::zero(sign);
    }
    Number::finite(sign, target.min, denormal.significand)
}
