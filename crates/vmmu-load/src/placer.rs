//! Finding room in guest RAM.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Gpa;

use crate::map::{HIGH_START, LOW_END};
use crate::{GuestRam, LoadError};

/// Keeps account of what is taken.
#[derive(Debug)]
pub(super) struct Placer {
    ranges: Vec<Range<u64>>,
    taken: Vec<Range<u64>>,
}

impl Placer {
    /// Makes a placer for RAM of which nothing is taken but its first page and the legacy area.
    pub(super) fn new(ram: &impl GuestRam) -> Self {
        let ranges = ram.ranges();
        Self {
            ranges: ranges
                .iter()
                .map(|range| range.start.get()..range.end.get())
                .collect(),
            taken: vec![0..0x1000, LOW_END & !0xfff..HIGH_START],
        }
    }

    /// Takes a range that must lie just there.
    ///
    /// # Errors
    /// [`LoadError::NoMemory`] if it isn't free RAM.
    pub(super) fn take(&mut self, start: Gpa, bytes: u64) -> Result<(), LoadError> {
        let no_memory = LoadError::NoMemory(start);
        let start = start.get();
        let Some(end) = start.checked_add(bytes) else {
            return Err(no_memory);
        };
        let inside = self
            .ranges
            .iter()
            .any(|range| range.start <= start && end <= range.end);
        if !inside || self.collides(&(start..end)).is_some() {
            return Err(no_memory);
        }
        self.taken.push(start..end);
        Ok(())
    }

    /// Takes the highest free pages below `limit`, in the first range of RAM, which ends below 4 GiB.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub(super) fn place(
        &mut self,
        what: &'static str,
        bytes: u64,
        limit: u64,
    ) -> Result<Gpa, LoadError> {
        let no_room = LoadError::NoRoom { what, bytes };
        let length = bytes
            .max(1)
            .checked_next_multiple_of(4096)
            .ok_or(no_room.clone())?;
        let ram_end = self.ranges.first().map_or(0, |range| range.end);
        let mut end = ram_end.min(limit).min(1 << 32) & !0xfff;
        loop {
            let start = end.checked_sub(length).ok_or(no_room.clone())?;
            match self.collides(&(start..end)) {
                Some(taken) => end = taken & !0xfff,
                None => {
                    self.taken.push(start..end);
                    return Ok(Gpa::new(start));
                }
            }
        }
    }

    /// Takes pages below 640 KiB.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub(super) fn place_low(&mut self, what: &'static str, bytes: u64) -> Result<Gpa, LoadError> {
        self.place(what, bytes, LOW_END)
    }

    fn collides(&self, range: &Range<u64>) -> Option<u64> {
        self.taken
            .iter()
            .filter(|taken| taken.start < range.end && range.start < taken.end)
            .map(|taken| taken.start)
            .min()
    }
}

#[cfg(test)]
mod parts_find_their_places {
    use super::{Gpa, LoadError, Placer};
    use crate::FlatRam;

    #[test]
    fn and_nothing_overlaps_what_was_taken() {
        let mut placer = Placer::new(&FlatRam::new(4 << 20));
        placer.take(Gpa::new(0x30_0000), 0x10_0000).unwrap();
        assert_eq!(placer.place("a", 0x1001, u64::MAX), Ok(Gpa::new(0x2f_e000)));
        assert_eq!(
            placer.take(Gpa::new(0x2f_f000), 0x10),
            Err(LoadError::NoMemory(Gpa::new(0x2f_f000)))
        );
        assert_eq!(placer.place_low("b", 1), Ok(Gpa::new(0x9_e000)));
        assert!(matches!(
            placer.place("c", 4 << 20, u64::MAX),
            Err(LoadError::NoRoom { what: "c", .. })
        ));
        let mut uneven = Placer::new(&FlatRam::new(0x30_0800));
        assert_eq!(uneven.place("d", 1, u64::MAX), Ok(Gpa::new(0x2f_f000)));
        assert!(placer.take(Gpa::new(u64::MAX), 2).is_err());
        assert!(placer.place("d", u64::MAX, u64::MAX).is_err());
    }
}
