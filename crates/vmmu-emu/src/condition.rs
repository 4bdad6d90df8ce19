//! Conditions of Jcc, SETcc and CMOVcc (AMD APM vol. 3, appendix "Instruction subsets", condition codes).

use crate::flags::Flags;

/// Says whether the condition with this number in encodings holds.
#[inline(always)]
pub(crate) const fn holds<const CONDITION: u8>(flags: Flags) -> bool {
    let sign = flags.contains(Flags::SF);
    let overflow = flags.contains(Flags::OF);
    let base = match CONDITION >> 1 {
        0 => overflow,
        1 => flags.contains(Flags::CF),
        2 => flags.contains(Flags::ZF),
        3 => flags.intersects(Flags::CF.union(Flags::ZF)),
        4 => sign,
        5 => flags.contains(Flags::PF),
        6 => sign != overflow,
        _ => flags.contains(Flags::ZF) || sign != overflow,
    };
    base != (CONDITION & 1 != 0)
}

#[cfg(test)]
mod conditions {
    use super::holds;
    use crate::flags::Flags;

    #[test]
    fn odd_numbers_negate_even_ones() {
        for bits in 0..1 << 12 {
            let flags = Flags::from_bits_retain(bits);
            assert_ne!(holds::<2>(flags), holds::<3>(flags));
            assert_ne!(holds::<14>(flags), holds::<15>(flags));
        }
    }

    #[test]
    fn less_means_that_sign_and_overflow_differ() {
        assert!(holds::<12>(Flags::SF));
        assert!(holds::<12>(Flags::OF));
        assert!(!holds::<12>(Flags::SF | Flags::OF));
        assert!(holds::<14>(Flags::ZF));
    }
}
