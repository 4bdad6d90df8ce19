//! Addresses, frame numbers and levels.
//!
//! Three address spaces, three types each cannot be confused with: guest virtual ([`Gva`]), guest physical ([`Gpa`], [`Gfn`])
//! and host physical ([`Hpa`], [`Pfn`]). [`Level`] names a table's height, [`Index`] a slot of a table.
//!
//! Invariants:
//! 1. No arithmetic here panics or truncates: a frame number keeps all 52 bits of its address (scenario B7).
//! 2. A [`Level`] is 1 to 5, an [`Index`] below the number of slots of a table.

use core::fmt;

/// Bytes of a page and of a table.
pub const PAGE_SIZE: u64 = 4096;
/// The base-two logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Slots of a table, 512 on the processor; shrunk under loom and shuttle, which explore schedules.
pub const TABLE_SLOTS: usize = if crate::sync::SMALL { 4 } else { 512 };
/// The highest frame number that a 52-bit physical address can name.
pub const MAX_FRAME: u64 = (1 << 40) - 1;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Makes the address from its number.
            #[inline]
            pub const fn new(address: u64) -> Self {
                Self(address)
            }
            /// Returns the address as a number.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }
            /// Returns the offset of the address in its 4 KiB page.
            #[inline]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
            /// Returns the address `bytes` further on, wrapping at 2^64.
            #[inline]
            #[must_use]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident, $address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Makes the frame from its number.
            #[inline]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }
            /// Returns the frame's number: its address shifted right by 12.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }
            /// Returns the frame that contains `address`.
            #[inline]
            pub const fn containing(address: $address) -> Self {
                Self(address.get() >> PAGE_SHIFT)
            }
            /// Returns the address of the frame's first byte.
            #[inline]
            pub const fn address(self) -> $address {
                $address::new(self.0 << PAGE_SHIFT)
            }
            /// Returns the frame `frames` further on, wrapping at 2^64.
            #[inline]
            #[must_use]
            pub const fn wrapping_add(self, frames: u64) -> Self {
                Self(self.0.wrapping_add(frames))
            }
            /// Returns the first frame of the block of `level`'s size that this frame lies in.
            #[inline]
            #[must_use]
            pub const fn align_down(self, level: Level) -> Self {
                Self(self.0 & !(level.frames() - 1))
            }
            /// Tells whether a block of `level`'s size may start here.
            #[inline]
            pub const fn is_aligned(self, level: Level) -> bool {
                self.0 & (level.frames() - 1) == 0
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A guest virtual address (linear address; AMD APM vol. 2, section 1.1).
    Gva
);
address!(
    /// A guest physical address.
    Gpa
);
address!(
    /// A host physical address: what the processor puts on the bus.
    Hpa
);
frame!(
    /// A guest frame number: a guest physical address shifted right by 12.
    Gfn,
    Gpa
);
frame!(
    /// A host frame number: a host physical address shifted right by 12.
    Pfn,
    Hpa
);

/// The height of a table, or of an entry in it: 1 holds 4 KiB pages, 2 is 2 MiB, 3 is 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// A table of 4 KiB pages.
    L1 = 1,
    /// A page directory; a leaf here is 2 MiB.
    L2 = 2,
    /// A page-directory-pointer table; a leaf here is 1 GiB.
    L3 = 3,
    /// The root of 4-level paging.
    L4 = 4,
    /// The root of 5-level paging.
    L5 = 5,
}

impl Level {
    /// Makes a level from its number.
    #[inline]
    pub const fn new(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::L1),
            2 => Some(Self::L2),
            3 => Some(Self::L3),
            4 => Some(Self::L4),
            5 => Some(Self::L5),
            _ => None,
        }
    }
    /// Returns the level's number, 1 to 5.
    #[inline]
    pub const fn get(self) -> u8 {
        self as u8
    }
    /// Returns the level below, or `None` below level 1.
    #[inline]
    pub const fn below(self) -> Option<Self> {
        Self::new(self as u8 - 1)
    }
    /// Returns the level above, or `None` above level 5.
    #[inline]
    pub const fn above(self) -> Option<Self> {
        Self::new(self as u8 + 1)
    }
    /// Returns how many 4 KiB frames one entry of this level spans.
    #[inline]
    pub const fn frames(self) -> u64 {
        1 << (9 * (self as u32 - 1))
    }
    /// Returns how many bytes one entry of this level spans.
    #[inline]
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << (9 * (self as u32 - 1))
    }
    /// Returns the slot that a table of this level (512 entries of 8 bytes) uses for `address`.
    #[inline]
    pub const fn index(self, address: u64) -> Index {
        Index(((address >> (PAGE_SHIFT + 9 * (self as u32 - 1))) & 511) as u16 % TABLE_SLOTS as u16)
    }
}

/// A slot of a table, below [`TABLE_SLOTS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Index(u16);

impl Index {
    /// Makes an index if it is below [`TABLE_SLOTS`].
    #[inline]
    pub const fn new(index: usize) -> Option<Self> {
        if index < TABLE_SLOTS {
            Some(Self(index as u16))
        } else {
            None
        }
    }
    /// Makes an index from the low bits of `index`.
    #[inline]
    pub const fn truncate(index: usize) -> Self {
        Self((index % TABLE_SLOTS) as u16)
    }
    /// Returns the index.
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize % TABLE_SLOTS
    }
}

#[cfg(test)]
mod numbers_keep_their_bits {
    use super::*;

    #[test]
    fn a_frame_above_2_44_keeps_every_bit() {
        let gpa = Gpa::new((1 << 52) - 1);
        assert_eq!(Gfn::containing(gpa).get(), MAX_FRAME);
        assert_eq!(Gfn::containing(gpa).address().get(), (1 << 52) - 4096);
    }

    #[test]
    fn levels_span_what_the_manual_says() {
        assert_eq!(Level::L2.bytes(), 2 << 20);
        assert_eq!(Level::L3.bytes(), 1 << 30);
        assert_eq!(Gfn::new(0x3ff).align_down(Level::L2), Gfn::new(0x200));
    }
}
