//! What becomes of NaNs (AMD APM vol. 1, sections 4.8.1 and 6.8.1; Intel SDM vol. 1, table 4-7).

use super::number::QUIET;
use super::{Class, Env, INVALID, Number, Unit};

/// Returns the result of an operation one of whose operands is a NaN; raises "invalid" for signaling ones.
#[cold]
pub(crate) fn of_two(env: &mut Env, a: Number, b: Number) -> Number {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return env.invalid();
    }
    if a.class == Class::Signaling || b.class == Class::Signaling {
        env.flags |= INVALID;
    }
    let chosen = match (a.is_nan(), b.is_nan(), env.unit) {
        (true, false, _) | (true, true, Unit::Sse) => a,
        (true, true, Unit::X87) => of_two_x87(a, b),
        _ => b,
    };
    quiet(chosen)
}

/// Chooses between two NaNs: a quiet one before a signaling one, then the larger significand, then the positive one.
fn of_two_x87(a: Number, b: Number) -> Number {
    match (a.class, b.class) {
        (Class::Quiet, Class::Signaling) => a,
        (Class::Signaling, Class::Quiet) => b,
        _ if a.significand > b.significand => a,
        _ if a.significand < b.significand => b,
        _ if a.sign => b,
        _ => a,
    }
}

/// Returns the result of an operation on one NaN.
#[cold]
pub(crate) fn of_one(env: &mut Env, a: Number) -> Number {
    of_two(env, a, Number::zero(false))
}

const fn quiet(mut nan: Number) -> Number {
    nan.significand |= QUIET;
    nan.class = Class::Quiet;
    nan
}
