//! Numbers with 128 bits of significand, for what is computed by series: truncated, so good for about 120 bits.
//!
//! Key type: [`Wide`].
//!
//! Invariant: the top bit is set, or the number is zero.

use super::round::{Target, round};
use super::{Env, Number};

/// `significand / 2^127 * 2^exponent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wide {
    pub(crate) sign: bool,
    pub(crate) exponent: i32,
    pub(crate) significand: u128,
}

impl Wide {
    pub(crate) const ZERO: Self = Self {
        sign: false,
        exponent: 0,
        significand: 0,
    };
    pub(crate) const ONE: Self = Self::new(0, 1 << 127);
    /// pi / 4 = 0.785...
    pub(crate) const QUARTER_PI: Self = Self::new(-1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
    /// ln(2) = 0.693...
    pub(crate) const LN_2: Self = Self::new(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
    /// 2 * log2(e) = 2.885...
    pub(crate) const TWO_LOG2_E: Self = Self::new(1, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88);

    const fn new(exponent: i32, significand: u128) -> Self {
        Self {
            sign: false,
            exponent,
            significand,
        }
    }

    /// Takes over a finite number.
    pub(crate) fn of(number: &Number) -> Self {
        Self {
            sign: number.sign,
            exponent: number.exponent,
            significand: u128::from(number.significand) << 64,
        }
    }

    /// Takes over an integer.
    pub(crate) fn of_integer(value: i32) -> Self {
        Self::normalised(value < 0, 127, u128::from(value.unsigned_abs()))
    }

    /// Returns `significand / 2^127 * 2^exponent`, of any significand.
    pub(crate) fn normalised(sign: bool, exponent: i32, significand: u128) -> Self {
        if significand == 0 {
            return Self::ZERO;
        }
        let zeros = significand.leading_zeros();
        Self {
            sign,
            exponent: exponent - zeros as i32,
            significand: significand << zeros,
        }
    }

    /// Rounds to the extended format; it is never exact.
    pub(crate) fn round(self, env: &mut Env) -> Number {
        round(
            env,
            self.sign,
            self.exponent,
            self.significand | 1,
            &Target::EXTENDED,
        )
    }

    pub(crate) const fn neg(mut self) -> Self {
        self.sign = !self.sign;
        self
    }

    pub(crate) const fn abs(mut self) -> Self {
        self.sign = false;
        self
    }

    /// Multiplies by a power of two.
    pub(crate) const fn scale(mut self, by: i32) -> Self {
        self.exponent += by;
        self
    }

    pub(crate) fn add(self, other: Self) -> Self {
        if self.significand == 0 {
            return other;
        }
        if other.significand == 0 {
            return self;
        }
        let (large, small) =
            if (self.exponent, self.significand) >= (other.exponent, other.significand) {
                (self, other)
            } else {
                (other, self)
            };
        let by = large.exponent.abs_diff(small.exponent);
        let aligned = small.significand.checked_shr(by).unwrap_or(0);
        if large.sign != small.sign {
            // What is lost of the smaller one makes the difference smaller.
            let lost = by >= 128 || aligned << by != small.significand;
            let difference = large.significand - aligned - u128::from(lost);
            return Self::normalised(large.sign, large.exponent, difference);
        }
        match large.significand.checked_add(aligned) {
            Some(significand) => Self {
                significand,
                ..large
            },
            None => Self {
                significand: large.significand.wrapping_add(aligned) >> 1 | 1 << 127,
                exponent: large.exponent + 1,
                ..large
            },
        }
    }

    pub(crate) fn sub(self, other: Self) -> Self {
        self.add(other.neg())
    }

    pub(crate) fn mul(self, other: Self) -> Self {
        let product = multiply_high(self.significand, other.significand);
        let sign = self.sign != other.sign;
        Self::normalised(sign, self.exponent + other.exponent + 1, product)
    }

    /// Divides; the divisor is not zero.
    pub(crate) fn div(self, other: Self) -> Self {
        let mut rest = self.significand >> 1;
        let divisor = other.significand >> 1;
        let mut quotient = 0u128;
        for _ in 0..127 {
            quotient <<= 1;
            if rest >= divisor {
                rest -= divisor;
                quotient |= 1;
            }
            rest <<= 1;
        }
        let sign = self.sign != other.sign;
        Self::normalised(sign, self.exponent - other.exponent + 1, quotient)
    }

    /// Divides by a small number, which is not zero.
    pub(crate) fn div_small(self, by: u32) -> Self {
        Self::normalised(self.sign, self.exponent, self.significand / u128::from(by))
    }
}

/// Returns the upper half of a product of 256 bits.
const fn multiply_high(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a_high, a_low) = (a >> 64, a & LOW);
    let (b_high, b_low) = (b >> 64, b & LOW);
    let (x, y) = (a_high * b_low, a_low * b_high);
    let middle = ((a_low * b_low) >> 64) + (x & LOW) + (y & LOW);
    a_high * b_high + (x >> 64) + (y >> 64) + (middle >> 64)
}

#[cfg(test)]
mod wide_arithmetic {
    use super::Wide;

    #[test]
    fn quotients_and_products_undo_each_other() {
        let seven = Wide::of_integer(7);
        let third = Wide::of_integer(-3).div(seven).mul(seven);
        let error = third.add(Wide::of_integer(3));
        assert!(error.significand == 0 || error.exponent < -120, "{error:?}");
        assert_eq!(seven.sub(seven), Wide::ZERO);
        assert_eq!(Wide::of_integer(21).div_small(3), seven);
        assert_eq!(
            Wide::QUARTER_PI.scale(2).sub(Wide::of_integer(3)).exponent,
            -3
        );
    }
}
