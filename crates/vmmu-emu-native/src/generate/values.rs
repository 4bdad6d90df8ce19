//! Operand values: random, and at the edges where instructions change their minds.

use fastrand::Rng;

/// Returns a value: small, near a power of two, one byte repeated, or anything.
pub(crate) fn value(rng: &mut Rng) -> u64 {
    match rng.u8(..8) {
        0 => rng.u64(..=70),
        1 => rng.u64(..=70).wrapping_neg(),
        2 | 3 => {
            let edge = 1u64 << rng.u32(..64);
            edge.wrapping_add(rng.u64(..5)).wrapping_sub(2)
        }
        4 => u64::from(rng.u8(..)) * 0x0101_0101_0101_0101,
        _ => rng.u64(..),
    }
}

/// Says yes once in `n` times.
pub(crate) fn once_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}
