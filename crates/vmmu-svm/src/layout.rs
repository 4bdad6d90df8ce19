//! Who gets which part of the host's RAM: the guest, tables, the heap.
//!
//! [`Layout::divide`] is a pure function of what the boot loader reports. Guest RAM is taken from the top of each range, in whole
//! 2 MiB blocks; what is left below it is split between tables and heap.
//!
//! Invariants:
//! 1. The parts overlap neither each other nor anything reserved.
//! 2. No guest address equals its host address: a translation that was skipped shows at once.
//! 3. Tables lie below 4 GiB, where a PAE-format root must.

use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::{Gpa, Hpa};

/// The block that guest RAM is made of.
pub const BLOCK: u64 = 2 << 20;
/// Where the guest's RAM has its hole for devices: from 3 GiB to 4 GiB.
pub const HOLE: Range<u64> = 3 << 30..4 << 30;
const FOUR_GIB: u64 = 4 << 30;
/// The least that tables and heap need together.
const LEAST_SHARE: u64 = 24 << 20;

/// A contiguous part of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Where it is.
    pub hpa: Hpa,
    /// How long it is: a multiple of [`BLOCK`].
    pub bytes: u64,
}

impl Piece {
    /// Translates a guest address if `length` bytes from it lie in the piece.
    #[inline]
    pub fn host(&self, gpa: Gpa, length: u64) -> Option<Hpa> {
        let offset = gpa.get().wrapping_sub(self.gpa.get());
        (offset < self.bytes && length <= self.bytes - offset)
            .then(|| self.hpa.wrapping_add(offset))
    }
}

/// The host's RAM, divided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Guest RAM, ordered by guest address.
    pub guest: Vec<Piece>,
    /// Frames for tables.
    pub tables: Range<Hpa>,
    /// The heap.
    pub heap: Range<Hpa>,
}

/// Why RAM can't be divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The guest's size is no multiple of 2 MiB, or zero.
    #[error("guest memory of {0} bytes is not a multiple of 2 MiB")]
    Unaligned(u64),
    /// Too little is left.
    #[error("the machine is too small for a guest of {guest} bytes: {missing} bytes are missing")]
    TooSmall {
        /// What the guest should have.
        guest: u64,
        /// How much is missing.
        missing: u64,
    },
}

impl Layout {
    /// Divides `ram` without `reserved`, so that the guest gets `guest` bytes.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn divide(
        ram: &[Range<Hpa>],
        reserved: &[Range<Hpa>],
        guest: u64,
    ) -> Result<Self, LayoutError> {
        if guest == 0 || !guest.is_multiple_of(BLOCK) {
            return Err(LayoutError::Unaligned(guest));
        }
        let mut free = subtract(ram, reserved);
        let pieces = place_guest(&mut free, guest)?;
        let too_small = |missing| LayoutError::TooSmall { guest, missing };
        let rest = free
            .iter()
            .filter(|range| range.end <= FOUR_GIB)
            .max_by_key(|range| range.end - range.start);
        let rest = rest.cloned().ok_or(too_small(LEAST_SHARE))?;
        let length = rest.end - rest.start;
        if length < LEAST_SHARE {
            return Err(too_small(LEAST_SHARE - length));
        }
        let middle = rest.start + ((length / 2) & !0xfff);
        let range = |start, end| Hpa::new(start)..Hpa::new(end);
        Ok(Self {
            guest: pieces,
            heap: range(rest.start, middle),
            tables: range(middle, rest.end),
        })
    }
}

/// Cuts the guest's pieces out of the free ranges: first from ranges above 4 GiB, then from the longest ones.
fn place_guest(free: &mut [Range<u64>], guest: u64) -> Result<Vec<Piece>, LayoutError> {
    let low = guest.min(HOLE.start);
    let mut wanted = [0..low, HOLE.end..HOLE.end + (guest - low)]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>();
    let mut pieces = Vec::new();
    free.sort_by_key(|range| {
        (
            range.start < FOUR_GIB,
            core::cmp::Reverse(range.end - range.start),
        )
    });
    for range in free {
        while let Some(part) = wanted.first_mut() {
            let keep = if range.start < FOUR_GIB {
                LEAST_SHARE
            } else {
                0
            };
            let end = range.end & !(BLOCK - 1);
            let start = (range.start + keep).next_multiple_of(BLOCK);
            let bytes = (part.end - part.start).min(end.saturating_sub(start));
            if bytes == 0 {
                break;
            }
            let hpa = end - bytes;
            range.end = hpa;
            if hpa == part.start {
                // An identity mapping would hide mistakes: leave the lowest block out and go on below it.
                continue;
            }
            pieces.push(Piece {
                gpa: Gpa::new(part.start),
                hpa: Hpa::new(hpa),
                bytes,
            });
            part.start += bytes;
            if part.is_empty() {
                wanted.remove(0);
            }
        }
    }
    pieces.sort_by_key(|piece: &Piece| piece.gpa);
    let missing = wanted.iter().map(|part| part.end - part.start).sum();
    if missing == 0 {
        Ok(pieces)
    } else {
        Err(LayoutError::TooSmall { guest, missing })
    }
}

/// Returns what is left of `ram` without `reserved`, in whole pages.
fn subtract(ram: &[Range<Hpa>], reserved: &[Range<Hpa>]) -> Vec<Range<u64>> {
    let mut free: Vec<Range<u64>> = ram
        .iter()
        .map(|range| range.start.get().next_multiple_of(4096)..range.end.get() & !0xfff)
        .collect();
    for hole in reserved {
        let (start, end) = (
            hole.start.get() & !0xfff,
            hole.end.get().next_multiple_of(4096),
        );
        free = free
            .iter()
            .flat_map(|range| {
                [
                    range.start..range.end.min(start),
                    range.start.max(end)..range.end,
                ]
            })
            .collect();
        free.retain(|range| range.start < range.end);
    }
    free
}

#[cfg(test)]
mod ram_is_divided {
    use super::*;

    fn range(start: u64, end: u64) -> Range<Hpa> {
        Hpa::new(start)..Hpa::new(end)
    }
    const MIB: u64 = 1 << 20;

    fn check(layout: &Layout, ram: &[Range<Hpa>], reserved: &[Range<Hpa>], guest: u64) {
        let mut parts = layout
            .guest
            .iter()
            .map(|p| p.hpa.get()..p.hpa.get() + p.bytes)
            .collect::<Vec<_>>();
        assert_eq!(parts.iter().map(|p| p.end - p.start).sum::<u64>(), guest);
        parts.extend([&layout.heap, &layout.tables].map(|r| r.start.get()..r.end.get()));
        parts.extend(reserved.iter().map(|r| r.start.get()..r.end.get()));
        parts.sort_by_key(|p| p.start);
        assert!(
            parts.windows(2).all(|w| w[0].end <= w[1].start),
            "{parts:x?}"
        );
        assert!(parts.iter().all(|p| {
            ram.iter()
                .any(|r| r.start.get() <= p.start && p.end <= r.end.get())
        }));
        assert!(layout.tables.end.get() <= FOUR_GIB);
        for piece in &layout.guest {
            assert_ne!(piece.gpa.get(), piece.hpa.get());
            assert!(piece.gpa.get().is_multiple_of(BLOCK) && piece.hpa.get().is_multiple_of(BLOCK));
        }
    }

    #[test]
    fn a_small_machine_keeps_its_parts_apart() {
        let ram = [range(0, 0x9fc00), range(MIB, 640 * MIB)];
        let reserved = [
            range(0, 4096),
            range(2 * MIB, 4 * MIB),
            range(600 * MIB, 639 * MIB),
        ];
        let layout = Layout::divide(&ram, &reserved, 512 * MIB).unwrap();
        check(&layout, &ram, &reserved, 512 * MIB);
        assert_eq!(layout.guest.len(), 1);
    }

    #[test]
    fn a_guest_beyond_the_hole_gets_several_pieces_and_no_identity() {
        let ram = [range(MIB, 3072 * MIB), range(4096 * MIB, 7168 * MIB)];
        let reserved = [range(2 * MIB, 4 * MIB)];
        let layout = Layout::divide(&ram, &reserved, 4096 * MIB).unwrap();
        check(&layout, &ram, &reserved, 4096 * MIB);
        assert!(layout.guest.iter().all(|p| !HOLE.contains(&p.gpa.get())));
    }

    #[test]
    fn too_little_memory_is_an_error_that_says_how_much() {
        let ram = [range(MIB, 128 * MIB)];
        assert!(
            matches!(Layout::divide(&ram, &[], 512 * MIB), Err(LayoutError::TooSmall { missing, .. }) if missing > 384 * MIB)
        );
        assert_eq!(
            Layout::divide(&ram, &[], 12345),
            Err(LayoutError::Unaligned(12345))
        );
    }
}
