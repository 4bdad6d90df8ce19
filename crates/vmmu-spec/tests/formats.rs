//! Each mode's formats: indices, page sizes, reserved bits, addresses.

mod common;

use common::{
    A, D, G, NX, P, PS, ROOT, Tables, U, W, code, four_level, kernel, legacy, long, paged,
    physical, processor, user, usual, walk,
};
use vmmu_spec::{
    Controls, Cr0, Cr3, Cr4, Efer, ErrorCode, Features, Kind, Level, Linear, Outcome, PageSize,
    Pdptes, Scope, Slot, Width, translate,
};

const T2: u64 = 0x2000;
const T3: u64 = 0x3000;
const T4: u64 = 0x4000;
const T5: u64 = 0x5000;
const FULL: u64 = P | W | U;

const RESERVED: u32 = ErrorCode::PRESENT.union(ErrorCode::RESERVED).bits();

#[test]
fn without_paging_an_address_is_its_low_half_and_everything_is_allowed() {
    let controls = Controls::new(
        usual(),
        Cr0::PE,
        Cr4::SMEP | Cr4::SMAP | Cr4::PAE,
        Efer::NXE | Efer::LME,
    )
    .unwrap();
    let outcome = walk(
        &controls,
        0xdead_0000_1234_5678,
        user(Kind::Fetch),
        &Tables::default(),
    );
    assert_eq!(physical(&outcome), Some(0x1234_5678));
    let mapping = outcome.translation().unwrap().mapping();
    assert_eq!(mapping.size, None);
    assert!(mapping.path.steps().is_empty());
}

/// SDM section 4.3, figures 4-2 and 4-3.
#[test]
fn bits32_walks_two_levels_of_four_byte_entries() {
    let linear = 0xc040_3abc;
    let tables = Tables::new(&[
        (ROOT + 4 * (linear >> 22), T2 | FULL),
        (T2 + 4 * (linear >> 12 & 0x3ff), 0xfedc_b000 | FULL),
    ]);
    let outcome = walk(&legacy(Cr4::PSE), linear, user(Kind::Write), &tables);
    assert_eq!(physical(&outcome), Some(0xfedc_babc));
    let mapping = outcome.translation().unwrap().mapping();
    assert_eq!(mapping.size, Some(PageSize::FourKiB));
    assert_eq!(mapping.path.steps()[0].slot.width, Width::Four);
}

/// SDM section 4.3: without CR4.PSE the PS flag is ignored; with it, bits 20:13 are address bits 39:32.
#[test]
fn a_pde_with_ps_is_a_page_only_under_pse() {
    let linear = 0x00c0_1234;
    let pde = 0x8000_0000 | 0x12 << 13 | PS | FULL;
    let tables = Tables::new(&[(ROOT + 4 * 3, pde), (0x8002_4000 + 4, 0x7000 | FULL)]);
    let large = walk(&legacy(Cr4::PSE), linear, user(Kind::Read), &tables);
    assert_eq!(physical(&large), Some(0x12_8000_1234));
    assert_eq!(
        large.translation().unwrap().mapping().size,
        Some(PageSize::FourMiB)
    );
    let small = walk(&legacy(Cr4::empty()), linear, user(Kind::Read), &tables);
    assert_eq!(physical(&small), Some(0x7234));
}

/// SDM section 4.3: bits 21:(M-19) of a PDE that maps a page, M = min(40, MAXPHYADDR); 21:13 without PSE-36.
#[test]
fn pse36_reserves_the_address_bits_that_the_processor_lacks() {
    for (bits, feature) in (32..=52).flat_map(|bits| [(bits, true), (bits, false)]) {
        let features = if feature {
            Features::PSE36
        } else {
            Features::empty()
        };
        let controls = paged(processor(bits, features), Cr4::PSE, Efer::empty());
        for bit in 13..=21 {
            let tables = Tables::new(&[(ROOT, 1 << bit | PS | FULL)]);
            let outcome = walk(&controls, 0, kernel(Kind::Read), &tables);
            if feature && bit < bits.min(40) - 19 {
                assert_eq!(
                    physical(&outcome),
                    Some(1 << (bit + 19)),
                    "M {bits} bit {bit}"
                );
            } else {
                assert_eq!(code(&outcome), Some(RESERVED), "M {bits} bit {bit}");
            }
        }
    }
}

#[test]
fn bits32_reserves_nothing_in_entries_that_map_no_large_page() {
    let tables = Tables::new(&[(ROOT, T2 | FULL | 0xf58), (T2, 0x7000 | FULL | 0xf98)]);
    let outcome = walk(&legacy(Cr4::PSE), 0x123, user(Kind::Write), &tables);
    assert_eq!(physical(&outcome), Some(0x7123));
}

fn pae(efer: Efer) -> Controls {
    paged(usual(), Cr4::PAE, efer)
}

/// SDM section 4.4: CR3[31:5] is a 32-byte aligned address.
#[test]
fn pae_reads_pdptes_from_a_32_byte_aligned_table() {
    let linear = 0xc060_3abc;
    let tables = Tables::new(&[
        (0x1fe0 + 8 * 3, T2 | P),
        (T2 + 8 * 3, T3 | FULL),
        (T3 + 8 * 3, 0xff_fedc_b000 | FULL | NX),
    ]);
    let controls = pae(Efer::NXE);
    let root = Cr3::new(0xffff_ffff_0000_1fe0 | 0x18);
    let outcome = translate(
        &controls,
        root,
        Linear::new(linear),
        user(Kind::Write),
        &tables,
    );
    assert_eq!(physical(&outcome), Some(0xff_fedc_babc));
    assert_eq!(
        outcome.translation().unwrap().mapping().path.steps().len(),
        3
    );
}

/// SDM section 4.4.1: the registers, not memory, are used; a register is no entry in memory.
#[test]
fn pae_uses_the_pdpte_registers_if_given() {
    let tables = Tables::new(&[(T2, T3 | FULL), (T3, 0x7000 | FULL)]);
    let controls = pae(Efer::empty());
    let loaded = controls.with_pdptes(Pdptes::Registers([T2 | P, T2, 0, T2 | P | W]));
    let outcome = walk(&loaded, 0x123, user(Kind::Write), &tables);
    assert_eq!(physical(&outcome), Some(0x7123));
    assert_eq!(
        outcome.translation().unwrap().mapping().path.steps().len(),
        2
    );
    assert_eq!(
        code(&walk(&loaded, 0x4000_0000, kernel(Kind::Read), &tables)),
        Some(0)
    );
    assert_eq!(
        code(&walk(&loaded, 0xc000_0000, kernel(Kind::Read), &tables)),
        Some(RESERVED)
    );
}

/// SDM section 4.4.1, table 4-8: bits 2:1, 8:5 and 63:M.
#[test]
fn pae_pdptes_reserve_their_rights_and_accessed_bits() {
    let reserved = (1..=2).chain(5..=8).chain(40..=63).collect::<Vec<_>>();
    let (controls, pde, pte) = (pae(Efer::NXE), (T2, T3 | FULL), (T3, 0x7000 | FULL));
    for bit in 1..=63 {
        if (12..40).contains(&bit) {
            continue;
        }
        let tables = Tables::new(&[(ROOT, T2 | P | 1 << bit), pde, pte]);
        let outcome = walk(&controls, 0, user(Kind::Write), &tables);
        let expected = RESERVED | ErrorCode::WRITE.bits() | ErrorCode::USER.bits();
        if reserved.contains(&bit) {
            assert_eq!(code(&outcome), Some(expected), "bit {bit}");
        } else {
            assert_eq!(physical(&outcome), Some(0x7000), "bit {bit}");
        }
    }
}

/// SDM section 4.8 with table 4-8: bit 5 of a PDPTE is reserved, so there is no A to set.
#[test]
fn pae_sets_no_accessed_bit_in_a_pdpte() {
    let tables = Tables::new(&[(ROOT, T2 | P), (T2, T3 | FULL), (T3, 0x7000 | FULL)]);
    let outcome = walk(&pae(Efer::empty()), 0, user(Kind::Write), &tables);
    let updates = outcome.translation().unwrap().updates().collect::<Vec<_>>();
    let places = updates
        .iter()
        .map(|u| (u.slot.at.get(), u.set))
        .collect::<Vec<_>>();
    assert_eq!(places, [(T2, A), (T3, A | D)]);
}

/// SDM section 4.4.2: bits 62:M, and bits 20:13 of a 2 MiB page; section 4.5 ignores bits 62:52.
#[test]
fn pae_reserves_the_bits_that_long_mode_ignores() {
    for bit in 52..=62 {
        let legacy = Tables::new(&[
            (ROOT, T2 | P),
            (T2, T3 | FULL),
            (T3, 0x7000 | FULL | 1 << bit),
        ]);
        let outcome = walk(&pae(Efer::NXE), 0, kernel(Kind::Read), &legacy);
        assert_eq!(code(&outcome), Some(RESERVED), "bit {bit}");
        let tables = four_kib(0x7000 | FULL | 1 << bit);
        let outcome = walk(&four_level(), 0, kernel(Kind::Read), &tables);
        assert_eq!(physical(&outcome), Some(0x7000), "bit {bit}");
    }
}

/// Four levels that map linear address 0 by the given PTE.
fn four_kib(pte: u64) -> Tables {
    Tables::new(&[
        (ROOT, T2 | FULL),
        (T2, T3 | FULL),
        (T3, T4 | FULL),
        (T4, pte),
    ])
}

/// SDM section 4.5, figures 4-8 to 4-10.
#[test]
fn four_level_maps_4_kib_2_mib_and_1_gib() {
    let linear: u64 = 0xffff_8765_4321_0fed;
    let index = |level: u64| 8 * (linear >> (12 + 9 * (level - 1)) & 0x1ff);
    let base = 0xab_c000_0000 | FULL;
    let upper = [(ROOT + index(4), T2 | FULL), (T2 + index(3), T3 | FULL)];
    let rows = [
        (PageSize::OneGiB, vec![upper[0], (T2 + index(3), base | PS)]),
        (
            PageSize::TwoMiB,
            vec![upper[0], upper[1], (T3 + index(2), base | PS)],
        ),
        (
            PageSize::FourKiB,
            vec![
                upper[0],
                upper[1],
                (T3 + index(2), T4 | FULL),
                (T4 + index(1), base),
            ],
        ),
    ];
    for (size, entries) in rows {
        let outcome = walk(
            &four_level(),
            linear,
            user(Kind::Fetch),
            &Tables::new(&entries),
        );
        let offset = linear & (size.bytes() - 1);
        assert_eq!(physical(&outcome), Some(0xab_c000_0000 + offset));
        assert_eq!(outcome.translation().unwrap().mapping().size, Some(size));
    }
}

#[test]
fn five_level_starts_one_table_higher() {
    let linear = 0x00ab_0000_0000_0123;
    let tables = Tables::new(&[
        (ROOT + 8 * 0xab, T2 | FULL),
        (T2, T3 | FULL),
        (T3, T4 | FULL),
        (T4, T5 | FULL),
        (T5, 0x7000 | FULL),
    ]);
    let controls = long(Cr4::LA57, Efer::NXE);
    let outcome = walk(&controls, linear, user(Kind::Read), &tables);
    assert_eq!(physical(&outcome), Some(0x7123));
    let mapping = outcome.translation().unwrap().mapping();
    let levels = mapping.path.steps().iter().map(|s| s.slot.level.number());
    assert_eq!(levels.collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
}

/// SDM vol. 1 section 3.3.7.1.
#[test]
fn an_address_is_canonical_by_the_width_of_its_mode() {
    let (four, five) = (four_level(), long(Cr4::LA57, Efer::NXE));
    let rows = [
        (0x0000_7fff_ffff_ffff, true, true),
        (0x0000_8000_0000_0000, false, true),
        (0xffff_8000_0000_0000, true, true),
        (0xffff_7fff_ffff_ffff, false, true),
        (0x00ff_ffff_ffff_ffff, false, true),
        (0x0100_0000_0000_0000, false, false),
        (0xff00_0000_0000_0000, false, true),
        (0xfeff_ffff_ffff_ffff, false, false),
    ];
    for (linear, in_four, in_five) in rows {
        for (controls, canonical) in [(&four, in_four), (&five, in_five)] {
            let outcome = walk(controls, linear, user(Kind::Read), &Tables::default());
            assert_eq!(outcome != Outcome::NonCanonical, canonical, "{linear:x}");
        }
    }
}

/// SDM tables 4-14 to 4-20, each bit above the flags at each level.
#[test]
fn four_level_reserves_exactly_the_bits_of_the_manual() {
    let upper = [
        (ROOT, T2 | FULL),
        (T2, T3 | FULL),
        (T3, T4 | FULL),
        (T4, 0x4000_0000 | FULL),
    ];
    let size = |level: usize| if level == 2 { 20 } else { 29 };
    for (place, level) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
        for large in [false, true] {
            if large && !(2..=3).contains(&level) {
                continue;
            }
            for bit in (7..=63).filter(|bit| *bit != 7 || !(2..=3).contains(&level)) {
                let mut entries = upper;
                let flags = if large {
                    0x4000_0000 | FULL | PS
                } else {
                    entries[place].1
                };
                entries[place].1 = flags | 1 << bit;
                let reserved = (40..=51).contains(&bit)
                    || (bit == 7 && level == 4)
                    || (large && (13..=size(level)).contains(&bit));
                let outcome = walk(&four_level(), 0, kernel(Kind::Read), &Tables::new(&entries));
                let what = format!("level {level} large {large} bit {bit}: {outcome:?}");
                assert_eq!(code(&outcome) == Some(RESERVED), reserved, "{what}");
            }
        }
    }
}

/// SDM sections 4.4.2 and 4.5: if EFER.NXE = 0, XD is reserved, at every level.
#[test]
fn xd_is_reserved_unless_enabled() {
    let entries = [
        (ROOT, T2 | FULL),
        (T2, T3 | FULL),
        (T3, T4 | FULL),
        (T4, 0x7000 | FULL),
    ];
    for place in 0..4 {
        let mut tables = Tables::new(&entries);
        *tables.0.get_mut(&entries[place].0).unwrap() |= NX;
        let off = walk(
            &long(Cr4::empty(), Efer::empty()),
            0,
            kernel(Kind::Read),
            &tables,
        );
        assert_eq!(code(&off), Some(RESERVED));
        let on = walk(&four_level(), 0, kernel(Kind::Read), &tables);
        assert_eq!(physical(&on), Some(0x7000));
    }
}

fn with(features: Features, cr4: Cr4) -> Controls {
    let efer = Efer::LME | Efer::LMA | Efer::NXE;
    paged(processor(40, features), cr4 | Cr4::PAE, efer)
}

/// SDM section 4.5: PS in a PDPTE needs 1 GiB pages.
#[test]
fn a_pdpte_maps_a_page_only_if_the_processor_has_such_pages() {
    let gigabyte = Tables::new(&[(ROOT, T2 | FULL), (T2, 0x4000_0000 | FULL | PS)]);
    let without = with(Features::empty(), Cr4::empty());
    assert_eq!(
        code(&walk(&without, 0, kernel(Kind::Read), &gigabyte)),
        Some(RESERVED)
    );
}

/// APM section 5.3.3: bit 8 is must-be-zero in PML5Es, PML4Es and PDPEs that reference a table.
#[test]
fn amd_reserves_bit_8_of_upper_entries_that_map_no_page() {
    let base = [(ROOT, T2), (T2, T3), (T3, T4), (T4, T5), (T5, 0x7000)];
    for (place, reserved) in [(0, true), (1, true), (2, true), (3, false), (4, false)] {
        let mut tables = Tables::default();
        for (i, (at, value)) in base.iter().enumerate() {
            let bit_8 = if i == place { G } else { 0 };
            tables.0.insert(*at, value | FULL | bit_8);
        }
        let code = |features| {
            let controls = with(features, Cr4::LA57);
            code(&walk(&controls, 0, kernel(Kind::Read), &tables))
        };
        assert_eq!(code(Features::empty()), None);
        assert_eq!(
            code(Features::UPPER_BIT_8_RESERVED).is_some(),
            reserved,
            "{place}"
        );
    }
    let page = Tables::new(&[(ROOT, T2 | FULL), (T2, 0x4000_0000 | FULL | PS | G)]);
    let amd = with(
        Features::UPPER_BIT_8_RESERVED | Features::GIGABYTE_PAGES,
        Cr4::empty(),
    );
    assert_eq!(
        physical(&walk(&amd, 0, kernel(Kind::Read), &page)),
        Some(0x4000_0000)
    );
}

/// SDM section 4.10.2.4.
#[test]
fn a_page_is_global_by_its_flag_and_under_pge_only() {
    for (cr4, flag, scope) in [
        (Cr4::PGE, G, Scope::Global),
        (Cr4::PGE, 0, Scope::AddressSpace),
        (Cr4::empty(), G, Scope::AddressSpace),
    ] {
        let tables = four_kib(0x7000 | FULL | flag);
        let outcome = walk(&long(cr4, Efer::NXE), 0, kernel(Kind::Read), &tables);
        assert_eq!(outcome.translation().unwrap().mapping().scope, scope);
    }
}

/// SDM section 4.7: the processor reads no entry below one that stops the walk.
#[test]
fn the_first_bad_entry_from_the_top_decides() {
    let tables = Tables::new(&[(ROOT, T2 | P | 1 << 45), (T2, 0)]);
    assert_eq!(
        code(&walk(&four_level(), 0, kernel(Kind::Read), &tables)),
        Some(RESERVED)
    );
    // Reserved bits of an entry that is not present are not checked.
    let tables = Tables::new(&[(ROOT, 1 << 45 | NX | PS)]);
    assert_eq!(
        code(&walk(&four_level(), 0, kernel(Kind::Read), &tables)),
        Some(0)
    );
}

#[test]
fn a_walk_that_leaves_memory_says_where() {
    let tables = Tables::new(&[(ROOT, 0xff_ffff_f000 | FULL), (0xff_ffff_f000, 0)]);
    let small = |at: vmmu_spec::Physical, _: Width| {
        (at.get() < 0x8000).then(|| tables.0.get(&at.get()).copied().unwrap_or(0))
    };
    let outcome = translate(
        &four_level(),
        Cr3::new(ROOT),
        Linear::new(8 << 30),
        user(Kind::Read),
        &small,
    );
    let Outcome::Unbacked(unbacked) = outcome else {
        panic!("{outcome:?}");
    };
    let expected = Slot {
        at: vmmu_spec::Physical::new(0xff_ffff_f040),
        width: Width::Eight,
        level: Level::DirectoryPointer,
    };
    assert_eq!(unbacked.slot(), expected);
}
