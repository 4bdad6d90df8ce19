//! The short way to an instruction's bytes.
//!
//! The processor has just fetched from the address, so that nothing needs judging: [`walk`] follows 4-level tables down and stops at
//! whatever is unusual, tables beyond the hole for devices included. Every other question about the guest's tables goes to the library's walker; this one is asked at each exit
//! that needs decoding, and costs a third.

use vmmu::addr::{Gpa, Gva, Level};

use crate::arch::guest_ram::GuestRam;

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

#[cfg(test)]
mod the_short_way_is_the_walkers {
    use super::*;
    use crate::guest_tables::Tables;
    use vmmu::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};
    use vmmu::walk::{Access, Walk, Walker};

    /// Tables at 4 KiB pages from 0x1000 on: a 4 KiB, a 2 MiB and a 1 GiB page, and one that is not there.
    fn tables() -> GuestRam {
        let ram = GuestRam::on_heap(1);
        for (at, entry) in [
            (0x1000 + 8, 0x2027u64),
            (0x2000, 0x3027),
            (0x2000 + 8, 0x4000_0000 | 0xa7),
            (0x3000, 0x4027),
            (0x3000 + 8, 0x0060_0000 | 0xa7),
            (0x4000 + 0x28, 0x9027),
            (0x4000 + 0x30, 0x9026),
        ] {
            ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        }
        ram
    }

    #[test]
    fn for_pages_of_every_size_and_for_none() {
        let ram = tables();
        let cpu = CpuModel {
            phys_bits: PhysBits::MAX,
            features: CpuFeatures::PAGES_1G,
        };
        let walker = Walker::new(PagingState {
            cr0: Cr0::PE | Cr0::PG,
            cr3: Cr3::new(0x1000),
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA,
            ..PagingState::reset(cpu)
        });
        let base = 1 << 39;
        let mut found = 0;
        for offset in [
            0x5123,
            0x6123,
            0x20_1234,
            0x4012_3456,
            0x8000_0000,
            0x40_0000,
            1 << 40,
        ] {
            let gva = Gva::new(base + offset);
            let mut walk_record = Walk::new();
            let result = walker.probe(&Tables(&ram), gva, Access::FETCH, &mut walk_record);
            let expected = result.ok().map(|()| walk_record.gpa());
            assert_eq!(walk(&ram, Gpa::new(0x1000), gva), expected, "{gva}");
            found += usize::from(expected.is_some());
        }
        assert_eq!(found, 3);
    }
}
