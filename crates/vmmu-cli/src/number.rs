//! Numbers as people write and read them: sizes, durations, grouped digits.
//!
//! Key types: [`ByteSize`], [`Limit`]. Used by the options, the messages and the bench table.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

/// A number of bytes; reads `512M`, `1G`, `0x20000000` and prints in the largest unit that is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl ByteSize {
    /// Takes a number of bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Takes a number of mebibytes.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * MIB)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Rounds up to a multiple of `unit`.
    #[must_use]
    pub const fn round_up(self, unit: Self) -> Self {
        Self(self.0.div_ceil(unit.0).saturating_mul(unit.0))
    }

    /// Adds, stopping at the largest value.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b >= GIB && b % GIB == 0 => write!(f, "{}G", b / GIB),
            b if b >= MIB && b % MIB == 0 => write!(f, "{}M", b / MIB),
            b if b >= KIB && b % KIB == 0 => write!(f, "{}K", b / KIB),
            b => write!(f, "{b}"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is no size; write for example 512M or 1G");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 1,
            "K" | "KIB" => KIB,
            "M" | "MIB" => MIB,
            "G" | "GIB" => GIB,
            _ => return Err(bad()),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(unit).map(Self).ok_or_else(bad)
    }
}

/// A time limit; reads `90`, `90s`, `5m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(Duration);

impl Limit {
    /// Returns the limit as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Takes a number of seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is no time limit; write for example 90s or 5m");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(bad()),
        };
        let seconds = digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(unit))
            .ok_or_else(bad)?;
        if seconds == 0 {
            return Err(
                "a time limit of 0 stops every guest; leave the option out for no limit".to_owned(),
            );
        }
        Ok(Self::from_secs(seconds))
    }
}

/// Groups the digits of a whole number by threes: `274838` as `274,838`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Prints instructions per operation: whole numbers, with one decimal below 100 unless it is zero.
#[must_use]
pub fn per_operation(value: f64) -> String {
    let tenths = (value * 10.0).round() / 10.0;
    if tenths < 100.0 && tenths.fract() != 0.0 {
        format!("{tenths:.1}")
    } else {
        grouped(tenths.round().max(0.0) as u64)
    }
}

#[cfg(test)]
mod reading_and_printing {
    use super::{ByteSize, Limit, grouped, per_operation};

    #[test]
    fn sizes_read_with_their_units() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("4096", 4096),
            ("64k", 65536),
            ("2MiB", 2 << 20),
        ] {
            assert_eq!(
                text.parse::<ByteSize>().map(ByteSize::bytes),
                Ok(bytes),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "12Q", "-1M", "1.5G", "99999999999G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_exact_unit() {
        for (bytes, text) in [
            (512 << 20, "512M"),
            (3 << 30, "3G"),
            (1536 << 20, "1536M"),
            (5, "5"),
            (12 << 10, "12K"),
        ] {
            assert_eq!(ByteSize::from_bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn limits_read_and_zero_is_refused() {
        assert_eq!("5m".parse::<Limit>(), Ok(Limit::from_secs(300)));
        assert_eq!("90".parse::<Limit>(), Ok(Limit::from_secs(90)));
        assert!("0".parse::<Limit>().is_err());
        assert!("soon".parse::<Limit>().is_err());
    }

    #[test]
    fn digits_are_grouped_by_threes() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (274_838, "274,838"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(n), text);
        }
    }

    #[test]
    fn small_values_keep_one_decimal_and_large_ones_none() {
        assert_eq!(per_operation(5.0), "5");
        assert_eq!(per_operation(5.04), "5");
        assert_eq!(per_operation(0.125), "0.1");
        assert_eq!(per_operation(3226.2), "3,226");
    }
}
