//! Results and flags of arithmetic (AMD APM vol. 1, section 3.1.4).

use crate::flags::Flags;
use crate::word::Word;

/// Returns PF, ZF and SF of a result.
#[inline(always)]
pub(crate) fn of_result<W: Word>(result: W) -> Flags {
    let value = result.zero_extend();
    let sign = value >> (W::BITS - 1) & 1;
    // Parity by folding: baseline x86-64 has no population count.
    let folded = (value ^ value >> 4) & 0xf;
    let even = !(0x6996 >> folded) & 1;
    let zero = u64::from(value == 0);
    Flags::from_bits_retain(even << 2 | zero << 6 | sign << 7)
}

/// Adds, with a carry in.
#[inline(always)]
pub(crate) fn add<W: Word>(a: W, b: W, carry: bool) -> (W, Flags) {
    let (x, y) = (a.zero_extend(), b.zero_extend());
    let sum = x.wrapping_add(y).wrapping_add(u64::from(carry));
    let result = W::truncate(sum);
    let r = result.zero_extend();
    let top = W::BITS - 1;
    // The carry out of each bit.
    let carries = x & y | (x | y) & !r;
    let cf = carries >> top & 1;
    let of = (x ^ r) & (y ^ r);
    (
        result,
        assemble(of_result(result), cf, x ^ y ^ r, of >> top),
    )
}

/// Subtracts, with a borrow in.
#[inline(always)]
pub(crate) fn sub<W: Word>(a: W, b: W, borrow: bool) -> (W, Flags) {
    let (x, y) = (a.zero_extend(), b.zero_extend());
    let result = W::truncate(x.wrapping_sub(y).wrapping_sub(u64::from(borrow)));
    let r = result.zero_extend();
    let top = W::BITS - 1;
    let borrows = !x & y | (!x | y) & r;
    let cf = borrows >> top & 1;
    let of = (x ^ y) & (x ^ r);
    (
        result,
        assemble(of_result(result), cf, x ^ y ^ r, of >> top),
    )
}

#[inline(always)]
fn assemble(flags: Flags, cf: u64, aux: u64, of: u64) -> Flags {
    Flags::from_bits_retain(flags.bits() | cf | aux & 0x10 | (of & 1) << 11)
}

#[cfg(test)]
mod flags_of_sums {
    use super::{add, sub};
    use crate::flags::Flags;

    #[test]
    fn carry_is_unsigned_and_overflow_signed() {
        let (r, f) = add(0xffu8, 1, false);
        assert_eq!(r, 0);
        assert_eq!(f, Flags::CF | Flags::ZF | Flags::AF | Flags::PF);
        let (r, f) = add(0x7fu8, 1, false);
        assert_eq!(r, 0x80);
        assert_eq!(f, Flags::OF | Flags::SF | Flags::AF);
        let (r, f) = sub(0u64, 0, true);
        assert_eq!(r, u64::MAX);
        assert_eq!(f, Flags::CF | Flags::SF | Flags::AF | Flags::PF);
    }
}
