//! Conversions from and to integers, and rounding to integral values.

use super::round::{Target, round};
use super::{Class, Env, INEXACT, INVALID, Number, ROUNDED_UP, Rounding, nan};

/// Converts an integer.
pub(crate) fn from_integer(env: &mut Env, value: i64, target: &Target) -> Number {
    if value == 0 {
        return Number::zero(false);
    }
    let magnitude = u128::from(value.unsigned_abs());
    let zeros = magnitude.leading_zeros();
    round(
        env,
        value < 0,
        127 - zeros as i32,
        magnitude << zeros,
        target,
    )
}

/// A finite number's magnitude as an integer, rounded, and whether that was exact.
struct Integral {
    magnitude: u128,
    inexact: bool,
    up: bool,
}

/// Rounds a finite number below 2^64 to an integer.
fn integral(a: &Number, rounding: Rounding) -> Integral {
    const HALF: u128 = 1 << 127;
    let value = u128::from(a.significand) << 64;
    // The integer part, and the fraction at the top of a word.
    let (whole, fraction) = match a.exponent {
        0..=63 => {
            let bits = a.exponent as u32 + 1;
            (value >> (128 - bits), value << bits)
        }
        -1 => (0, value),
        // Less than half: only that there is something counts.
        _ => (0, 1),
    };
    let up = match rounding {
        Rounding::Nearest => fraction > HALF || fraction == HALF && whole & 1 != 0,
        Rounding::Down => a.sign && fraction != 0,
        Rounding::Up => !a.sign && fraction != 0,
        Rounding::Zero => false,
    };
    Integral {
        magnitude: whole + u128::from(up),
        inexact: fraction != 0,
        up,
    }
}

/// Converts to a signed integer of `bits`; what does not fit is invalid and becomes the least one (AMD APM vol. 1, section 4.8.2).
pub(crate) fn to_integer(env: &mut Env, a: Number, bits: u32, rounding: Rounding) -> i64 {
    let least = i64::MIN >> (64 - bits);
    let a = env.operand(a);
    let integral = match a.class {
        Class::Zero => return 0,
        Class::Finite if a.exponent < 64 => integral(&a, rounding),
        _ => {
            env.flags |= INVALID;
            return least;
        }
    };
    let limit = least.unsigned_abs() as u128 - u128::from(!a.sign);
    if integral.magnitude > limit {
        env.flags |= INVALID;
        return least;
    }
    note(env, &integral);
    let value = integral.magnitude as i64;
    if a.sign { value.wrapping_neg() } else { value }
}

const fn note(env: &mut Env, integral: &Integral) {
    if integral.inexact {
        env.flags |= INEXACT;
    }
    if integral.up {
        env.flags |= ROUNDED_UP;
    }
}

/// Rounds to an integral value in the same format: FRNDINT.
pub(crate) fn round_to_integral(env: &mut Env, a: Number) -> Number {
    match a.class {
        Class::Zero | Class::Infinity => return a,
        Class::Finite => env.note_denormal(&a),
        _ => return nan::of_one(env, a),
    }
    if a.exponent >= 63 {
        return a;
    }
    let integral = integral(&a, env.rounding);
    note(env, &integral);
    if integral.magnitude == 0 {
        return Number::zero(a.sign);
    }
    let zeros = integral.magnitude.leading_zeros();
    let significand = (integral.magnitude << zeros >> 64) as u64;
    Number::finite(a.sign, 127 - zeros as i32, significand)
}
