//! FPREM and FPREM1, scaling, and taking a number apart.

use super::number::INTEGER;
use super::round::{Target, round};
use super::{Class, DIVIDE, Env, INEXACT, Number, OVERFLOW, ROUNDED_UP, UNDERFLOW, nan};

/// How the quotient is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Quotient {
    /// Towards zero: FPREM.
    Truncated,
    /// To the nearest: FPREM1.
    Nearest,
}

/// A remainder.
pub(crate) enum Remainder {
    /// It is complete, and these are the quotient's low bits.
    Complete(Number, u64),
    /// The dividend was only reduced.
    Partial(Number),
    /// There is none: an operand is a NaN, or the division makes no sense.
    None(Number),
}

/// Computes the remainder of a division, or if the exponents are far apart reduces the dividend (AMD APM vol. 5, FPREM).
pub(crate) fn remainder(env: &mut Env, a: Number, b: Number, rounding: Quotient) -> Remainder {
    if a.is_nan() || b.is_nan() {
        return Remainder::None(nan::of_two(env, a, b));
    }
    if a.class == Class::Infinity || b.class == Class::Zero {
        return Remainder::None(env.invalid());
    }
    env.note_denormal(&a);
    env.note_denormal(&b);
    if a.class == Class::Zero {
        return Remainder::Complete(a, 0);
    }
    let apart = a.exponent - b.exponent;
    if b.class == Class::Infinity || apart < -1 {
        let same = super::arithmetic::rounded(env, a, &Target::EXTENDED);
        return Remainder::Complete(same, 0);
    }
    // Bits of the quotient that one execution computes: all, or 32 to 63.
    let bits = if apart < 64 { apart } else { 32 + apart % 32 };
    let (rest, quotient) = divide(a.significand, b.significand, bits);
    // The rest and the divisor, with one bit below.
    let divisor = u128::from(b.significand) << 1;
    let up = rounding == Quotient::Nearest
        && apart < 64
        && (2 * rest > divisor || 2 * rest == divisor && quotient & 1 != 0);
    let rest = if up { divisor - rest } else { rest };
    let number = if rest == 0 {
        Number::zero(a.sign)
    } else {
        let zeros = rest.leading_zeros();
        let exponent = b.exponent + (apart - bits) + 63 - zeros as i32;
        round(
            env,
            a.sign != up,
            exponent,
            rest << zeros,
            &Target::EXTENDED,
        )
    };
    if apart < 64 {
        Remainder::Complete(number, quotient.wrapping_add(u64::from(up)))
    } else {
        Remainder::Partial(number)
    }
}

/// Divides significands, the dividend `bits` places (at least -1) above the divisor; returns the rest with one bit below, and the quotient's low bits.
fn divide(dividend: u64, divisor: u64, bits: i32) -> (u128, u64) {
    let divisor = u128::from(divisor) << 1;
    let mut rest = u128::from(dividend);
    let mut quotient = 0u64;
    for _ in -1..bits {
        rest <<= 1;
        quotient <<= 1;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1;
        }
    }
    (rest, quotient)
}

/// Multiplies by a power of two, the second operand truncated: FSCALE.
pub(crate) fn scale(env: &mut Env, a: Number, b: Number) -> Number {
    if a.is_nan() || b.is_nan() {
        return nan::of_two(env, a, b);
    }
    match (a.class, b.class, b.sign) {
        (Class::Zero, Class::Infinity, false) | (Class::Infinity, Class::Infinity, true) => {
            return env.invalid();
        }
        _ => {}
    }
    env.note_denormal(&a);
    env.note_denormal(&b);
    match (a.class, b.class, b.sign) {
        (Class::Zero | Class::Infinity, _, _) => a,
        (_, Class::Infinity, false) => Number::infinity(a.sign),
        (_, Class::Infinity, true) => Number::zero(a.sign),
        (_, Class::Zero, _) => super::arithmetic::rounded(env, a, &Target::EXTENDED),
        _ => scale_finite(env, a, b),
    }
}

fn scale_finite(env: &mut Env, mut a: Number, b: Number) -> Number {
    // Beyond every exponent, but far from overflow.
    const FAR: i32 = 1 << 17;
    let magnitude = match b.exponent {
        ..0 => 0,
        e @ 0..17 => (b.significand >> (63 - e)) as i32,
        _ => FAR,
    };
    a.exponent += if b.sign { -magnitude } else { magnitude };
    let result = super::arithmetic::rounded(env, a, &Target::EXTENDED);
    // What even the adjusted exponent of an unmasked exception does not hold.
    if !result.is_finite() || (-16382..=16383).contains(&result.exponent) {
        result
    } else if env.flags & OVERFLOW != 0 {
        env.flags |= INEXACT | ROUNDED_UP;
        Number::infinity(a.sign)
    } else {
        env.flags |= UNDERFLOW | INEXACT;
        Number::zero(a.sign)
    }
}

/// Returns the exponent and the significand, each as a number: FXTRACT.
pub(crate) fn extract(env: &mut Env, a: Number) -> (Number, Number) {
    match a.class {
        Class::Zero => {
            env.flags |= DIVIDE;
            (Number::infinity(true), a)
        }
        Class::Infinity => (Number::infinity(false), a),
        Class::Finite => {
            env.note_denormal(&a);
            let mut unused = *env;
            let exponent =
                super::integer::from_integer(&mut unused, a.exponent.into(), &Target::EXTENDED);
            (exponent, Number::finite(a.sign, 0, a.significand | INTEGER))
        }
        _ => {
            let nan = nan::of_one(env, a);
            (nan, nan)
        }
    }
}
