//! Addresses, frames, levels and page sizes as types of their own.
//!
//! Key types: [`Va`] (linear), [`Gpa`] (guest-physical), [`Hpa`] (host-physical), [`Frame`] (a
//! 4 KiB frame of host-physical memory), [`Level`], [`PageSize`], [`Asid`], [`Pcid`]. Every other
//! module of the crate speaks in them. They are this crate's own on purpose: the processor shares
//! no code with what it checks.
//!
//! Invariants:
//! 1. [`Gpa`] and [`Hpa`] never mix without a translation; without nested paging the processor
//!    itself says that they are the same, in one place.
//! 2. A [`Level`] is 1 to 5.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            #[must_use]
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// Returns the raw address.
            #[must_use]
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Returns the address `bytes` further on, wrapping at 2^64.
            #[must_use]
            #[inline]
            pub const fn plus(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// Returns the first address of the page of `size` around this one.
            #[must_use]
            #[inline]
            pub const fn base(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }

            /// Returns the distance from the first byte of the page of `size` around this one.
            #[must_use]
            #[inline]
            pub const fn offset(self, size: PageSize) -> u64 {
                self.0 & (size.bytes() - 1)
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

address! {
    /// A linear address: what an instruction of the guest uses.
    Va
}
address! {
    /// A guest-physical address; without nested paging the same as the host-physical one.
    Gpa
}
address! {
    /// A host-physical address: an address of [`crate::PhysMemory`].
    Hpa
}

impl Hpa {
    /// Returns the frame that holds this address.
    #[must_use]
    #[inline]
    pub const fn frame(self) -> Frame {
        Frame(self.0 >> 12)
    }
}

/// The number of a 4 KiB frame of host-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Frame(u64);

impl Frame {
    /// Wraps a frame number.
    #[must_use]
    #[inline]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the frame number.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the address of the frame's first byte.
    #[must_use]
    #[inline]
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 << 12)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:#x})", self.0)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A level of a table: 1 holds entries for 4 KiB pages, 5 is the top of 5-level paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The page table.
    pub const L1: Self = Self(1);
    /// The page directory.
    pub const L2: Self = Self(2);
    /// The page-directory-pointer table.
    pub const L3: Self = Self(3);
    /// The PML4.
    pub const L4: Self = Self(4);
    /// The PML5.
    pub const L5: Self = Self(5);

    /// Returns the level as a number from 1 to 5.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the level of the tables that this level's entries point at, if there is one.
    #[must_use]
    #[inline]
    pub const fn below(self) -> Option<Self> {
        if self.0 > 1 {
            Some(Self(self.0 - 1))
        } else {
            None
        }
    }
}

/// The size of a page, as a translation lookaside buffer keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 0,
    /// 2 MiB: level 2 of every format with 8-byte entries.
    Size2M = 1,
    /// 4 MiB: level 2 of 32-bit paging.
    Size4M = 2,
    /// 1 GiB: level 3.
    Size1G = 3,
}

impl PageSize {
    /// Every size, smallest first.
    pub const ALL: [Self; 4] = [Self::Size4K, Self::Size2M, Self::Size4M, Self::Size1G];

    /// Returns the number of address bits inside the page.
    #[must_use]
    #[inline]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size2M => 21,
            Self::Size4M => 22,
            Self::Size1G => 30,
        }
    }

    /// Returns the number of bytes in the page.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
}

/// An address-space identifier of SVM, or a VPID of VMX: which guest a cached translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Asid(u16);

impl Asid {
    /// Wraps an identifier.
    #[must_use]
    #[inline]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// Returns the identifier.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A process-context identifier: the low 12 bits of CR3 when CR4.PCIDE is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pcid(u16);

impl Pcid {
    /// Wraps an identifier, of which the low 12 bits count.
    #[must_use]
    #[inline]
    pub const fn new(raw: u16) -> Self {
        Self(raw & 0xfff)
    }

    /// Returns the identifier.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}
