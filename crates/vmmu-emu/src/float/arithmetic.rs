//! Addition, multiplication, division, square root.

use super::round::{Target, round, shift_right_sticky};
use super::{Class, DIVIDE, Env, Number, Rounding, nan};

/// A function of two numbers.
pub(crate) type Dyadic = fn(&mut Env, Number, Number, &Target) -> Number;

/// Adds.
pub(crate) fn add(env: &mut Env, a: Number, b: Number, target: &Target) -> Number {
    let (a, b) = (env.operand(a), env.operand(b));
    if a.is_nan() || b.is_nan() {
        return nan::of_two(env, a, b);
    }
    if a.class == Class::Infinity && b.class == Class::Infinity && a.sign != b.sign {
        return env.invalid();
    }
    env.note_denormal(&a);
    env.note_denormal(&b);
    match (a.class, b.class) {
        (Class::Infinity, _) => a,
        (_, Class::Infinity) => b,
        (Class::Zero, Class::Zero) if a.sign == b.sign => a,
        (Class::Zero, Class::Zero) => exact_zero(env),
        (Class::Zero, _) => rounded(env, b, target),
        (_, Class::Zero) => rounded(env, a, target),
        _ => add_finite(env, a, b, target),
    }
}

/// Subtracts.
pub(crate) fn sub(env: &mut Env, a: Number, mut b: Number, target: &Target) -> Number {
    // A NaN keeps its sign.
    b.sign ^= !b.is_nan();
    add(env, a, b, target)
}

/// Subtracts the other way round.
pub(crate) fn sub_reversed(env: &mut Env, a: Number, b: Number, target: &Target) -> Number {
    sub(env, b, a, target)
}

/// Returns the zero that a difference of equals is.
fn exact_zero(env: &Env) -> Number {
    Number::zero(env.rounding == Rounding::Down)
}

/// Rounds a number to the target: with less precision, or with a denormal operand.
pub(crate) fn rounded(env: &mut Env, a: Number, target: &Target) -> Number {
    round(
        env,
        a.sign,
        a.exponent,
        u128::from(a.significand) << 64,
        target,
    )
}

fn add_finite(env: &mut Env, a: Number, b: Number, target: &Target) -> Number {
    let (large, small) = if a.exponent >= b.exponent {
        (a, b)
    } else {
        (b, a)
    };
    // One bit above for the carry; 63 below, so that the sticky bit stays below the rounding bit.
    let x = u128::from(large.significand) << 63;
    let by = large.exponent.abs_diff(small.exponent);
    let y = shift_right_sticky(u128::from(small.significand) << 63, by);
    let (sign, sum) = if large.sign == small.sign {
        (large.sign, x + y)
    } else if x >= y {
        (large.sign, x - y)
    } else {
        (small.sign, y - x)
    };
    if sum == 0 {
        return exact_zero(env);
    }
    let zeros = sum.leading_zeros();
    let exponent = large.exponent + 1 - zeros as i32;
    round(env, sign, exponent, sum << zeros, target)
}

/// Multiplies.
pub(crate) fn mul(env: &mut Env, a: Number, b: Number, target: &Target) -> Number {
    let (a, b) = (env.operand(a), env.operand(b));
    if a.is_nan() || b.is_nan() {
        return nan::of_two(env, a, b);
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return env.invalid(),
        _ => {}
    }
    env.note_denormal(&a);
    env.note_denormal(&b);
    match (a.class, b.class) {
        (Class::Infinity, _) | (_, Class::Infinity) => Number::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => Number::zero(sign),
        _ => {
            let product = u128::from(a.significand) * u128::from(b.significand);
            let zeros = product.leading_zeros();
            let exponent = a.exponent + b.exponent + 1 - zeros as i32;
            round(env, sign, exponent, product << zeros, target)
        }
    }
}

/// Divides.
pub(crate) fn div(env: &mut Env, a: Number, b: Number, target: &Target) -> Number {
    let (a, b) = (env.operand(a), env.operand(b));
    if a.is_nan() || b.is_nan() {
        return nan::of_two(env, a, b);
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return env.invalid(),
        (Class::Finite, Class::Zero) => {
            env.flags |= DIVIDE;
            return Number::infinity(sign);
        }
        _ => {}
    }
    env.note_denormal(&a);
    env.note_denormal(&b);
    match (a.class, b.class) {
        (Class::Infinity, _) => Number::infinity(sign),
        (Class::Zero, _) | (_, Class::Infinity) => Number::zero(sign),
        _ => div_finite(env, sign, a, b, target),
    }
}

/// Divides the other way round.
pub(crate) fn div_reversed(env: &mut Env, a: Number, b: Number, target: &Target) -> Number {
    div(env, b, a, target)
}

fn div_finite(env: &mut Env, sign: bool, a: Number, b: Number, target: &Target) -> Number {
    let divisor = u128::from(b.significand);
    let dividend = u128::from(a.significand) << 64;
    let (high, rest) = (dividend / divisor, dividend % divisor);
    // 64 or 65 bits so far; 62 more, and the sticky bit.
    let (low, rest) = ((rest << 62) / divisor, (rest << 62) % divisor);
    let quotient = high << 62 | low | u128::from(rest != 0);
    let zeros = quotient.leading_zeros();
    let exponent = a.exponent - b.exponent + 1 - zeros as i32;
    round(env, sign, exponent, quotient << zeros, target)
}

/// Takes the square root.
pub(crate) fn sqrt(env: &mut Env, a: Number, target: &Target) -> Number {
    let a = env.operand(a);
    match a.class {
        Class::Zero => a,
        Class::Infinity if !a.sign => a,
        Class::Finite if !a.sign => sqrt_finite(env, a, target),
        Class::Infinity | Class::Finite => env.invalid(),
        _ => nan::of_one(env, a),
    }
}

fn sqrt_finite(env: &mut Env, a: Number, target: &Target) -> Number {
    env.note_denormal(&a);
    // Below 4 and an even exponent: the root is at least 1 and has its top bit set.
    let odd = a.exponent & 1;
    let radicand = u128::from(a.significand) << (63 + odd);
    let root = radicand.isqrt();
    let rest = radicand - root * root;
    // The next bit is set if the rest exceeds (root + 1/2)^2 - root^2; the root of an integer is never half-way.
    let below = u128::from(rest > root) << 63 | u128::from(rest != 0);
    let exponent = (a.exponent - odd) / 2;
    round(env, false, exponent, root << 64 | below, target)
}
