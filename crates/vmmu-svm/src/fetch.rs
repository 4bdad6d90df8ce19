//! The short way to an instruction's bytes.
//!
//! The processor has just fetched from the address, so that nothing needs judging: [`walk`] follows 4-level tables down and stops at
//! whatever is unusual, tables beyond the hole for devices included. Every other question about the guest's tables goes to the library's walker; this one is asked at each exit
//! that needs decoding, and costs a third.

use vmmu::addr::{Gpa, Gva, Level};

use crate::arch::physical::GuestRam;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Follows the tables from `root` to the page of `gva`; `None` if an entry is not present or large where it can't be.
#[inline(always)]
pub fn walk(ram: &GuestRam, root: Gpa, gva: Gva) -> Option<Gpa> {
    let entry = |table: u64, level: Level| -> Option<u64> {
        let at = Gpa::new(table + level.index(gva.get()).get() as u64 * 8);
        let entry = ram.load64_low(at)?;
        if entry & PRESENT != 0 {
            Some(entry)
        } else {
            None
        }
    };
    let inside = |entry: u64, level: Level| {
        let mask = level.bytes() - 1;
        Some(Gpa::new(entry & ADDRESS & !mask | gva.get() & mask))
    };
    let four = entry(root.get(), Level::L4)?;
    let three = entry(four & ADDRESS, Level::L3)?;
    if three & LARGE != 0 {
        return inside(three, Level::L3);
    }
    let two = entry(three & ADDRESS, Level::L2)?;
    if two & LARGE != 0 {
        return inside(two, Level::L2);
    }
    inside(entry(two & ADDRESS, Level::L1)?, Level::L1)
}
