//! Memory as a pure input: the specification reads entries and never writes.
//!
//! Key types: [`Memory`], implemented by closures too, and [`Width`].
//!
//! Invariants
//! 1. During one call of a function of this crate the same read yields the same value.
//! 2. Every read is aligned to its width: tables are aligned and indices are scaled.

use crate::Physical;

/// The size of a paging-structure entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// Four bytes: 32-bit paging (SDM section 4.3).
    Four,
    /// Eight bytes: every other mode (SDM sections 4.4 and 4.5).
    Eight,
}

impl Width {
    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// Memory that holds paging structures.
pub trait Memory {
    /// Reads the entry at `at`, zero-extended; `None` where there is no memory.
    ///
    /// What a processor reads where nothing answers is the platform's affair, so such a walk ends
    /// in an outcome of its own ([`Outcome::Unbacked`](crate::Outcome::Unbacked)).
    fn read(&self, at: Physical, width: Width) -> Option<u64>;
}

impl<F> Memory for F
where
    F: Fn(Physical, Width) -> Option<u64>,
{
    fn read(&self, at: Physical, width: Width) -> Option<u64> {
        self(at, width)
    }
}
