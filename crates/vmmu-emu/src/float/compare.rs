//! Comparison.

use core::cmp::Ordering;

use super::{Class, Env, INVALID, Number};

/// Which NaNs make a comparison invalid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nans {
    /// Signaling ones.
    Quiet,
    /// All.
    Signal,
}

/// Compares; `None` is unordered.
pub(crate) fn compare(env: &mut Env, a: Number, b: Number, nans: Nans) -> Option<Ordering> {
    let (a, b) = (env.operand(a), env.operand(b));
    if a.is_nan() || b.is_nan() {
        let is_quiet = |n: &Number| !matches!(n.class, Class::Signaling | Class::Unsupported);
        if nans == Nans::Signal || !is_quiet(&a) || !is_quiet(&b) {
            env.flags |= INVALID;
        }
        return None;
    }
    env.note_denormal(&a);
    env.note_denormal(&b);
    Some(order(&a, &b))
}

fn order(a: &Number, b: &Number) -> Ordering {
    let by_size = |n: &Number| match n.class {
        Class::Zero => (0, 0, 0),
        Class::Finite => (1, n.exponent, n.significand),
        _ => (2, 0, 0),
    };
    let (x, y) = (by_size(a), by_size(b));
    match (a.sign, b.sign) {
        _ if x.0 == 0 && y.0 == 0 => Ordering::Equal,
        (false, false) => x.cmp(&y),
        (true, true) => y.cmp(&x),
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
    }
}
