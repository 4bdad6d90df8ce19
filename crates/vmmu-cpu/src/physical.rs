//! The memory that a processor walks, as a trait.
//!
//! Key type: [`Physical`]. [`crate::PhysMemory`] implements it; an embedder that has host memory of its own implements it over that.
//!
//! Invariants:
//! 1. A processor loads table entries and compare-exchanges accessed and dirty bits, nothing else: data is its user's affair.
//! 2. A word changes by one atomic operation, whoever changes it.

use crate::addr::{Frame, Hpa};
use crate::mem::pool::{Moment, Unusable};

/// Host-physical memory as a walker needs it. Any number of processors share it through `&self`.
pub trait Physical {
    /// Says whether there is memory at `hpa`.
    fn contains(&self, hpa: Hpa) -> bool;

    /// Returns the present moment in the order of frees. Whoever keeps a reference to a frame reads it *after* the reference.
    ///
    /// A memory whose frames are never freed while a processor may reach them returns the same moment always.
    fn moment(&self) -> Moment;

    /// Says whether a reference to `frame`, read at `since`, may still be used.
    ///
    /// # Errors
    /// [`Unusable`] when the frame is outside of memory, free, or was freed after `since`.
    fn usable(&self, frame: Frame, since: Moment) -> Result<(), Unusable>;

    /// Reads the 64-bit word at `hpa` (aligned to 8) through a reference to its frame that was read at `since`.
    ///
    /// Has acquire ordering, and reads the word *before* it asks whether the frame is usable: poison never passes for an entry.
    ///
    /// # Errors
    /// As [`Physical::usable`].
    fn walk_load(&self, hpa: Hpa, since: Moment) -> Result<u64, Unusable>;

    /// Stores `new` at `hpa` (aligned to 8) if the word there is `current`, atomically.
    ///
    /// # Errors
    /// The word found, when it was another.
    fn compare_exchange(&self, hpa: Hpa, current: u64, new: u64) -> Result<u64, u64>;

    /// Reads the half-word at `hpa` (aligned to 4) like [`Physical::walk_load`].
    ///
    /// # Errors
    /// As [`Physical::usable`].
    #[inline]
    fn walk_load32(&self, hpa: Hpa, since: Moment) -> Result<u32, Unusable> {
        self.walk_load(word_of(hpa), since)
            .map(|word| half(word, hpa))
    }

    /// Stores `new` in the half-word at `hpa` (aligned to 4) if it is `current`, atomically.
    ///
    /// # Errors
    /// The half-word found, when it was another.
    fn compare_exchange32(&self, hpa: Hpa, current: u32, new: u32) -> Result<u32, u32> {
        let at = word_of(hpa);
        let Ok(mut old) = self.walk_load(at, Moment::LATEST) else {
            return Err(!current);
        };
        while half(old, hpa) == current {
            // The other half may change at any time; only this one decides.
            match self.compare_exchange(at, old, with_half(old, hpa, new)) {
                Ok(_) => return Ok(current),
                Err(found) => old = found,
            }
        }
        Err(half(old, hpa))
    }
}

/// Returns the address of the aligned word that holds the half-word at `hpa`.
const fn word_of(hpa: Hpa) -> Hpa {
    Hpa::new(hpa.get() & !7)
}

/// Returns the half of `word` that `hpa` selects.
pub(crate) const fn half(word: u64, hpa: Hpa) -> u32 {
    (word >> ((hpa.get() & 4) * 8)) as u32
}

/// Returns `word` with the half that `hpa` selects replaced.
pub(crate) const fn with_half(word: u64, hpa: Hpa, value: u32) -> u64 {
    let shift = (hpa.get() & 4) * 8;
    word & !(0xffff_ffff << shift) | (value as u64) << shift
}

#[cfg(test)]
mod halves {
    use super::Physical;
    use crate::addr::Hpa;
    use crate::mem::PhysMemory;
    use crate::mem::pool::{Moment, Unusable};

    /// A memory that relies on the trait's own half-words.
    struct Plain(PhysMemory);

    impl Physical for Plain {
        fn contains(&self, hpa: Hpa) -> bool {
            self.0.contains(hpa)
        }
        fn moment(&self) -> Moment {
            self.0.moment()
        }
        fn usable(&self, frame: crate::Frame, since: Moment) -> Result<(), Unusable> {
            self.0.usable(frame, since)
        }
        fn walk_load(&self, hpa: Hpa, since: Moment) -> Result<u64, Unusable> {
            assert_eq!(hpa.get() & 7, 0, "aligned");
            Physical::walk_load(&self.0, hpa, since)
        }
        fn compare_exchange(&self, hpa: Hpa, current: u64, new: u64) -> Result<u64, u64> {
            assert_eq!(hpa.get() & 7, 0, "aligned");
            self.0.compare_exchange(hpa, current, new)
        }
    }

    #[test]
    fn a_half_word_changes_alone_and_only_from_what_it_was() {
        let mem = Plain(PhysMemory::new(1));
        mem.0.store(Hpa::new(8), 0x1111_2222_3333_4444);
        let upper = Hpa::new(12);
        assert_eq!(mem.walk_load32(upper, Moment::LATEST), Ok(0x1111_2222));
        assert_eq!(mem.compare_exchange32(upper, 5, 6), Err(0x1111_2222));
        assert_eq!(
            mem.compare_exchange32(upper, 0x1111_2222, 6),
            Ok(0x1111_2222)
        );
        assert_eq!(mem.0.load(Hpa::new(8)), 0x6_3333_4444);
        assert!(mem.compare_exchange32(Hpa::new(0x1000), 5, 6).is_err());
    }
}
