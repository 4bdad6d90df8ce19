//! Entries of the tables that the processor walks, in the formats that it walks.
//!
//! Key types: [`Spte`] (one entry), [`EntryFormat`] (where a format keeps its bits).
//!
//! | bit | meaning in 4-level, 5-level, PAE and NPT tables (AMD APM vol. 2, 5.3 and 15.25; Intel SDM vol. 3, 4.5) |
//! |---|---|
//! | 0 P, 1 R/W, 2 U/S, 5 A, 6 D, 7 PS, 63 NX | the processor's |
//! | 10 KERNEL_WRITE | ours: the exception of rule R9, a supervisor-only writable entry under CR0.WP = 0 |
//!
//! Invariant:
//! 1. A zero entry is not present; nothing else is stored in a non-present entry.

use crate::addr::Pfn;
use crate::walk::{Gpte, Rights};

/// An entry of a table that the processor walks.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Spte(u64);

impl core::fmt::Debug for Spte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Spte({:#x})", self.0)
    }
}

/// Where a table format keeps its bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryFormat {
    /// Set in every present entry.
    pub present: u64,
    /// Set in every link to a table.
    pub link: u64,
    /// Set in every leaf, the memory type included.
    pub leaf: u64,
    /// Allows writing.
    pub write: u64,
    /// Allows user accesses.
    pub user: u64,
    /// Allows fetches.
    pub execute: u64,
    /// Forbids fetches.
    pub no_execute: u64,
    /// Set by the processor when it uses the entry.
    pub accessed: u64,
    /// Set by the processor when it writes through the leaf.
    pub dirty: u64,
    /// Makes an entry above level 1 a leaf.
    pub large: u64,
}

impl EntryFormat {
    /// 4-level and 5-level tables, PAE tables below the root, and AMD nested tables.
    pub const LONG: Self = Self {
        present: 1,
        link: 1 | 1 << 1 | 1 << 2,
        leaf: 1,
        write: 1 << 1,
        user: 1 << 2,
        execute: 0,
        no_execute: 1 << 63,
        accessed: 1 << 5,
        dirty: 1 << 6,
        large: 1 << 7,
    };
    /// The four page-directory pointers of PAE paging: R/W, U/S, A and NX are reserved there (APM vol. 2, 5.2.3).
    pub const PAE_ROOT: Self = Self {
        link: 1,
        ..Self::LONG
    };
    /// Intel extended page tables with accessed and dirty flags, write-back (SDM vol. 3, 29.3.2).
    pub const EPT: Self = Self {
        present: 1,
        link: 0b111,
        leaf: 1 | 6 << 3,
        write: 1 << 1,
        user: 0,
        execute: 1 << 2,
        no_execute: 0,
        accessed: 1 << 8,
        dirty: 1 << 9,
        large: 1 << 7,
    };

    /// Makes a leaf.
    #[inline]
    pub(crate) const fn make_leaf(&self, pfn: Pfn, rights: Rights, large: bool) -> Spte {
        let mut bits = self.leaf | pfn.address().get();
        bits |= if rights.contains(Rights::USER) {
            self.user
        } else {
            0
        };
        bits |= if rights.contains(Rights::EXECUTE) {
            self.execute
        } else {
            self.no_execute
        };
        bits |= if large { self.large } else { 0 };
        Spte(bits)
    }

    /// Makes a link to a table.
    #[inline]
    pub(crate) const fn make_link(&self, table: Pfn) -> Spte {
        Spte(self.link | table.address().get())
    }
}

/// What a page's role leaves of the rights of its guest entries (rule R9), as masks of entries: both are in the long format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Narrowing {
    /// R/W and U/S, where the role allows them.
    allowed: u64,
    /// NX, where the role forbids fetches.
    denied: u64,
}

#[inline]
const fn if_set(condition: bool, bit: u64) -> u64 {
    if condition { bit } else { 0 }
}

impl Narrowing {
    /// Narrows to `rights`.
    #[inline]
    pub(crate) const fn to(rights: Rights) -> Self {
        let EntryFormat {
            write,
            user,
            no_execute,
            ..
        } = EntryFormat::LONG;

        Self {
            allowed: if_set(rights.contains(Rights::WRITE), write)
                | if_set(rights.contains(Rights::USER), user),
            denied: if_set(!rights.contains(Rights::EXECUTE), no_execute),
        }
    }

    /// Makes the 4 KiB leaf with what is left of the rights of `gpte`.
    #[inline]
    pub(crate) const fn leaf(self, pfn: Pfn, gpte: Gpte) -> Spte {
        let rights = gpte.raw() & self.allowed | (gpte.raw() | self.denied) & Spte::NO_EXECUTE;
        Spte(EntryFormat::LONG.leaf | pfn.address().get() | rights)
    }
}

impl Spte {
    /// R/W in the long format.
    pub(crate) const WRITE: u64 = 1 << 1;
    /// U/S in the long format.
    pub(crate) const USER: u64 = 1 << 2;
    /// A in the long format.
    pub(crate) const ACCESSED: u64 = 1 << 5;
    /// D in the long format.
    pub(crate) const DIRTY: u64 = 1 << 6;
    /// PS.
    pub(crate) const LARGE: u64 = 1 << 7;
    /// NX in the long format.
    pub(crate) const NO_EXECUTE: u64 = 1 << 63;
    /// The exception of rule R9.
    pub(crate) const KERNEL_WRITE: u64 = 1 << 10;
    /// What the processor sets by itself in the long format.
    pub(crate) const HARDWARE: u64 = Self::ACCESSED | Self::DIRTY;
    /// The frame's address bits.
    pub(crate) const FRAME: u64 = 0x000f_ffff_ffff_f000;

    #[inline]
    pub(crate) const fn new(bits: u64) -> Self {
        Self(bits)
    }
    #[inline]
    pub(crate) const fn raw(self) -> u64 {
        self.0
    }
    #[inline]
    pub(crate) const fn is_present(self) -> bool {
        self.0 != 0
    }
    #[inline]
    pub(crate) const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
    #[inline]
    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }
    #[inline]
    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }
    #[inline]
    pub(crate) const fn pfn(self) -> Pfn {
        Pfn::new((self.0 & Self::FRAME) >> 12)
    }
    /// Tells whether the two map the same frame at the same size, whatever the rights.
    #[inline]
    pub(crate) const fn same_target(self, other: Self) -> bool {
        (self.0 ^ other.0) & (Self::FRAME | Self::LARGE | 1) == 0
    }
}
