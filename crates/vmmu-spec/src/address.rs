//! Addresses as newtypes, so that no walk mixes up the two sides of a translation.
//!
//! Key types: [`Linear`] (what an instruction uses), [`Physical`] (what a table entry holds),
//! [`GuestPhysical`] (the input of a nested walk) and [`PhysBits`] (MAXPHYADDR).
//!
//! Invariants
//! 1. A newtype is made by `new` and read by `get`; no arithmetic crosses from one to another.
//! 2. [`PhysBits`] lies between 32 and 52.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            #[must_use]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// Returns the raw address.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A linear address (SDM vol. 3 section 3.1), called virtual by AMD; of a guest: a GVA.
    Linear
}

address! {
    /// A physical address: where an entry lies, and what a translation yields.
    ///
    /// For the tables of a guest this is a guest-physical address; for tables that a processor
    /// walks without nesting, and for the result of a nested walk, it is a host-physical one.
    Physical
}

address! {
    /// A guest-physical address as the input of a nested walk (APM vol. 2 section 15.25).
    GuestPhysical
}

impl From<Physical> for GuestPhysical {
    /// Takes the result of a guest's walk as the input of the nested walk.
    fn from(address: Physical) -> Self {
        Self(address.0)
    }
}

/// The width of physical addresses, MAXPHYADDR (SDM section 4.1.4, bits 7:0 of EAX of CPUID 80000008H).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysBits(u8);

impl PhysBits {
    /// The architectural maximum (SDM section 4.1.4).
    pub const MAX: Self = Self(52);

    /// Makes a width, if it lies between 32 and 52.
    #[must_use]
    pub const fn new(bits: u8) -> Option<Self> {
        if bits >= 32 && bits <= 52 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Returns the number of bits.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Returns a mask of the bits `low..=high`, empty if `low > high`.
pub(crate) const fn bits(high: u8, low: u8) -> u64 {
    if low > high {
        0
    } else {
        (u64::MAX >> (63 - high)) & (u64::MAX << low)
    }
}

#[cfg(test)]
mod masks {
    use super::{PhysBits, bits};

    #[test]
    fn bits_are_inclusive_at_both_ends() {
        assert_eq!(bits(0, 0), 1);
        assert_eq!(bits(63, 0), u64::MAX);
        assert_eq!(bits(20, 13), 0x001f_e000);
        assert_eq!(bits(51, 52), 0);
    }

    #[test]
    fn a_width_outside_32_to_52_is_refused() {
        assert_eq!(PhysBits::new(31), None);
        assert_eq!(PhysBits::new(53), None);
        assert_eq!(PhysBits::new(52), Some(PhysBits::MAX));
    }
}
