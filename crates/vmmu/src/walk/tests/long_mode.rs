//! 4-level and 5-level paging (AMD APM vol. 2, section 5.3; Intel SDM vol. 3, section 4.5).

use super::guest::{ALL, Memory, ROOT, fault, frame, level4, level5, walk};
use crate::addr::{Gfn, Gpa, Level};
use crate::paging::{CpuFeatures, PagingState};
use crate::walk::{Access, GpteWidth, PageFaultCode, Rights, WalkFailure};

/// An address with a different slot at each level: 3, 5, 7, 9, 11 from level 5 down to 1.
const GVA: u64 = 3 << 48 | 5 << 39 | 7 << 30 | 9 << 21 | 11 << 12 | 0x123;
/// The same without level 5.
const GVA4: u64 = GVA & ((1 << 48) - 1);
const FRAME: u64 = 0xab_cdef;

/// Maps [`GVA4`] to [`FRAME`] through tables at 0x1000 to 0x4000.
fn tables4() -> Memory {
    let memory = Memory::default();
    memory.put(ROOT + 8 * 5, 0x2000 | ALL);
    memory.put(0x2000 + 8 * 7, 0x3000 | ALL);
    memory.put(0x3000 + 8 * 9, 0x4000 | ALL);
    memory.put(0x4000 + 8 * 11, FRAME << 12 | ALL);
    memory
}

/// Maps [`GVA`] likewise, with the level-5 table first and everything else one page on.
fn tables5() -> Memory {
    let memory = Memory::default();
    memory.put(ROOT + 8 * 3, 0x2000 | ALL);
    memory.put(0x2000 + 8 * 5, 0x3000 | ALL);
    memory.put(0x3000 + 8 * 7, 0x4000 | ALL);
    memory.put(0x4000 + 8 * 9, 0x5000 | ALL);
    memory.put(0x5000 + 8 * 11, FRAME << 12 | ALL);
    memory
}

#[test]
fn four_levels_lead_to_the_page() {
    let memory = tables4();
    let walk = walk(level4(), &memory, GVA4, Access::READ).expect("mapped");
    assert_eq!(walk.gfn(), Gfn::new(FRAME));
    assert_eq!(walk.gpa(), Gpa::new(FRAME << 12 | 0x123));
    assert_eq!(walk.leaf_level(), Level::L1);
    assert_eq!(walk.rights(), Rights::all());
    assert!(walk.is_dirty());
    let at: alloc::vec::Vec<_> = walk
        .records()
        .map(|record| (record.level.get(), record.at.get()))
        .collect();
    assert_eq!(at, [(4, 0x1028), (3, 0x2038), (2, 0x3048), (1, 0x4058)]);
    assert_eq!(walk.record(Level::L5), None);
}

#[test]
fn five_levels_lead_to_the_page() {
    let memory = tables5();
    assert_eq!(frame(level5(), &memory, GVA), Gfn::new(FRAME));
    assert_eq!(memory.reads(), [0x1018, 0x2028, 0x3038, 0x4048, 0x5058]);
}

#[test]
fn each_entry_is_read_once() {
    let memory = tables4();
    frame(level4(), &memory, GVA4);
    assert_eq!(memory.reads().len(), 4);
}

#[test]
fn an_address_that_is_not_canonical_reads_no_table() {
    let memory = tables4();
    for (state, gva) in [
        (level4(), 1 << 47),
        (level4(), !0 << 48),
        (level5(), 1 << 56),
        (level5(), !0 << 57),
    ] {
        assert_eq!(
            walk(state, &memory, gva, Access::READ),
            Err(WalkFailure::NonCanonical),
            "{gva:#x}"
        );
    }
    assert!(memory.reads().is_empty());
    for (state, gva) in [
        (level4(), !0 << 47),
        (level5(), !0 << 56),
        (level5(), 1 << 47),
    ] {
        assert_eq!(
            fault(state, &memory, gva, Access::READ).0,
            PageFaultCode::empty(),
            "{gva:#x}"
        );
    }
}

#[test]
fn large_pages_span_two_mebibytes_and_one_gibibyte() {
    let memory = tables4();
    // PAT (bit 12) is set in both leaves and belongs to no address.
    memory.put(0x3000 + 8 * 9, 0x0040_0000 | 1 << 12 | 1 << 7 | ALL);
    let two = walk(level4(), &memory, GVA4, Access::READ).expect("mapped");
    assert_eq!(
        (two.base(), two.gfn(), two.leaf_level()),
        (Gfn::new(0x400), Gfn::new(0x40b), Level::L2)
    );
    assert_eq!(two.cache_bits(), crate::walk::CacheBits::PAT);
    memory.put(0x2000 + 8 * 7, 0x8000_0000 | 1 << 12 | 1 << 7 | ALL);
    let giant = walk(level4(), &memory, GVA4, Access::READ).expect("mapped");
    assert_eq!(
        (giant.base(), giant.gfn(), giant.leaf_level()),
        (
            Gfn::new(0x8_0000),
            Gfn::new(0x8_0000 + 9 * 512 + 11),
            Level::L3
        )
    );
    assert_eq!(giant.record(Level::L2), None);
}

#[test]
fn a_missing_entry_faults_without_p_at_its_level() {
    for (level, at) in [(4, ROOT + 40), (3, 0x2038), (2, 0x3048), (1, 0x4058)] {
        let memory = tables4();
        // The other bits of an entry that is not present are the guest's: not even reserved ones count.
        memory.put(at, !1);
        assert_eq!(
            fault(level4(), &memory, GVA4, Access::USER_WRITE),
            (PageFaultCode::WRITE | PageFaultCode::USER, level)
        );
        assert_eq!(
            fault(level4(), &memory, GVA4, Access::FETCH),
            (PageFaultCode::FETCH, level)
        );
        assert!(memory.stores().is_empty());
    }
}

/// Returns the bits that fault when set in the entry at `at`, given what is in the entry.
fn reserved(state: PagingState, at: u64, base: u64) -> u64 {
    (1..64).fold(0, |found, bit| {
        let memory = tables4();
        memory.put(at, base ^ 1 << bit);
        match walk(state, &memory, GVA4, Access::READ) {
            Err(WalkFailure::Fault(fault)) if fault.code.contains(PageFaultCode::RESERVED) => {
                assert_eq!(fault.code, PageFaultCode::PRESENT | PageFaultCode::RESERVED);
                found | 1 << bit
            }
            _ => found,
        }
    })
}

/// Bits 51:40 with the 40-bit addresses of these tests.
const HIGH: u64 = 0xfff << 40;

#[test]
fn the_reserved_bits_are_those_of_the_manual() {
    // Intel SDM vol. 3, tables 4-14 to 4-20; AMD APM vol. 2, section 5.3.3. Bit 7 moves levels 2 and 3 to a leaf, whose frame
    // 0x2, 0x3 or 0x4 then sets reserved bits; so those rows start from a table whose address has bits 20:13 clear.
    let mut amd = level4();
    assert_eq!(reserved(amd, 0x1028, 0x2000 | ALL), HIGH | 1 << 7 | 1 << 8);
    assert_eq!(
        reserved(amd, 0x2038, 0x3000 | ALL) & !(1 << 7),
        HIGH | 1 << 8
    );
    assert_eq!(reserved(amd, 0x3048, 0x4000 | ALL) & !(1 << 7), HIGH);
    assert_eq!(reserved(amd, 0x4058, FRAME << 12 | ALL), HIGH);
    assert_eq!(
        reserved(amd, 0x2038, 0x80 | ALL),
        HIGH | ((1 << 30) - (1 << 13))
    );
    assert_eq!(
        reserved(amd, 0x3048, 0x80 | ALL),
        HIGH | ((1 << 21) - (1 << 13))
    );
    amd.cpu.features = CpuFeatures::empty();
    assert_eq!(reserved(amd, 0x1028, 0x2000 | ALL), HIGH | 1 << 7);
    assert_eq!(reserved(amd, 0x2038, 0x3000 | ALL), HIGH | 1 << 7);
    amd.efer -= crate::paging::Efer::NXE;
    for (at, base) in [
        (0x1028, 0x2000),
        (0x2038, 0x3000),
        (0x3048, 0x4000),
        (0x4058, 0x5000),
    ] {
        assert_ne!(
            reserved(amd, at, base | ALL) & 1 << 63,
            0,
            "NX without NXE at {at:#x}"
        );
    }
}

#[test]
fn a_reserved_bit_above_wins_over_a_missing_entry_below() {
    let memory = tables4();
    memory.put(0x2038, 1 << 45 | 0x3000 | ALL);
    memory.put(0x3048, 0);
    assert_eq!(
        fault(level4(), &memory, GVA4, Access::READ),
        (PageFaultCode::PRESENT | PageFaultCode::RESERVED, 3)
    );
    memory.put(0x2038, 0x3000 | ALL & !4);
    assert_eq!(
        fault(level4(), &memory, GVA4, Access::USER_READ),
        (PageFaultCode::USER, 2)
    );
}

#[test]
fn inherited_rights_are_those_above_each_entry() {
    let memory = tables4();
    memory.put(ROOT + 40, 1 << 63 | 0x2000 | ALL);
    memory.put(0x2038, 0x3000 | ALL & !4);
    memory.put(0x3048, 0x4000 | ALL & !2);
    let walk = walk(level4(), &memory, GVA4, Access::READ).expect("mapped");
    let inherited: alloc::vec::Vec<_> = walk.records().map(|record| record.inherited).collect();
    assert_eq!(
        inherited,
        [
            Rights::all(),
            Rights::WRITE | Rights::USER,
            Rights::WRITE,
            Rights::empty()
        ]
    );
    assert_eq!(walk.rights(), Rights::empty());
    assert_eq!(memory.get(0x4058, GpteWidth::Bytes8), FRAME << 12 | ALL);
}

#[test]
fn a_table_outside_memory_is_reported_with_its_address() {
    let memory = tables4();
    memory.put(0x3048, 0x70_0000 | ALL);
    assert_eq!(
        walk(level4(), &memory, GVA4, Access::READ),
        Err(WalkFailure::MemoryMissing {
            gpa: Gpa::new(0x70_0058),
            level: Level::L1
        })
    );
    memory.busy.set(true);
    assert_eq!(
        walk(level4(), &memory, GVA4, Access::READ),
        Err(WalkFailure::Retry)
    );
}
