//! Operand sizes as types.

use core::fmt::Debug;

/// An unsigned integer of an operand's size.
pub trait Word: Copy + Eq + Ord + Debug + Default + 'static {
    /// Its size in bytes.
    const BYTES: usize;
    /// Its size in bits.
    const BITS: u32 = Self::BYTES as u32 * 8;
    /// Keeps the low bits of a value.
    fn truncate(value: u64) -> Self;
    /// Extends with zeros.
    fn zero_extend(self) -> u64;
    /// Extends with the sign.
    fn sign_extend(self) -> u64;
}

macro_rules! words {
    ($($unsigned:ty as $signed:ty),*) => {$(
        impl Word for $unsigned {
            const BYTES: usize = size_of::<$unsigned>();
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn zero_extend(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn sign_extend(self) -> u64 {
                self as $signed as i64 as u64
            }
        }
    )*};
}
words!(u8 as i8, u16 as i16, u32 as i32, u64 as i64);
