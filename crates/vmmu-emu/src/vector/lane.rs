//! Vectors as lanes.
//!
//! Key trait: [`Lane`].

use core::array;

/// An unsigned integer that a vector is split into.
pub(crate) trait Lane: Copy {
    /// Applies a function to each pair of lanes.
    fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128;
    /// Returns lane `i`.
    fn of(vector: u128, i: usize) -> Self;
    /// Returns a vector of lanes.
    fn collect(f: impl FnMut(usize) -> Self) -> u128;
}

macro_rules! lanes {
    ($($lane:ty, $count:literal;)*) => {$(
        impl Lane for $lane {
            #[inline(always)]
            fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128 {
                Self::collect(|i| f(Self::of(a, i), Self::of(b, i)))
            }
            #[inline(always)]
            fn of(vector: u128, i: usize) -> Self {
                (vector >> (i as u32 * <$lane>::BITS & 127)) as $lane
            }
            #[inline(always)]
            fn collect(f: impl FnMut(usize) -> Self) -> u128 {
                let lanes: [Self; $count] = array::from_fn(f);
                let mut vector = 0;
                for (i, lane) in lanes.into_iter().enumerate() {
                    vector |= u128::from(lane) << (i as u32 * <$lane>::BITS);
                }
                vector
            }
        }
    )*};
}
lanes! {
    u8, 16;
    u16, 8;
    u32, 4;
    u64, 2;
}

/// Returns a lane of ones where a condition holds.
#[inline(always)]
pub(crate) const fn mask8(condition: bool) -> u8 {
    (condition as u8).wrapping_neg()
}
/// See [`mask8`].
#[inline(always)]
pub(crate) const fn mask16(condition: bool) -> u16 {
    (condition as u16).wrapping_neg()
}
/// See [`mask8`].
#[inline(always)]
pub(crate) const fn mask32(condition: bool) -> u32 {
    (condition as u32).wrapping_neg()
}
