//! Every format of tables at CR3: translation, page sizes, accessed and dirty bits, reserved bits.

mod common;

use std::sync::Arc;

use common::{A, D, G, NX, PS, RWU, Tables, flat, level_of, registers};
use vmmu_cpu::{Access, Cpu, Fault, Format, Level, PageSize, PfCode, PhysMemory, Policy, Va};

const ROOT: u64 = 0x10_0000;
const FORMATS: [(Format, u64, &[PageSize]); 4] = [
    (
        Format::Bits32,
        0xc012_3000,
        &[PageSize::Size4K, PageSize::Size4M],
    ),
    (
        Format::Pae,
        0xc012_3000,
        &[PageSize::Size4K, PageSize::Size2M],
    ),
    (
        Format::Long4,
        0xffff_8abc_c012_3000,
        &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G],
    ),
    (
        Format::Long5,
        0xff12_8abc_c012_3000,
        &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G],
    ),
];

fn on_tables(format: Format) -> (Tables, Arc<PhysMemory>) {
    let mem = Arc::new(PhysMemory::new(1 << 20));
    (Tables::new(&mem, format, ROOT, 0), mem)
}

fn code(cpu: &mut Cpu, va: u64, access: Access) -> PfCode {
    match cpu.translate(Va::new(va), access) {
        Err(Fault::Page { va: cr2, code }) => {
            assert_eq!(cr2, Va::new(va));
            code
        }
        other => panic!("expected a page fault, got {other:?}"),
    }
}

#[test]
fn every_page_size_translates_every_byte_and_sets_accessed_then_dirty() {
    for (format, va, sizes) in FORMATS {
        for &size in sizes {
            let (mut tables, mem) = on_tables(format);
            let (base, target) = (va & !(size.bytes() - 1), 0x4000_0000);
            tables.map(base, target, size, RWU);
            let mut cpu = flat(&mem, registers(format, ROOT), Policy::KEEP);
            let last = base + size.bytes() - 8;
            let at = cpu
                .translate(Va::new(last), Access::USER_READ)
                .expect("mapped");
            assert_eq!(
                at.hpa.get(),
                target + size.bytes() - 8,
                "{format:?} {size:?}"
            );
            assert_eq!(at.entry.size, size);
            let leaf = level_of(size);
            assert_eq!(tables.entry(base, leaf) & (A | D), A, "{format:?} {size:?}");
            cpu.write(Va::new(base), 5, Access::USER_WRITE)
                .expect("writable");
            assert_eq!(
                tables.entry(base, leaf) & (A | D),
                A | D,
                "{format:?} {size:?}"
            );
            check_upper_levels(&mut tables, base, leaf);
        }
    }
}

/// Accessed, never dirty; and nothing at all in PDPTEs of PAE.
fn check_upper_levels(tables: &mut Tables, base: u64, leaf: Level) {
    for level in [Level::L2, Level::L3, Level::L4, Level::L5] {
        if level > leaf && level <= tables.format.top() {
            let pdpte = tables.format == Format::Pae && level == Level::L3;
            let expected = if pdpte { 0 } else { A };
            assert_eq!(
                tables.entry(base, level) & (A | D),
                expected,
                "{:?} {level:?}",
                tables.format
            );
        }
    }
}

#[test]
fn a_missing_entry_at_any_level_is_not_present() {
    for (format, va, _) in FORMATS {
        for level in [Level::L1, Level::L2, Level::L3, Level::L4, Level::L5] {
            if level > format.top() {
                continue;
            }
            let (mut tables, mem) = on_tables(format);
            tables.map(va, 0x20_0000, PageSize::Size4K, RWU);
            let slot = tables.slot(va, level);
            tables.store(slot, 0);
            let mut cpu = flat(&mem, registers(format, ROOT), Policy::KEEP);
            assert_eq!(code(&mut cpu, va, Access::READ), PfCode::empty());
            assert_eq!(
                code(&mut cpu, va, Access::USER_WRITE),
                PfCode::USER | PfCode::WRITE
            );
            let fetch = if format == Format::Bits32 {
                PfCode::empty()
            } else {
                PfCode::FETCH
            };
            assert_eq!(code(&mut cpu, va, Access::EXECUTE), fetch, "{format:?}");
        }
    }
}

#[test]
fn reserved_bits_fault_with_present_and_reserved_set() {
    let rsv = PfCode::PRESENT | PfCode::RESERVED;
    let cases: [(Format, Level, u64); 15] = [
        (Format::Bits32, Level::L2, PS | 1 << 21),
        (Format::Pae, Level::L1, 1 << 52),
        (Format::Pae, Level::L1, 1 << 48),
        (Format::Pae, Level::L2, PS | 1 << 13),
        (Format::Long4, Level::L1, 1 << 48),
        (Format::Long4, Level::L1, 1 << 51),
        (Format::Long4, Level::L2, 1 << 48),
        (Format::Long4, Level::L2, PS | 1 << 20),
        (Format::Long4, Level::L3, PS | 1 << 29),
        (Format::Long4, Level::L3, PS | 1 << 13),
        (Format::Long4, Level::L4, PS),
        (Format::Long4, Level::L4, G),
        (Format::Long4, Level::L3, G),
        (Format::Long5, Level::L5, PS),
        (Format::Long5, Level::L4, 1 << 50),
    ];
    for (format, level, bits) in cases {
        let (mut tables, mem) = on_tables(format);
        let va = FORMATS.iter().find(|f| f.0 == format).expect("listed").1;
        tables.map(va, 0x20_0000, PageSize::Size4K, RWU);
        let slot = tables.slot(va, level);
        let entry = if bits & PS == 0 || level >= Level::L4 {
            tables.entry(va, level)
        } else {
            RWU
        };
        tables.store(slot, entry | bits);
        let mut cpu = flat(&mem, registers(format, ROOT), Policy::KEEP);
        assert_eq!(
            code(&mut cpu, va, Access::READ),
            rsv,
            "{format:?} {level:?} {bits:#x}"
        );
    }
}

#[test]
fn no_execute_is_reserved_without_nxe_and_denies_fetches_with_it() {
    let (mut tables, mem) = on_tables(Format::Long4);
    tables.map(0x1000, 0x20_0000, PageSize::Size4K, RWU | NX);
    let mut regs = registers(Format::Long4, ROOT);
    let mut cpu = flat(&mem, regs, Policy::KEEP);
    let denied = PfCode::PRESENT | PfCode::FETCH | PfCode::USER;
    assert_eq!(code(&mut cpu, 0x1000, Access::USER_EXECUTE), denied);
    assert!(cpu.read(Va::new(0x1000), Access::USER_READ).is_ok());
    regs.efer.remove(vmmu_cpu::Efer::NXE);
    let mut cpu = flat(&mem, regs, Policy::KEEP);
    let reserved = PfCode::PRESENT | PfCode::RESERVED | PfCode::USER;
    assert_eq!(code(&mut cpu, 0x1000, Access::USER_READ), reserved);
    assert_eq!(
        code(&mut cpu, 0x1000, Access::USER_EXECUTE),
        reserved,
        "fetch bit needs nxe or smep"
    );
}

#[test]
fn addresses_are_checked_for_being_canonical_and_cut_to_32_bits_outside_of_long_mode() {
    let (mut tables, mem) = on_tables(Format::Long4);
    tables.map(0x1000, 0x20_0000, PageSize::Size4K, RWU);
    let mut cpu = flat(&mem, registers(Format::Long4, ROOT), Policy::KEEP);
    let bad = Va::new(0x8000_0000_1000);
    assert_eq!(
        cpu.translate(bad, Access::READ).unwrap_err(),
        Fault::NotCanonical(bad)
    );
    let (mut tables, mem) = on_tables(Format::Bits32);
    tables.map(0x1000, 0x20_0000, PageSize::Size4K, RWU);
    let mut cpu = flat(&mem, registers(Format::Bits32, ROOT), Policy::KEEP);
    assert_eq!(
        cpu.translate(Va::new(0x1_0000_1008), Access::READ)
            .expect("wraps")
            .hpa
            .get(),
        0x20_0008
    );
}

#[test]
fn pse_decides_about_4_mib_pages_and_36_bits_lead_above_4_gib() {
    let (mut tables, mem) = on_tables(Format::Bits32);
    // Address bits 39:32 are entry bits 20:13.
    tables.map(0x40_0000, 3 << 13, PageSize::Size4M, RWU);
    let mut regs = registers(Format::Bits32, ROOT);
    let mut cpu = flat(&mem, regs, Policy::NONE);
    let wide = cpu.translate(Va::new(0x40_0000), Access::READ);
    assert!(
        matches!(wide, Err(Fault::Violation(_))),
        "3 << 32 is outside of this memory: {wide:?}"
    );
    regs.cr4.remove(vmmu_cpu::Cr4::PSE);
    let mut cpu = flat(&mem, regs, Policy::NONE);
    // Without PSE the entry is a table at 0x6000, and that one is empty.
    assert_eq!(code(&mut cpu, 0x40_0000, Access::READ), PfCode::empty());
}

#[test]
fn pdptes_stay_as_loaded_until_cr3_is_loaded_again() {
    let (mut tables, mem) = on_tables(Format::Pae);
    tables.map(0xc000_0000, 0x20_0000, PageSize::Size4K, RWU);
    let mut cpu = flat(&mem, registers(Format::Pae, ROOT), Policy::NONE);
    let slot = tables.slot(0xc000_0000, Level::L3);
    let pdpte = tables.entry(0xc000_0000, Level::L3);
    tables.store(slot, 0);
    assert!(cpu.read(Va::new(0xc000_0000), Access::READ).is_ok());
    cpu.mov_cr3(ROOT).expect("no reserved bits");
    assert_eq!(code(&mut cpu, 0xc000_0000, Access::READ), PfCode::empty());
    tables.store(slot, pdpte | 2);
    assert_eq!(cpu.mov_cr3(ROOT), Err(Fault::BadPdpte(3)));
}

#[test]
fn the_rights_of_a_page_are_the_and_over_all_levels() {
    for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
        for (bit, access) in [(2, Access::USER_WRITE), (4, Access::USER_READ)] {
            let (mut tables, mem) = on_tables(Format::Long4);
            tables.map(0x1000, 0x20_0000, PageSize::Size4K, RWU);
            let slot = tables.slot(0x1000, level);
            let entry = tables.entry(0x1000, level);
            tables.store(slot, entry & !bit);
            let mut cpu = flat(&mem, registers(Format::Long4, ROOT), Policy::KEEP);
            assert!(code(&mut cpu, 0x1000, access).contains(PfCode::PRESENT | PfCode::USER));
            assert!(cpu.read(Va::new(0x1000), Access::READ).is_ok());
        }
    }
}
