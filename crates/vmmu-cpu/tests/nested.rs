//! The second dimension: every guest mode on NPT and EPT.

mod common;

use std::sync::Arc;

use common::{A, D, NX, RWU, Tables, level_of, registers};
use vmmu_cpu::{
    Access, Asid, Cpu, EptQualification, Fault, Flush, Format, Frame, Gpa, Hpa, Level, Model,
    Nested, NestedFlags, NpfCode, PageSize, PfCode, PhysMemory, Policy, Reach, Registers, Source,
    Va, World, Zone,
};

/// Where guest-physical 0 is in host-physical memory.
const RAM: u64 = 0x1000_0000;
const HOST_ROOT: u64 = 0x10_0000;
const GUEST_ROOT: u64 = 0x20_0000;
/// The one frame that can be allocated and freed.
const POOL: Frame = Frame::new(0x8_0000);
/// A page of the guest.
const PAGE: u64 = 0x60_0000;
const EPT_A: u64 = 1 << 8;
const EPT_D: u64 = 1 << 9;
const EPT_WB: u64 = 6 << 3;

struct Machine {
    mem: Arc<PhysMemory>,
    host: Tables,
    guest: Tables,
    cpu: Cpu,
}

fn nested(format: Format) -> Nested {
    let root = Hpa::new(HOST_ROOT);
    if format.is_ept() {
        Nested {
            format,
            ..Nested::ept4(root)
        }
    } else {
        Nested {
            format,
            ..Nested::npt4(root)
        }
    }
}

/// 64 MiB of guest RAM mapped by 4 KiB pages; the guest's tables are yet empty.
fn machine(guest: Format, nested: Nested, regs: Registers, policy: Policy) -> Machine {
    let mem = Arc::new(PhysMemory::with_pool(
        1 << 20,
        POOL..Frame::new(POOL.get() + 1),
    ));
    let mut host = Tables::new(&mem, nested.format, HOST_ROOT, 0);
    let flags = if nested.format.is_ept() {
        7 | EPT_WB
    } else {
        RWU
    };
    for gpa in (0..64 << 20).step_by(0x1000) {
        host.map(gpa, RAM + gpa, PageSize::Size4K, flags);
    }
    let guest = Tables::new(&mem, guest, GUEST_ROOT, RAM);
    let mut cpu = Cpu::new(mem.clone(), Model::STRICT, policy, 3);
    let world = World {
        regs,
        asid: Asid::new(1),
        nested: Some(nested),
    };
    cpu.enter(&world, Flush::All)
        .expect("the root is empty, but there");
    Machine {
        mem,
        host,
        guest,
        cpu,
    }
}

fn long4(policy: Policy) -> Machine {
    let mut m = machine(
        Format::Long4,
        nested(Format::Npt4),
        registers(Format::Long4, GUEST_ROOT),
        policy,
    );
    m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU);
    m
}

const VA: Va = Va::new(0xc012_3000);

#[test]
fn every_guest_format_walks_over_every_nested_format_and_marks_both() {
    for host in [Format::Npt4, Format::Npt5, Format::Ept4, Format::Ept5] {
        for guest in [Format::Bits32, Format::Pae, Format::Long4, Format::Long5] {
            let mut m = machine(
                guest,
                nested(host),
                registers(guest, GUEST_ROOT),
                Policy::KEEP,
            );
            m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU);
            // PAE loaded its PDPTE registers before they were filled in.
            m.cpu.mov_cr3(GUEST_ROOT).expect("valid pdptes");
            m.mem.store(Hpa::new(RAM + PAGE + 8), 77);
            assert_eq!(
                m.cpu.read(VA.plus(8), Access::USER_READ),
                Ok(77),
                "{guest:?} on {host:?}"
            );
            assert_eq!(m.guest.entry(VA.get(), Level::L1) & (A | D), A);
            let (a, d) = if host.is_ept() {
                (EPT_A, EPT_D)
            } else {
                (A, D)
            };
            assert_eq!(
                m.host.entry(PAGE, Level::L1) & (a | d),
                a,
                "{guest:?} on {host:?}"
            );
            let table = m.guest.slot(VA.get(), Level::L1).get() - RAM;
            assert_eq!(
                m.host.entry(table, Level::L1) & (a | d),
                a | d,
                "guest tables are written"
            );
            m.cpu.write(VA, 1, Access::USER_WRITE).expect("writable");
            assert_eq!(m.guest.entry(VA.get(), Level::L1) & (A | D), A | D);
            assert_eq!(m.host.entry(PAGE, Level::L1) & (a | d), a | d);
        }
    }
}

#[test]
fn a_guess_fills_the_tlb_but_marks_no_table_of_the_guests() {
    let mut m = long4(Policy::KEEP);
    m.cpu.guess(VA);
    assert!(!m.cpu.tlb_entries().any(|entry| entry.covers(VA.get())));
    assert_eq!(m.guest.entry(VA.get(), Level::L4) & (A | D), 0);
    // Once the guest has used the page nothing is left to mark, but in the host's tables.
    m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU | A);
    for level in [Level::L4, Level::L3, Level::L2] {
        let slot = m.guest.slot(VA.get(), level);
        m.mem.store(slot, m.mem.load(slot) | A);
    }
    m.cpu.guess(VA);
    assert!(m.cpu.tlb_entries().any(|entry| entry.covers(VA.get())));
    assert_eq!(m.host.entry(PAGE, Level::L1) & (A | D), A);
}

#[test]
fn a_guest_with_paging_off_sees_its_physical_memory() {
    let regs = Registers::default();
    let mut m = machine(Format::Bits32, nested(Format::Npt4), regs, Policy::KEEP);
    m.mem.store(Hpa::new(RAM + 0x5008), 9);
    assert_eq!(m.cpu.read(Va::new(0x5008), Access::READ), Ok(9));
    let at = m
        .cpu
        .translate(Va::new(0x5008), Access::READ)
        .expect("mapped");
    assert_eq!(
        (at.source, at.gpa, at.entry.size),
        (Source::Tlb, Gpa::new(0x5008), PageSize::Size4K)
    );
    let outside = NpfCode::USER | NpfCode::FINAL | NpfCode::WRITE;
    let fault = m
        .cpu
        .write(Va::new(0x8000_0000), 1, Access::WRITE)
        .unwrap_err();
    assert_eq!(
        fault,
        Fault::Nested {
            gpa: Gpa::new(0x8000_0000),
            code: outside
        }
    );
}

#[test]
fn the_cached_page_is_as_large_as_the_smaller_of_both() {
    for (guest, host, cached) in [
        (PageSize::Size4K, PageSize::Size2M, PageSize::Size4K),
        (PageSize::Size2M, PageSize::Size4K, PageSize::Size4K),
        (PageSize::Size2M, PageSize::Size2M, PageSize::Size2M),
        (PageSize::Size1G, PageSize::Size2M, PageSize::Size2M),
        (PageSize::Size2M, PageSize::Size1G, PageSize::Size2M),
    ] {
        let mut m = machine(
            Format::Long4,
            nested(Format::Npt4),
            registers(Format::Long4, GUEST_ROOT),
            Policy::KEEP,
        );
        let (gpa, hpa) = (0x8000_0000, 0x4000_0000);
        m.guest.map(0x1_0000_0000, gpa, guest, RWU);
        m.host.map(gpa, hpa, host, RWU);
        let at = m
            .cpu
            .translate(Va::new(0x1_0000_0010), Access::READ)
            .expect("mapped");
        assert_eq!(
            (at.entry.size, at.hpa.get(), at.gpa.get()),
            (cached, hpa + 0x10, gpa + 0x10)
        );
    }
}

#[test]
fn nested_faults_tell_final_pages_from_guest_tables() {
    let mut m = long4(Policy::KEEP);
    let table = (m.guest.slot(VA.get(), Level::L1).get() - RAM) & !0xfff;
    let page = m.host.slot(PAGE, Level::L1);
    let below = m.host.slot(table, Level::L1);
    m.host.store(page, 0);
    let npf = |gpa: u64, code| {
        Err(Fault::Nested {
            gpa: Gpa::new(gpa),
            code,
        })
    };
    let last = NpfCode::USER | NpfCode::FINAL;
    assert_eq!(m.cpu.read(VA.plus(8), Access::READ), npf(PAGE + 8, last));
    assert_eq!(
        m.cpu.write(VA, 1, Access::READ).map(|()| 0),
        npf(PAGE, last | NpfCode::WRITE)
    );
    assert_eq!(
        m.cpu.fetch(VA, Access::READ),
        npf(PAGE, last | NpfCode::FETCH)
    );
    // Read-only, not executable, supervisor: present, but denied.
    m.host.store(page, (RAM + PAGE) | 5 | NX);
    let denied = last | NpfCode::PRESENT;
    assert_eq!(
        m.cpu.write(VA, 1, Access::READ).map(|()| 0),
        npf(PAGE, denied | NpfCode::WRITE)
    );
    assert_eq!(
        m.cpu.fetch(VA, Access::READ),
        npf(PAGE, denied | NpfCode::FETCH)
    );
    assert!(m.cpu.read(VA, Access::READ).is_ok());
    m.cpu.flush(Flush::All);
    m.host.store(page, (RAM + PAGE) | 3);
    assert_eq!(m.cpu.read(VA, Access::READ), npf(PAGE, denied));
    m.host.store(page, (RAM + PAGE) | RWU | 1 << 51);
    assert_eq!(
        m.cpu.read(VA, Access::READ),
        npf(PAGE, denied | NpfCode::RESERVED)
    );
    // A guest table is always written, whatever the access.
    m.host.store(below, (RAM + table) | 5);
    m.cpu.flush(Flush::All);
    let slot = m.guest.slot(VA.get(), Level::L1).get() - RAM;
    let written = NpfCode::USER | NpfCode::TABLE | NpfCode::WRITE | NpfCode::PRESENT;
    let fault = m.cpu.read(VA, Access::READ).unwrap_err();
    assert!(
        matches!(fault, Fault::Nested { gpa, code } if gpa.base(PageSize::Size4K) == Gpa::new(slot).base(PageSize::Size4K) && code == written),
        "{fault}"
    );
}

#[test]
fn a_guests_own_fault_comes_before_the_nested_one_of_the_page() {
    let mut m = long4(Policy::KEEP);
    let (leaf, page) = (
        m.guest.slot(VA.get(), Level::L1),
        m.host.slot(PAGE, Level::L1),
    );
    m.host.store(page, 0);
    m.guest.store(leaf, PAGE | 5);
    let code = PfCode::PRESENT | PfCode::WRITE | PfCode::USER;
    assert_eq!(
        m.cpu.write(VA, 1, Access::USER_WRITE),
        Err(Fault::Page { va: VA, code })
    );
}

#[test]
fn ept_violations_carry_their_qualification_and_misconfigurations_are_told_apart() {
    let guest = Format::Long4;
    let mut m = machine(
        guest,
        nested(Format::Ept4),
        registers(guest, GUEST_ROOT),
        Policy::KEEP,
    );
    m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU);
    let page = m.host.slot(PAGE, Level::L1);
    let base = EptQualification::LINEAR_VALID | EptQualification::FINAL;
    let violation = |qualification| Fault::EptViolation {
        gpa: Gpa::new(PAGE),
        va: VA,
        qualification,
    };
    m.host.store(page, (RAM + PAGE) | 5 | EPT_WB);
    let fault = m.cpu.write(VA, 1, Access::WRITE).unwrap_err();
    let q = EptQualification::WRITE | EptQualification::READABLE | EptQualification::EXECUTABLE;
    assert_eq!(fault, violation(base | q));
    m.host.store(page, (RAM + PAGE) | 4 | EPT_WB);
    assert!(m.cpu.fetch(VA, Access::EXECUTE).is_ok(), "execute-only");
    let fault = m.cpu.read(VA, Access::READ).unwrap_err();
    assert_eq!(
        fault,
        violation(base | EptQualification::READ | EptQualification::EXECUTABLE)
    );
    m.host.store(page, 0);
    assert_eq!(
        m.cpu.read(VA, Access::READ).unwrap_err(),
        violation(base | EptQualification::READ)
    );
    for bad in [2 | EPT_WB, 6 | EPT_WB, 7 | 2 << 3, 7 | EPT_WB | 1 << 50] {
        m.host.store(page, (RAM + PAGE) | bad);
        let fault = m.cpu.read(VA, Access::READ).unwrap_err();
        assert_eq!(
            fault,
            Fault::EptMisconfig {
                gpa: Gpa::new(PAGE)
            },
            "{bad:#x}"
        );
    }
}

#[test]
fn ept_without_dirty_bits_writes_guest_tables_only_to_set_their_bits() {
    let guest = Format::Long4;
    let ept = Nested {
        flags: NestedFlags::empty(),
        ..Nested::ept4(Hpa::new(HOST_ROOT))
    };
    let mut m = machine(guest, ept, registers(guest, GUEST_ROOT), Policy::KEEP);
    m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU | A);
    let table = (m.guest.slot(VA.get(), Level::L1).get() - RAM) & !0xfff;
    let entry = m.host.slot(table, Level::L1);
    m.host.store(entry, (RAM + table) | 5 | EPT_WB);
    assert!(
        m.cpu.read(VA, Access::READ).is_ok(),
        "accessed is set already: nothing to write"
    );
    let fault = m.cpu.write(VA, 1, Access::WRITE).unwrap_err();
    let both = EptQualification::READ | EptQualification::WRITE;
    let may = EptQualification::READABLE | EptQualification::EXECUTABLE;
    let qualification = both | may | EptQualification::LINEAR_VALID;
    let gpa = Gpa::new(table + (VA.get() >> 12 & 0x1ff) * 8);
    assert_eq!(
        fault,
        Fault::EptViolation {
            gpa,
            va: VA,
            qualification
        }
    );
    assert_eq!(
        m.host.entry(table, Level::L1),
        (RAM + table) | 5 | EPT_WB,
        "no ept bits are set"
    );
    m.host.store(entry, (RAM + table) | 7 | EPT_WB);
    assert!(m.cpu.write(VA, 1, Access::WRITE).is_ok());
    assert_eq!(m.guest.entry(VA.get(), Level::L1) & (A | D), A | D);
}

#[test]
fn nested_translations_stay_until_the_asid_is_flushed_and_guest_invlpg_keeps_them() {
    let mut m = long4(Policy::KEEP);
    m.cpu.write(VA, 1, Access::WRITE).expect("mapped");
    let table = m.guest.slot(VA.get(), Level::L1).get() - RAM;
    let frame = Frame::new((RAM + table) >> 12);
    assert!(
        m.cpu
            .reach(frame)
            .contains(Reach::TABLE | Reach::WRITABLE_DIRTY)
    );
    let entry = m.host.slot(table, Level::L1);
    m.host.store(entry, 0);
    m.guest
        .map(VA.get() + 0x1000, PAGE + 0x1000, PageSize::Size4K, RWU);
    m.cpu.invlpg(VA);
    assert!(
        m.cpu.read(VA.plus(0x1000), Access::READ).is_ok(),
        "by the stale nested entry"
    );
    assert_eq!(
        m.guest.entry(VA.get() + 0x1000, Level::L1) & A,
        A,
        "written through it"
    );
    m.cpu.flush(Flush::Asid(Asid::new(1)));
    assert!(m.cpu.reach(frame).is_empty());
    let fault = m.cpu.read(VA, Access::READ).unwrap_err();
    assert!(
        matches!(fault, Fault::Nested { code, .. } if code.contains(NpfCode::TABLE)),
        "{fault}"
    );
}

#[test]
fn invlpg_drops_all_parts_of_a_large_page_that_the_nested_tables_map_in_small_ones() {
    let mut m = long4(Policy::KEEP);
    let (first, second) = (Va::new(0x4020_0000), Va::new(0x4020_5000));
    m.guest.map(
        first.get(),
        0x80_0000,
        PageSize::Size2M,
        RWU | 1 << 7 | A | D,
    );
    for va in [first, second] {
        let found = m.cpu.translate(va, Access::READ).expect("mapped");
        assert_eq!(found.entry.size, PageSize::Size4K);
    }
    let entry = m.guest.slot(first.get(), Level::L2);
    m.mem.store(entry, 0);
    assert!(m.cpu.read(second, Access::READ).is_ok(), "stale");
    m.cpu.invlpg(first);
    assert!(m.cpu.read(second, Access::READ).is_err());
}

#[test]
fn a_nested_fault_is_repaired_and_the_retry_goes_through() {
    let mut m = long4(Policy::KEEP);
    let page = m.host.slot(PAGE, Level::L1);
    m.host.store(page, (RAM + PAGE) | 5);
    assert!(m.cpu.read(VA, Access::READ).is_ok());
    m.host.store(page, (RAM + PAGE) | RWU);
    let denied = m.cpu.write(VA, 1, Access::WRITE).unwrap_err();
    let code = NpfCode::PRESENT | NpfCode::WRITE | NpfCode::USER | NpfCode::FINAL;
    assert_eq!(
        denied,
        Fault::Nested {
            gpa: Gpa::new(PAGE),
            code
        },
        "from the stale entry"
    );
    assert_eq!(m.cpu.write(VA, 1, Access::WRITE), Ok(()));
}

#[test]
fn a_write_through_a_dirty_combined_entry_sets_no_nested_dirty_bit_again() {
    let mut m = long4(Policy::KEEP);
    m.cpu.write(VA, 1, Access::WRITE).expect("mapped");
    let page = m.host.slot(PAGE, Level::L1);
    m.host.store(page, (RAM + PAGE) | RWU);
    m.cpu.write(VA, 2, Access::WRITE).expect("cached");
    assert_eq!(
        m.host.entry(PAGE, Level::L1) & D,
        0,
        "harvested without a flush: the write is lost"
    );
    m.cpu.flush(Flush::All);
    m.cpu.write(VA, 3, Access::WRITE).expect("mapped");
    assert_eq!(m.host.entry(PAGE, Level::L1) & D, D);
}

#[test]
fn ept_roots_keep_their_translations_apart_and_are_flushed_one_by_one() {
    let guest = Format::Long4;
    let mut m = machine(
        guest,
        nested(Format::Ept4),
        registers(guest, GUEST_ROOT),
        Policy::KEEP,
    );
    m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU);
    m.cpu.read(VA, Access::READ).expect("mapped");
    let cached = m.cpu.tlb_entries().count();
    let other = Nested::ept4(Hpa::new(0x900_0000));
    let regs = *m.cpu.registers();
    let world = |nested| World {
        regs,
        asid: Asid::new(1),
        nested: Some(nested),
    };
    m.cpu
        .enter(&world(other), Flush::Nothing)
        .expect("no pdptes");
    assert!(m.cpu.read(VA, Access::READ).is_err(), "an empty root");
    assert_eq!(m.cpu.tlb_entries().count(), cached);
    m.cpu.flush(Flush::Ept(other.root));
    assert_eq!(m.cpu.tlb_entries().count(), cached);
    m.cpu.flush(Flush::Vpid(Asid::new(1)));
    assert!(
        m.cpu
            .tlb_entries()
            .all(|entry| entry.tag.stage() == vmmu_cpu::Stage::Physical)
    );
    m.cpu.flush(Flush::Ept(Hpa::new(HOST_ROOT)));
    assert_eq!(m.cpu.tlb_entries().count(), 0);
}

#[test]
fn guest_physical_addresses_beyond_the_nested_tables_fault_instead_of_wrapping() {
    let mut m = long4(Policy::KEEP);
    let model = Model {
        phys_bits: 52,
        ..Model::STRICT
    };
    m.cpu = Cpu::new(m.mem.clone(), model, Policy::KEEP, 3);
    let regs = registers(Format::Long4, GUEST_ROOT);
    let world = World {
        regs,
        asid: Asid::new(1),
        nested: Some(nested(Format::Npt4)),
    };
    m.cpu.enter(&world, Flush::All).expect("no pdptes");
    m.guest.map(VA.get(), PAGE | 1 << 48, PageSize::Size4K, RWU);
    let code = NpfCode::USER | NpfCode::FINAL;
    let gpa = Gpa::new(PAGE | 1 << 48);
    assert_eq!(
        m.cpu.read(VA, Access::READ),
        Err(Fault::Nested { gpa, code })
    );
    assert_eq!(level_of(PageSize::Size4K), Level::L1);
}

#[test]
fn a_dirty_guest_entry_alone_does_not_spare_the_nested_dirty_bit() {
    let mut m = long4(Policy::KEEP);
    m.guest.map(VA.get(), PAGE, PageSize::Size4K, RWU | A | D);
    m.cpu.read(VA, Access::READ).expect("mapped");
    assert_eq!(m.host.entry(PAGE, Level::L1) & D, 0);
    m.cpu.write(VA, 1, Access::WRITE).expect("mapped");
    assert_eq!(m.host.entry(PAGE, Level::L1) & D, D);
}

#[test]
fn a_frame_taken_back_is_missed_by_no_new_translation_through_a_stale_nested_one() {
    let mut m = long4(Policy::KEEP);
    let frame = m.mem.alloc(Zone::Any).expect("one frame");
    let page = m.host.slot(PAGE, Level::L1);
    m.host.store(page, frame.hpa().get() | RWU);
    m.guest.map(VA.get() + 0x1000, PAGE, PageSize::Size4K, RWU);
    m.cpu.read(VA, Access::READ).expect("mapped");
    m.mem.free(frame).expect("allocated");
    assert_eq!(m.mem.alloc(Zone::Any), Some(frame));
    let fault = m.cpu.read(VA.plus(0x1000), Access::READ).unwrap_err();
    assert!(
        matches!(fault, Fault::Violation(v) if v.frame == frame),
        "{fault}"
    );
    m.cpu.flush(Flush::All);
    assert!(m.cpu.read(VA.plus(0x1000), Access::READ).is_ok());
}
