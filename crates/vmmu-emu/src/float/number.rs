//! Numbers, unpacked, and the formats in which they are kept (AMD APM vol. 1, sections 4.4.6, 6.3).
//!
//! Key types: [`Number`], [`Class`]; key trait: [`Format`], of [`Single`] and [`Double`]. The extended format is [`Extended`] itself.

use super::round::Target;
use crate::fpu::Extended;

/// What kind of number it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Zero,
    Finite,
    Infinity,
    Quiet,
    Signaling,
    /// An encoding of the extended format that is no number: the integer bit should be set and is not.
    Unsupported,
}

/// A number: its value is `significand / 2^63 * 2^exponent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Number {
    pub(crate) sign: bool,
    pub(crate) class: Class,
    /// It was denormal in its format.
    pub(crate) denormal: bool,
    pub(crate) exponent: i32,
    /// A NaN: its payload below the integer bit and the quiet bit.
    pub(crate) significand: u64,
}

/// The integer bit of a significand.
pub(crate) const INTEGER: u64 = 1 << 63;
/// The bit that makes a NaN quiet.
pub(crate) const QUIET: u64 = 1 << 62;

impl Number {
    /// The result of an invalid operation: a negative quiet NaN.
    pub(crate) const INDEFINITE: Self = Self {
        sign: true,
        class: Class::Quiet,
        denormal: false,
        exponent: 0,
        significand: INTEGER | QUIET,
    };

    /// Returns a zero.
    #[inline(always)]
    pub(crate) const fn zero(sign: bool) -> Self {
        Self {
            sign,
            class: Class::Zero,
            denormal: false,
            exponent: 0,
            significand: 0,
        }
    }

    /// Returns an infinity.
    #[inline(always)]
    pub(crate) const fn infinity(sign: bool) -> Self {
        Self {
            sign,
            class: Class::Infinity,
            denormal: false,
            exponent: 0,
            significand: INTEGER,
        }
    }

    /// Returns a finite number, its significand as it is.
    #[inline(always)]
    pub(crate) const fn finite(sign: bool, exponent: i32, significand: u64) -> Self {
        Self {
            sign,
            class: Class::Finite,
            denormal: false,
            exponent,
            significand,
        }
    }

    /// Returns a denormal number, normalised.
    const fn denormal(sign: bool, exponent: i32, significand: u64) -> Self {
        let zeros = significand.leading_zeros();
        let mut number = Self::finite(sign, exponent - zeros as i32, significand << zeros);
        number.denormal = true;
        number
    }

    const fn nan(sign: bool, significand: u64) -> Self {
        Self {
            sign,
            class: if significand & QUIET != 0 {
                Class::Quiet
            } else {
                Class::Signaling
            },
            denormal: false,
            exponent: 0,
            significand,
        }
    }

    /// Says whether it is a NaN, or an encoding that is none.
    #[inline(always)]
    pub(crate) const fn is_nan(&self) -> bool {
        matches!(
            self.class,
            Class::Quiet | Class::Signaling | Class::Unsupported
        )
    }

    /// Says whether it is neither zero, infinite nor NaN.
    #[inline(always)]
    pub(crate) const fn is_finite(&self) -> bool {
        matches!(self.class, Class::Finite)
    }
}

/// A format of SSE.
pub(crate) trait Format {
    /// Its bytes.
    const BYTES: usize;
    /// What results are rounded to.
    const TARGET: Target;

    /// Unpacks a number.
    #[inline(always)]
    fn unpack(bits: u64) -> Number {
        let target = Self::TARGET;
        let fraction_bits = target.precision - 1;
        let sign = bits >> (Self::BYTES * 8 - 1) & 1 != 0;
        let all_ones = (target.max - target.min + 2) as u64;
        let biased = bits >> fraction_bits & all_ones;
        // The fraction, below the integer bit.
        let fraction = bits << (64 - fraction_bits) >> 1;
        match (biased, fraction) {
            (0, 0) => Number::zero(sign),
            (0, _) => Number::denormal(sign, target.min, fraction),
            (e, 0) if e == all_ones => Number::infinity(sign),
            (e, _) if e == all_ones => Number::nan(sign, INTEGER | fraction),
            _ => Number::finite(sign, biased as i32 + target.min - 1, INTEGER | fraction),
        }
    }

    /// Packs a number that has the target's precision and range.
    #[inline(always)]
    fn pack(number: &Number) -> u64 {
        let target = Self::TARGET;
        let fraction_bits = target.precision - 1;
        let all_ones = (target.max - target.min + 2) as u64;
        let biased = match number.class {
            Class::Zero => 0,
            Class::Finite if number.significand & INTEGER == 0 => 0,
            Class::Finite => (number.exponent - target.min + 1) as u64 & all_ones,
            _ => all_ones,
        };
        let fraction = number.significand << 1 >> (64 - fraction_bits);
        u64::from(number.sign) << (Self::BYTES * 8 - 1) | biased << fraction_bits | fraction
    }
}

/// 32 bits.
pub(crate) struct Single;
impl Format for Single {
    const BYTES: usize = 4;
    const TARGET: Target = Target {
        precision: 24,
        min: -126,
        max: 127,
        adjust: 192,
    };
}

/// 64 bits.
pub(crate) struct Double;
impl Format for Double {
    const BYTES: usize = 8;
    const TARGET: Target = Target {
        precision: 53,
        min: -1022,
        max: 1023,
        adjust: 1536,
    };
}

impl Extended {
    /// Unpacks it (AMD APM vol. 1, section 6.3.3).
    pub(crate) const fn unpack(self) -> Number {
        let sign = self.sign_exponent >> 15 != 0;
        let biased = (self.sign_exponent & 0x7fff) as i32;
        let significand = self.significand;
        match (biased, significand) {
            (0, 0) => Number::zero(sign),
            // With the integer bit it is called pseudo-denormal.
            (0, _) => Number::denormal(sign, -16382, significand),
            (_, _) if significand & INTEGER == 0 => Number {
                class: Class::Unsupported,
                ..Number::INDEFINITE
            },
            (0x7fff, INTEGER) => Number::infinity(sign),
            (0x7fff, _) => Number::nan(sign, significand),
            _ => Number::finite(sign, biased - 16383, significand),
        }
    }

    /// Packs a number.
    pub(crate) const fn pack(number: &Number) -> Self {
        let biased = match number.class {
            Class::Zero => 0,
            Class::Finite if number.significand & INTEGER == 0 => 0,
            Class::Finite => (number.exponent + 16383) as u16 & 0x7fff,
            _ => 0x7fff,
        };
        Self {
            significand: number.significand,
            sign_exponent: (number.sign as u16) << 15 | biased,
        }
    }
}

#[cfg(test)]
mod packing {
    use super::{Double, Format, Single};
    use crate::fpu::Extended;

    #[test]
    fn every_class_comes_back_as_it_was() {
        // Denormal numbers are normalised when unpacked, so they do not.
        for bits in [
            0u64,
            0x3f80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_1234,
            0xff80_0001,
            0x8000_0000,
        ] {
            assert_eq!(Single::pack(&Single::unpack(bits)), bits);
        }
        for value in [1.5f64, -0.0, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE] {
            assert_eq!(
                Double::pack(&Double::unpack(value.to_bits())),
                value.to_bits()
            );
        }
        let one = Extended {
            significand: 1 << 63,
            sign_exponent: 0xbfff,
        };
        assert_eq!(Extended::pack(&one.unpack()), one);
        assert_eq!(one.unpack().exponent, 0);
    }
}
