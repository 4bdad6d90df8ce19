//! Transcendental functions by their power series, in [`Wide`] arithmetic: the results are within a little more than half a unit in the last place.
//!
//! Arguments are finite and not zero; infinities, zeros and NaNs are the caller's.

use super::Number;
use super::wide::Wide;

/// Returns `2^x - 1`, for |x| up to 1.
pub(crate) fn exp2_minus_1(x: &Number) -> Wide {
    // r (1 + r/2 (1 + r/3 (...)))
    let r = Wide::of(x).mul(Wide::LN_2);
    let sum = (2..28)
        .rev()
        .fold(Wide::ONE, |sum, n| Wide::ONE.add(r.mul(sum).div_small(n)));
    r.mul(sum)
}

/// Returns log2 of a positive number; it is 0 for 1.
pub(crate) fn log2(x: &Number) -> Wide {
    let mut m = Wide::of(x).abs();
    let mut exponent = m.exponent;
    m.exponent = 0;
    // Between sqrt(1/2) and sqrt(2), so that nothing cancels in the sum.
    if x.significand > 0xb504_f333_f9de_6484 {
        m.exponent = -1;
        exponent += 1;
    }
    let fraction = two_artanh(m.sub(Wide::ONE), m.add(Wide::ONE));
    Wide::of_integer(exponent).add(fraction)
}

/// Returns log2 of `1 + x`, for x above -1.
pub(crate) fn log2_plus_1(x: &Number) -> Wide {
    let x = Wide::of(x);
    if x.exponent < -1 {
        return two_artanh(x, x.add(Wide::ONE.scale(1)));
    }
    let mut m = x.add(Wide::ONE);
    let exponent = m.exponent;
    m.exponent = 0;
    // Up to 2: the series still converges by 3 bits a term.
    Wide::of_integer(exponent).add(two_artanh(m.sub(Wide::ONE), m.add(Wide::ONE)))
}

/// Returns `2 artanh(a / b) / ln 2`, for |a / b| up to 1/3.
fn two_artanh(a: Wide, b: Wide) -> Wide {
    let z = a.div(b);
    let square = z.mul(z);
    // 1 + z^2/3 + z^4/5 + ...
    let mut power = Wide::ONE;
    let mut sum = Wide::ONE;
    for n in 1..38 {
        power = power.mul(square);
        sum = sum.add(power.div_small(2 * n + 1));
    }
    z.mul(sum).mul(Wide::TWO_LOG2_E)
}

/// An angle reduced to at most a quarter of pi, and the number of right angles taken away, modulo 4.
pub(crate) struct Reduced {
    rest: Wide,
    right_angles: u32,
}

/// Half of pi as x87 units reduce arguments: 66 bits of it (Intel SDM vol. 1, section 8.3.8), here times 2^65.
const HALF_PI: u128 = 0x3_243f_6a88_85a3_08d3;

/// Reduces an angle below 2^63.
pub(crate) fn reduce(x: &Number) -> Reduced {
    if x.exponent < -1 {
        return Reduced {
            rest: Wide::of(x),
            right_angles: 0,
        };
    }
    let mut rest = u128::from(x.significand) << 1;
    let mut quotient = 0u32;
    for _ in -1..x.exponent {
        rest <<= 1;
        quotient <<= 1;
        if rest >= HALF_PI {
            rest -= HALF_PI;
            quotient |= 1;
        }
    }
    let over = 2 * rest > HALF_PI;
    if over {
        rest = HALF_PI - rest;
        quotient = quotient.wrapping_add(1);
    }
    // Below zero the right angles count backwards.
    let right_angles = if x.sign {
        quotient.wrapping_neg()
    } else {
        quotient
    };
    Reduced {
        rest: Wide::normalised(x.sign != over, 127 - 65, rest),
        right_angles: right_angles & 3,
    }
}

impl Reduced {
    /// Returns sine and cosine of the angle.
    pub(crate) fn sin_cos(&self) -> (Wide, Wide) {
        let (sin, cos) = (sin(self.rest), cos(self.rest));
        match self.right_angles {
            0 => (sin, cos),
            1 => (cos, sin.neg()),
            2 => (sin.neg(), cos.neg()),
            _ => (cos.neg(), sin),
        }
    }
}

/// Returns the sine of an angle up to a quarter of pi.
fn sin(x: Wide) -> Wide {
    let square = x.mul(x);
    // x (1 - x^2/(2*3) (1 - x^2/(4*5) (...)))
    let sum = (1..17).rev().fold(Wide::ONE, |sum, n| {
        Wide::ONE.sub(square.mul(sum).div_small(2 * n * (2 * n + 1)))
    });
    x.mul(sum)
}

/// Returns the cosine of an angle up to a quarter of pi.
fn cos(x: Wide) -> Wide {
    let square = x.mul(x);
    (1..17).rev().fold(Wide::ONE, |sum, n| {
        Wide::ONE.sub(square.mul(sum).div_small(2 * n * (2 * n - 1)))
    })
}

/// Returns the angle of the point (x, y).
pub(crate) fn angle(y: &Number, x: &Number) -> Wide {
    let (a, b) = (Wide::of(y).abs(), Wide::of(x).abs());
    let steep = (a.exponent, a.significand) > (b.exponent, b.significand);
    let mut angle = if steep {
        Wide::QUARTER_PI.scale(1).sub(arctangent(b.div(a)))
    } else {
        arctangent(a.div(b))
    };
    if x.sign {
        angle = Wide::QUARTER_PI.scale(2).sub(angle);
    }
    angle.sign = y.sign;
    angle
}

/// Returns the arcus tangent of a number between 0 and 1.
fn arctangent(t: Wide) -> Wide {
    if t.exponent < -64 {
        // A little less.
        return t.sub(t.scale(-127));
    }
    // Off by 0.08 at most; each step leaves a fifth of the fifth power of the error.
    let mut angle = t.mul(Wide::QUARTER_PI);
    for _ in 0..3 {
        let (sin, cos) = (sin(angle), cos(angle));
        // The tangent of what is missing.
        let error = t.mul(cos).sub(sin).div(cos.add(t.mul(sin)));
        let cube = error.mul(error).mul(error);
        angle = angle.add(error.sub(cube.div_small(3)));
    }
    angle
}

#[cfg(test)]
mod known_values {
    use super::{Wide, angle, exp2_minus_1, log2, log2_plus_1, reduce};
    use crate::float::Number;

    fn close(found: Wide, expected: Wide) {
        let error = found.sub(expected);
        let bits = expected.exponent - error.exponent;
        assert!(
            error.significand == 0 || bits > 100,
            "{found:x?} {expected:x?}: {bits} bits"
        );
    }

    const HALF: Number = Number::finite(false, -1, super::super::number::INTEGER);

    #[test]
    fn functions_undo_each_other() {
        // log2(1 + (2^x - 1)) = x; the intermediate result is cut to 64 bits, so for a number where it is exact: 1/2 squared.
        let root = exp2_minus_1(&HALF).add(Wide::ONE);
        close(root.mul(root), Wide::of_integer(2));
        let three = Number::finite(false, 1, 3 << 62);
        close(
            log2(&three),
            log2_plus_1(&Number::finite(false, 1, 1 << 63)),
        );
        close(log2(&HALF), Wide::of_integer(-1));
    }

    #[test]
    fn sine_and_cosine_lie_on_the_circle_and_angles_come_back() {
        let (sin, cos) = reduce(&HALF).sin_cos();
        close(sin.mul(sin).add(cos.mul(cos)), Wide::ONE);
        let one = Number::finite(false, 0, super::super::number::INTEGER);
        close(angle(&one, &one), Wide::QUARTER_PI);
        // Arcus tangents of 1/2 and 1/3 are pi/4 together (Euler).
        let three = Number::finite(false, 1, 3 << 62);
        close(
            angle(&HALF, &one).add(angle(&one, &three)),
            Wide::QUARTER_PI,
        );
    }
}
