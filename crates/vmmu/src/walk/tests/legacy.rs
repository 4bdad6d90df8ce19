//! Paging off, 32-bit paging and PAE paging (AMD APM vol. 2, section 5.2; Intel SDM vol. 3, sections 4.3 and 4.4).

use super::guest::{
    ALL, MEMORY, Memory, ROOT, bits32, cpu, fault, frame, level4, level5, pae, walk,
};
use crate::addr::{Gfn, Gpa, Level};
use crate::paging::{
    CpuFeatures, Cr0, Cr3, Cr4, Efer, GuestFormat, PagingRules, PagingState, Pdptes, PhysBits,
};
use crate::walk::{Access, Decoder, PageFaultCode, PermissionTable, Rights, WalkFailure};

/// Slots 0x201 and 0x155 of 32-bit paging; slots 2, 8 and 0x155 of PAE paging.
const GVA: u64 = 0x8055_5678;
const ALL4: u32 = 0x67;

fn tables32() -> Memory {
    let memory = Memory::default();
    memory.put4(ROOT + 4 * 0x201, 0x2000 | ALL4);
    memory.put4(0x2000 + 4 * 0x155, 0xabcd_e000 | ALL4);
    memory
}

fn tables_pae() -> Memory {
    let memory = Memory::default();
    memory.put(ROOT + 8 * 2, 0x2000 | 1);
    memory.put(0x2000 + 8 * 2, 0x3000 | ALL);
    memory.put(0x3000 + 8 * 0x155, 0xab_cdef_0000 | ALL);
    memory
}

#[test]
fn the_format_follows_from_the_registers() {
    let reset = PagingState::reset(cpu());
    for (state, format) in [
        (reset, GuestFormat::Off),
        (
            PagingState {
                cr0: level5().cr0 - Cr0::PG,
                ..level5()
            },
            GuestFormat::Off,
        ),
        (bits32(), GuestFormat::Bits32),
        (pae(), GuestFormat::Pae),
        (level4(), GuestFormat::Level4),
        (level5(), GuestFormat::Level5),
        (
            PagingState {
                cr4: Cr4::PAE | Cr4::LA57,
                ..pae()
            },
            GuestFormat::Pae,
        ),
    ] {
        assert_eq!(state.format(), format);
    }
}

#[test]
fn rules_without_effect_do_not_tell_modes_apart() {
    let everything = |state: PagingState| PagingState {
        cr4: state.cr4 | Cr4::PSE | Cr4::PKE,
        efer: state.efer | Efer::NXE,
        ..state
    };
    let rules = |state| {
        everything(state).mode().rules() & (PagingRules::NX | PagingRules::PSE | PagingRules::PKE)
    };
    assert_eq!(rules(bits32()), PagingRules::PSE);
    assert_eq!(rules(pae()), PagingRules::NX);
    assert_eq!(rules(level4()), PagingRules::NX | PagingRules::PKE);
    assert_eq!(rules(PagingState::reset(cpu())), PagingRules::empty());
}

#[test]
fn without_paging_every_access_reaches_its_own_address() {
    let memory = Memory::default();
    let state = PagingState::reset(cpu());
    let walk =
        walk(state, &memory, 1 << 32 | GVA, Access::USER_WRITE).expect("no tables refuse it");
    assert_eq!(
        (walk.gpa(), walk.rights(), walk.is_dirty()),
        (Gpa::new(GVA), Rights::all(), true)
    );
    assert_eq!(
        (walk.leaf_level(), walk.base()),
        (Level::L3, Gfn::new(0x8_0000))
    );
    assert_eq!(walk.records().count(), 0);
    assert!(memory.reads().is_empty());
    let table = PermissionTable::new(state.mode());
    assert!(
        table.allows(Rights::empty(), Access::USER_WRITE)
            && table.allows(Rights::empty(), Access::USER_FETCH)
    );
}

#[test]
fn two_levels_lead_to_the_page() {
    let memory = tables32();
    let walk = walk(bits32(), &memory, 0xffff << 32 | GVA, Access::READ).expect("mapped");
    assert_eq!(walk.gpa(), Gpa::new(0xabcd_e678));
    let at: alloc::vec::Vec<_> = walk
        .records()
        .map(|record| (record.level.get(), record.at.get()))
        .collect();
    assert_eq!(at, [(2, ROOT + 4 * 0x201), (1, 0x2000 + 4 * 0x155)]);
    assert!(
        walk.rights().contains(Rights::EXECUTE),
        "32-bit entries have no NX"
    );
}

#[test]
fn a_four_mebibyte_page_has_forty_address_bits() {
    let memory = tables32();
    // Base bits 31:22, bits 39:32 in 20:13, PAT in 12.
    memory.put4(
        ROOT + 4 * 0x201,
        0x00c0_0000 | 0xa5 << 13 | 1 << 12 | 1 << 7 | ALL4,
    );
    let walk = walk(bits32(), &memory, GVA, Access::READ).expect("mapped");
    assert_eq!(walk.gpa(), Gpa::new(0xa5_00c0_0000 | GVA & 0x3f_ffff));
    assert_eq!(
        (walk.base(), walk.leaf_level()),
        (Gfn::new(0xa50_0c00), Level::L2)
    );
    assert_eq!(GuestFormat::Bits32.leaf_frames(Level::L2), 1024);
    assert_eq!(walk.cache_bits(), crate::walk::CacheBits::PAT);
}

#[test]
fn without_pse_the_ps_bit_is_ignored() {
    let memory = tables32();
    memory.put4(ROOT + 4 * 0x201, 0x2000 | 1 << 7 | ALL4);
    let state = PagingState {
        cr4: Cr4::empty(),
        ..bits32()
    };
    assert_eq!(frame(state, &memory, GVA), Gfn::new(0xa_bcde));
}

#[test]
fn reserved_bits_of_a_four_mebibyte_page_depend_on_the_address_width() {
    // Intel SDM vol. 3, table 4-4: bits 21:(M-19), M the smaller of 40 and MAXPHYADDR; 21:13 without PSE-36.
    for (bits, features, reserved) in [
        (40, CpuFeatures::PSE36, 1 << 21),
        (52, CpuFeatures::PSE36, 1 << 21),
        (36, CpuFeatures::PSE36, 0x1f << 17),
        (32, CpuFeatures::PSE36, 0x1ff << 13),
        (40, CpuFeatures::empty(), 0x1ff << 13),
    ] {
        let mut state = bits32();
        state.cpu.phys_bits = PhysBits::new(bits).expect("a width");
        state.cpu.features = features;
        let mut found = 0;
        for bit in 8..32 {
            let memory = tables32();
            memory.put4(ROOT + 4 * 0x201, 1 << bit | 1 << 7 | ALL4);
            match walk(state, &memory, GVA, Access::READ) {
                Err(WalkFailure::Fault(fault))
                    if fault.code == PageFaultCode::PRESENT | PageFaultCode::RESERVED =>
                {
                    found |= 1 << bit
                }
                other => assert!(other.is_ok(), "{other:?}"),
            }
        }
        assert_eq!(found, reserved, "{bits} bits, {features:?}");
    }
}

#[test]
fn no_other_bit_of_a_32_bit_entry_is_reserved() {
    for bit in 7..32 {
        let memory = tables32();
        memory.put4(0x2000 + 4 * 0x155, 1 << bit | ALL4);
        assert!(
            walk(bits32(), &memory, GVA, Access::READ).is_ok(),
            "bit {bit}"
        );
    }
}

#[test]
fn pae_goes_through_four_pointers_in_memory() {
    let memory = tables_pae();
    // The root is 32 bytes on a 32-byte boundary; CR3's high half means nothing.
    memory.put(ROOT + 0x60 + 8 * 2, 0x4000 | 1);
    memory.put(0x4000 + 8 * 2, 0x20_0000 | 1 << 7 | ALL);
    for (cr3, gfn) in [
        (ROOT, 0xabc_def0),
        (ROOT | 0x60, 0x355),
        (7 << 32 | ROOT | 0x1f, 0xabc_def0),
    ] {
        let state = PagingState {
            cr3: Cr3::new(cr3),
            ..pae()
        };
        assert_eq!(frame(state, &memory, GVA), Gfn::new(gfn), "{cr3:#x}");
    }
}

#[test]
fn pae_registers_stand_in_for_memory() {
    let memory = tables_pae();
    memory.put(ROOT + 8 * 2, 0);
    assert_eq!(
        fault(pae(), &memory, GVA, Access::READ),
        (PageFaultCode::empty(), 3)
    );
    let state = PagingState {
        pdptes: Some(Pdptes::new([0, 0, 0x2001, 0])),
        cr3: Cr3::new(MEMORY),
        ..pae()
    };
    assert_eq!(frame(state, &memory, GVA), Gfn::new(0xabc_def0));
    assert_eq!(
        fault(state, &memory, GVA ^ 1 << 30, Access::USER_WRITE),
        (PageFaultCode::WRITE | PageFaultCode::USER, 3)
    );
}

#[test]
fn pae_pointers_carry_neither_rights_nor_accessed_bits() {
    let memory = tables_pae();
    let walk = walk(pae(), &memory, GVA, Access::USER_WRITE).expect("mapped");
    assert_eq!(walk.rights(), Rights::all());
    assert!(memory.stores().is_empty());
    assert_eq!(memory.get8(ROOT + 16), 0x2001);
}

#[test]
fn pae_reserved_bits_are_those_of_the_manual() {
    // Intel SDM vol. 3, tables 4-8 to 4-11: in PAE paging bits 62:52 are reserved too.
    let high = (1 << 63) - (1 << 40);
    let found = |state: PagingState, at: u64, base: u64| {
        (1..64).fold(0_u64, |found, bit| {
            let memory = tables_pae();
            memory.put(at, base ^ 1 << bit);
            let outcome = walk(state, &memory, GVA, Access::READ);
            let reserved = matches!(outcome, Err(WalkFailure::Fault(fault)) if fault.code.contains(PageFaultCode::RESERVED));
            if reserved { found | 1 << bit } else { found }
        })
    };
    assert_eq!(found(pae(), ROOT + 16, 0x2001), high | 1 << 63 | 0x1e6);
    assert_eq!(found(pae(), 0x2010, 0x80 | ALL), high | 0xff << 13);
    assert_eq!(found(pae(), 0x2010, 0x10_0000 | ALL) & !(1 << 7), high);
    assert_eq!(found(pae(), 0x3000 + 8 * 0x155, ALL), high);
    let no_nx = PagingState {
        efer: Efer::empty(),
        ..pae()
    };
    assert_eq!(found(no_nx, 0x3000 + 8 * 0x155, ALL), high | 1 << 63);
}

#[test]
fn loading_pae_registers_refuses_reserved_bits_of_present_entries() {
    let decoder = Decoder::new(pae().mode());
    assert!(!decoder.refuses_pdptes(Pdptes::new([0x1001, 0x2019, 0xe00 | 1, !1])));
    for bad in [1 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 40, 1 << 63] {
        assert!(
            decoder.refuses_pdptes(Pdptes::new([0x1001, 0, 0, bad | 1])),
            "{bad:#x}"
        );
    }
}
