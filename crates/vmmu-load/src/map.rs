//! The memory map that a guest is given.

use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Gpa;

/// Where conventional memory ends; what lies between here and 1 MiB is reported as reserved.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// Where RAM goes on after the legacy area.
pub(super) const HIGH_START: u64 = 0x10_0000;

/// A range of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// Where it starts.
    pub start: Gpa,
    /// How long it is.
    pub bytes: u64,
    /// Its type.
    pub kind: MapKind,
}

/// The type of a range, in the numbers that all three protocols share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// Usable RAM.
    Ram = 1,
    /// Reserved.
    Reserved = 2,
}

/// Returns the memory map for ranges of RAM: the legacy area, with the firmware's tables in it, is reserved.
#[must_use]
pub fn memory_map(ranges: &[Range<Gpa>]) -> Vec<MapEntry> {
    let entry = |range: Range<u64>, kind| MapEntry {
        start: Gpa::new(range.start),
        bytes: range.end - range.start,
        kind,
    };
    let mut map = Vec::new();
    for range in ranges {
        let range = range.start.get()..range.end.get();
        if range.start == 0 && range.end > HIGH_START {
            map.push(entry(0..LOW_END, MapKind::Ram));
            map.push(entry(LOW_END..HIGH_START, MapKind::Reserved));
            map.push(entry(HIGH_START..range.end, MapKind::Ram));
        } else {
            map.push(entry(range, MapKind::Ram));
        }
    }
    map
}

#[cfg(test)]
mod the_map {
    use super::{Gpa, Vec, memory_map};

    #[test]
    fn leaves_the_legacy_area_out() {
        let range = |start, end| Gpa::new(start)..Gpa::new(end);
        let map = memory_map(&[range(0, 64 << 20), range(4 << 30, 5 << 30)]);
        let kinds: Vec<u32> = map.iter().map(|entry| entry.kind as u32).collect();
        assert_eq!(kinds, [1, 2, 1, 1]);
        assert!(
            map.windows(2)
                .all(|pair| pair[0].start.get() + pair[0].bytes <= pair[1].start.get())
        );
    }
}
