//! One entry of a guest table, as the guest left it.
//!
//! A [`Gpte`] is a copy: read once, judged and used from then on without another look at memory. Its bits are an allegation; only
//! [`Decoder::decode`](super::Decoder::decode) says what they mean at a level.
//!
//! Invariants:
//! 1. A 4-byte entry is kept zero-extended, so it never denies execution.

use bitflags::bitflags;

use super::permission::Rights;
use crate::addr::{Gfn, PAGE_SHIFT};
use crate::paging::ProtectionKey;

bitflags! {
    /// The bits of an entry that choose the memory type (AMD APM vol. 2, section 7.8.2).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct CacheBits: u8 {
        /// Page-level write-through.
        const PWT = 1 << 0;
        /// Page-level cache disable.
        const PCD = 1 << 1;
        /// Page-attribute-table index.
        const PAT = 1 << 2;
    }
}

/// An entry of a guest table as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Gpte(u64);

impl Gpte {
    /// P: the entry translates.
    pub const PRESENT: Self = Self(1 << 0);
    /// R/W: writes are allowed.
    pub const WRITABLE: Self = Self(1 << 1);
    /// U/S: user accesses are allowed.
    pub const USER: Self = Self(1 << 2);
    /// A: the entry was used.
    pub const ACCESSED: Self = Self(1 << 5);
    /// D: the page was written; means something in a leaf only.
    pub const DIRTY: Self = Self(1 << 6);
    /// PS: the entry is a leaf, where the level allows it.
    pub const LARGE: Self = Self(1 << 7);
    /// G: the translation survives a CR3 load; means something in a leaf only.
    pub const GLOBAL: Self = Self(1 << 8);
    /// NX: fetches are forbidden.
    pub const NO_EXECUTE: Self = Self(1 << 63);

    /// Makes an entry from its bits.
    #[inline]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }
    /// Returns the entry's bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// Tells whether all bits of `mask` are set.
    #[inline]
    pub const fn has(self, mask: Self) -> bool {
        self.0 & mask.0 == mask.0
    }
    /// Returns the entry with the bits of `mask` set too.
    #[inline]
    #[must_use]
    pub const fn with(self, mask: Self) -> Self {
        Self(self.0 | mask.0)
    }
    /// Returns the entry without the bits of `mask`.
    #[inline]
    #[must_use]
    pub const fn without(self, mask: Self) -> Self {
        Self(self.0 & !mask.0)
    }
    /// Tells whether an entry read again is what was `seen`, but for A and D that another walk may have set meanwhile. One that has lost A or D is another
    /// entry: software cleared it, to learn whether the page is used again.
    #[inline]
    pub const fn is_still(self, seen: Self) -> bool {
        let gained = self.0 & !seen.0;
        self.0 ^ gained == seen.0 && gained & !(Self::ACCESSED.0 | Self::DIRTY.0) == 0
    }
    /// Returns the frame in bits 51:12; in a large leaf its low bits hold something else.
    #[inline]
    pub const fn frame(self) -> Gfn {
        Gfn::new((self.0 & 0x000f_ffff_ffff_f000) >> PAGE_SHIFT)
    }
    /// Returns the rights that the entry itself gives, NX counted whether or not it is enabled.
    #[inline]
    pub const fn rights(self) -> Rights {
        Through::NOTHING.pass(self).rights()
    }
    /// Returns the protection key in bits 62:59 of a long-mode leaf.
    #[inline]
    pub const fn protection_key(self) -> ProtectionKey {
        ProtectionKey::truncate(self.0 >> 59)
    }
    /// Returns the memory-type bits of a 4 KiB leaf, whose PAT bit is bit 7.
    #[inline]
    pub const fn cache_bits_4k(self) -> CacheBits {
        CacheBits::from_bits_truncate((self.0 >> 3 & 3 | self.0 >> 5 & 4) as u8)
    }
    /// Returns the memory-type bits of a large leaf, whose PAT bit is bit 12.
    #[inline]
    pub const fn cache_bits_large(self) -> CacheBits {
        CacheBits::from_bits_truncate((self.0 >> 3 & 3 | self.0 >> 10 & 4) as u8)
    }
}

impl core::fmt::Debug for Gpte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Gpte({:#x})", self.0)
    }
}

impl core::fmt::LowerHex for Gpte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::LowerHex::fmt(&self.0, f)
    }
}

/// What the entries on the way down say together: the conjunction of their bits for R/W, U/S and A, the disjunction for NX.
///
/// Passing an entry is one and and one or; the rights are taken out only where somebody asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Through {
    all: u64,
    any: u64,
}

impl Through {
    /// Nothing was passed yet: everything is allowed, and A is set everywhere.
    pub(super) const NOTHING: Self = Self { all: !0, any: 0 };

    /// Passes one more entry.
    #[inline]
    pub(super) const fn pass(self, gpte: Gpte) -> Self {
        Self {
            all: self.all & gpte.0,
            any: self.any | gpte.0,
        }
    }
    /// Returns what all entries passed allow.
    #[inline]
    pub(super) const fn rights(self) -> Rights {
        let denied = self.any >> 61 & 4;
        Rights::from_bits_truncate((self.all >> 1 & 3 | denied ^ 4) as u8)
    }
    /// Tells whether every entry passed has A set.
    #[inline]
    pub(super) const fn all_accessed(self) -> bool {
        self.all & Gpte::ACCESSED.0 != 0
    }
}
