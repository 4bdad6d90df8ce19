//! The guest's tables as the walker reaches them.
//!
//! [`GpteMemory`] is the walker's only door to guest memory: one atomic load, one atomic compare-exchange. The library implements
//! it over its memory slots; a test implements it over an array.

use super::format::GpteWidth;
use super::gpte::Gpte;
use crate::addr::Gpa;

/// Why an entry of a guest table could not be reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpteError {
    /// No memory slot has the address, or what it has is no memory.
    #[error("no guest memory at the entry's address")]
    Missing,
    /// The frame is being taken back by the host; a later try finds it again or finds it missing.
    #[error("the entry's frame is being taken back")]
    Busy,
}

/// What became of a compare-exchange that reached memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum CasOutcome {
    /// The entry held the expected value and holds the new one.
    Done,
    /// The entry held something else and was left alone.
    Lost,
    /// The guest may not write there (a read-only slot); nothing was stored.
    ReadOnly,
}

/// Reads and updates entries of guest tables.
///
/// Called without locks held, from any CPU, at addresses that the guest chose. An address is a multiple of the width. An
/// implementation must not panic and may not form a Rust reference to guest memory.
pub trait GpteMemory {
    /// Reads the entry at `at` with one atomic load; a 4-byte entry is zero-extended.
    ///
    /// # Errors
    /// [`GpteError::Missing`] where there is no memory, [`GpteError::Busy`] while the frame is being taken back.
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError>;

    /// Replaces the entry at `at` by `new` if it is `current`, atomically, and marks its frame dirty if it did so.
    ///
    /// # Errors
    /// As [`GpteMemory::read`]. A read-only slot is no error but [`CasOutcome::ReadOnly`].
    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError>;
}

impl<M: GpteMemory + ?Sized> GpteMemory for &M {
    #[inline]
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError> {
        (**self).read(at, width)
    }
    #[inline]
    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        (**self).compare_exchange(at, width, current, new)
    }
}
