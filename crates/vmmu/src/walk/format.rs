//! The five formats of guest translation, as numbers.
//!
//! [`GuestFormat`] answers what a format's tables look like: how many levels, how wide an entry, which address bits choose a slot
//! and what a leaf spans. The walk is compiled once per format through [`Format`], so that all of this folds into constants.
//!
//! Invariants:
//! 1. [`GuestFormat::levels`] runs from the root downwards without a gap and ends at level 1; it is empty without paging.
//! 2. A leaf's base frame is aligned to [`GuestFormat::leaf_frames`].

use super::gpte::Gpte;
use crate::addr::{Gfn, Level, PAGE_SHIFT};

/// How the guest translates, chosen by CR0.PG, CR4.PAE, EFER.LMA and CR4.LA57 (Intel SDM vol. 3, section 4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum GuestFormat {
    /// Paging is off: a linear address is the physical address.
    Off,
    /// Two levels of 4-byte entries, 4 KiB and 4 MiB pages (AMD APM vol. 2, section 5.2.2).
    Bits32,
    /// Legacy mode with 8-byte entries below four page-directory pointers (AMD APM vol. 2, section 5.2.3).
    Pae,
    /// Long mode, 48-bit addresses (AMD APM vol. 2, section 5.3).
    Level4,
    /// Long mode, 57-bit addresses (AMD APM vol. 2, section 5.3).
    Level5,
}

/// The size of an entry of a guest table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum GpteWidth {
    /// 32 bits, read and exchanged as such.
    Bytes4 = 4,
    /// 64 bits, read and exchanged as such.
    Bytes8 = 8,
}

impl GpteWidth {
    /// Returns the number of bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self as u64
    }
}

impl GuestFormat {
    /// Returns the levels of the format's tables, from the root down.
    #[inline]
    pub const fn levels(self) -> &'static [Level] {
        match self {
            Self::Off => &[],
            Self::Bits32 => &[Level::L2, Level::L1],
            Self::Pae => &[Level::L3, Level::L2, Level::L1],
            Self::Level4 => &[Level::L4, Level::L3, Level::L2, Level::L1],
            Self::Level5 => &[Level::L5, Level::L4, Level::L3, Level::L2, Level::L1],
        }
    }
    /// Returns the level of the root, or `None` without paging.
    #[inline]
    pub const fn top(self) -> Option<Level> {
        match self {
            Self::Off => None,
            Self::Bits32 => Some(Level::L2),
            Self::Pae => Some(Level::L3),
            Self::Level4 => Some(Level::L4),
            Self::Level5 => Some(Level::L5),
        }
    }
    /// Returns the width of an entry.
    #[inline]
    pub const fn width(self) -> GpteWidth {
        match self {
            Self::Bits32 => GpteWidth::Bytes4,
            _ => GpteWidth::Bytes8,
        }
    }
    /// Tells whether the format belongs to long mode.
    #[inline]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::Level4 | Self::Level5)
    }
    /// Returns the number of the lowest address bit that chooses a slot at `level`.
    #[inline]
    pub const fn shift(self, level: Level) -> u32 {
        let bits = if matches!(self, Self::Bits32) { 10 } else { 9 };
        PAGE_SHIFT + bits * (level.get() as u32 - 1)
    }
    /// Returns how many entries a table of `level` has.
    #[inline]
    pub const fn entries(self, level: Level) -> u64 {
        match (self, level) {
            (Self::Bits32, _) => 1024,
            (Self::Pae, Level::L3) => 4,
            _ => 512,
        }
    }
    /// Returns the offset, in its table, of the entry of `level` that translates `gva`.
    #[inline]
    pub const fn entry_offset(self, level: Level, gva: u64) -> u64 {
        ((gva >> self.shift(level)) & (self.entries(level) - 1)) * self.width().bytes()
    }
    /// Returns how many 4 KiB frames a leaf of `level` spans: 1024 for the 4 MiB page of 32-bit paging.
    #[inline]
    pub const fn leaf_frames(self, level: Level) -> u64 {
        1 << (self.shift(level) - PAGE_SHIFT)
    }
    /// Returns the first frame of the page that the leaf `gpte` of `level` maps.
    ///
    /// A 4 MiB page keeps address bits 39:32 in entry bits 20:13 (PSE-36; Intel SDM vol. 3, table 4-4).
    #[inline]
    pub const fn leaf_base(self, level: Level, gpte: Gpte) -> Gfn {
        match (self, level) {
            (Self::Bits32, Level::L2) => {
                Gfn::new((gpte.raw() >> PAGE_SHIFT & 0xf_fc00) | (gpte.raw() >> 13 & 0xff) << 20)
            }
            _ => Gfn::new(gpte.frame().get() & !(self.leaf_frames(level) - 1)),
        }
    }
    /// Returns the frame that `linear` lies in, in the page that the leaf `gpte` of `level` maps.
    #[inline]
    pub const fn leaf_frame(self, level: Level, gpte: Gpte, linear: u64) -> Gfn {
        // The first arm is the second one at level 1; said apart, it costs no variable shifts in an unrolled walk.
        match level {
            Level::L1 => gpte.frame(),
            _ => self
                .leaf_base(level, gpte)
                .wrapping_add(linear >> PAGE_SHIFT & (self.leaf_frames(level) - 1)),
        }
    }
    /// Returns the part of `gva` that this format translates: 32 bits outside long mode.
    #[inline]
    pub const fn linear(self, gva: u64) -> u64 {
        if self.is_long() {
            gva
        } else {
            gva & 0xffff_ffff
        }
    }
    /// Tells whether `gva` is canonical: in long mode all bits above the translated ones equal the highest of them
    /// (AMD APM vol. 2, section 5.3.1).
    #[inline]
    pub const fn is_canonical(self, gva: u64) -> bool {
        let unused = match self {
            Self::Level4 => 16,
            Self::Level5 => 7,
            _ => return true,
        };
        ((gva << unused) as i64 >> unused) as u64 == gva
    }
    /// Tells whether the PS bit of an entry of `level` may make it a leaf, features and PSE apart.
    #[inline]
    pub const fn may_be_large(self, level: Level) -> bool {
        matches!(level, Level::L2) || (self.is_long() && matches!(level, Level::L3))
    }
    /// Tells whether entries of `level` carry R/W, U/S and A. The page-directory pointers of PAE paging don't.
    #[inline]
    pub const fn has_rights(self, level: Level) -> bool {
        !matches!((self, level), (Self::Pae, Level::L3))
    }
}

/// A [`GuestFormat`] as a type.
pub(super) trait Format {
    /// The format.
    const FORMAT: GuestFormat;
}

macro_rules! formats {
    ($($name:ident),*) => {$(
        #[doc = concat!("[`GuestFormat::", stringify!($name), "`] as a type.")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl Format for $name {
            const FORMAT: GuestFormat = GuestFormat::$name;
        }
    )*};
}
formats!(Bits32, Pae, Level4, Level5);
