//! A median with its quartiles.

/// What the middle of many measurements is, and how far the others lie.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Spread {
    /// A quarter is below.
    pub low: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub high: f64,
}

impl Spread {
    /// Sums up measurements, if there are any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let at = part * (values.len().checked_sub(1)? as f64);
            values.get(at.round() as usize).copied()
        };
        Some(Self {
            low: at(0.25)?,
            median: at(0.5)?,
            high: at(0.75)?,
        })
    }
}

#[cfg(test)]
mod summing_up {
    use super::Spread;

    #[test]
    fn takes_the_middle_and_the_quarters() {
        let spread = Spread::of((0..=100).rev().map(f64::from).collect());
        let Some(spread) = spread else {
            panic!("there are values")
        };
        assert_eq!((spread.low, spread.median, spread.high), (25.0, 50.0, 75.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
