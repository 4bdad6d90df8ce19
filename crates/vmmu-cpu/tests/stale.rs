//! What a processor that keeps everything does with entries that memory no longer holds.

mod common;

use std::sync::Arc;

use common::{A, D, G, PAGE, RWU, Tables, VA, flat, registers, simple};
use vmmu_cpu::{
    Access, Asid, Cr3, Cr4, Fault, Flush, Format, Frame, Hpa, Level, Misuse, Moment, PageSize,
    PfCode, PhysMemory, Policy, Reach, Registers, Source, Unusable, Va, Via, World, Zone,
};

#[test]
fn a_cached_translation_is_used_until_invlpg_whatever_memory_says() {
    let (mem, mut tables, mut cpu) = simple();
    mem.store(Hpa::new(PAGE), 1);
    assert_eq!(cpu.read(VA, Access::USER_READ), Ok(1));
    tables.map(VA.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
    mem.store(Hpa::new(PAGE + 0x1000), 2);
    assert_eq!(cpu.read(VA, Access::USER_READ), Ok(1));
    cpu.invlpg(VA.plus(0xff8));
    assert_eq!(cpu.read(VA, Access::USER_READ), Ok(2));
}

#[test]
fn a_write_through_a_dirty_entry_leaves_no_trace_in_the_table() {
    let (mem, mut tables, mut cpu) = simple();
    cpu.write(VA, 1, Access::USER_WRITE).expect("writable");
    let slot = tables.slot(VA.get(), Level::L1);
    // Write-protected and cleaned, but not flushed.
    tables.store(slot, PAGE | 5);
    cpu.write(VA, 2, Access::USER_WRITE)
        .expect("stale, writable, dirty");
    assert_eq!(mem.load(Hpa::new(PAGE)), 2);
    assert_eq!(tables.entry(VA.get(), Level::L1), PAGE | 5);
    assert!(
        cpu.reach(Frame::new(PAGE >> 12))
            .contains(Reach::WRITABLE_DIRTY)
    );
}

#[test]
fn the_first_write_through_a_clean_entry_looks_at_memory_and_sets_dirty_there() {
    let (_, mut tables, mut cpu) = simple();
    cpu.read(VA, Access::USER_READ).expect("mapped");
    assert!(
        !cpu.reach(Frame::new(PAGE >> 12))
            .contains(Reach::WRITABLE_DIRTY)
    );
    let at = cpu.translate(VA, Access::USER_WRITE).expect("writable");
    assert_eq!(
        (at.source, tables.entry(VA.get(), Level::L1)),
        (Source::Walk, PAGE | RWU | A | D)
    );
    // The entry is one, and dirty now.
    assert_eq!(cpu.tlb_entries().count(), 1);
    assert_eq!(
        cpu.translate(VA, Access::USER_WRITE)
            .expect("writable")
            .source,
        Source::Tlb
    );
    // And with the leaf gone the first write of a clean entry faults.
    cpu.invlpg(VA);
    let slot = tables.slot(VA.get(), Level::L1);
    tables.store(slot, PAGE | RWU);
    cpu.read(VA, Access::USER_READ).expect("mapped");
    tables.store(slot, 0);
    assert!(cpu.write(VA, 1, Access::USER_WRITE).is_err());
}

#[test]
fn a_stale_denial_faults_once_and_the_retry_sees_memory() {
    let (_, mut tables, mut cpu) = simple();
    let slot = tables.slot(VA.get(), Level::L1);
    tables.store(slot, PAGE | 5);
    cpu.read(VA, Access::USER_READ).expect("readable");
    tables.store(slot, PAGE | RWU);
    let code = PfCode::PRESENT | PfCode::WRITE | PfCode::USER;
    assert_eq!(
        cpu.write(VA, 1, Access::USER_WRITE),
        Err(Fault::Page { va: VA, code })
    );
    assert_eq!(cpu.write(VA, 1, Access::USER_WRITE), Ok(()));
    assert_eq!(cpu.counters().believed_denials, 1);
}

#[test]
fn a_cached_structure_entry_keeps_an_unlinked_table_in_use_until_any_invlpg() {
    let (_, mut tables, mut cpu) = simple();
    cpu.read(VA, Access::READ).expect("mapped");
    let neighbour = VA.plus(0x1000);
    tables.map(neighbour.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
    let pde = tables.slot(VA.get(), Level::L2);
    let table = Frame::new(tables.entry(VA.get(), Level::L2) >> 12);
    tables.store(pde, 0);
    assert!(
        cpu.read(neighbour, Access::READ).is_ok(),
        "by way of the cached level-2 entry"
    );
    assert!(cpu.reach(table).contains(Reach::TABLE));
    cpu.invlpg(Va::new(0));
    assert!(
        !cpu.reach(table).contains(Reach::TABLE),
        "invlpg drops all structure entries"
    );
    assert!(
        cpu.read(VA, Access::READ).is_ok(),
        "but no translation of another address"
    );
    assert!(cpu.read(neighbour.plus(0x1000), Access::READ).is_err());
}

/// A pool from which the table of level 1 is taken.
fn with_pooled_table() -> (Arc<PhysMemory>, Tables, Frame) {
    let mem = Arc::new(PhysMemory::with_pool(
        4096,
        Frame::new(0x300)..Frame::new(0x310),
    ));
    let mut tables = Tables::new(&mem, Format::Long4, 0x10_0000, 0);
    let table = mem.alloc(Zone::Any).expect("pool has frames");
    let slot = tables.slot(VA.get(), Level::L2);
    tables.store(slot, table.hpa().get() | RWU);
    tables.map(VA.get(), PAGE, PageSize::Size4K, RWU);
    (mem, tables, table)
}

#[test]
fn walking_a_freed_table_is_reported_even_after_its_frame_was_reused() {
    for reuse in [false, true] {
        let (mem, mut tables, table) = with_pooled_table();
        let mut cpu = flat(&mem, registers(Format::Long4, 0x10_0000), Policy::KEEP);
        cpu.read(VA, Access::READ).expect("mapped");
        let slot = tables.slot(VA.get(), Level::L2);
        tables.store(slot, 0);
        mem.free(table).expect("allocated");
        if reuse {
            assert_eq!(mem.alloc(Zone::Any), Some(table));
        }
        let why = if reuse {
            Unusable::Reused
        } else {
            Unusable::Free
        };
        let fault = cpu.read(VA.plus(0x1000), Access::READ).unwrap_err();
        let Fault::Violation(violation) = fault else {
            panic!("{fault}")
        };
        assert_eq!(violation.kind, Misuse::Table(why));
        assert_eq!(
            (violation.frame, violation.via),
            (table, Via::StructureCache(Level::L2))
        );
        assert_eq!(cpu.violations(), [violation]);
    }
}

#[test]
fn a_table_freed_while_linked_is_reported_by_a_fresh_walk() {
    let (mem, _, table) = with_pooled_table();
    let mut cpu = flat(&mem, registers(Format::Long4, 0x10_0000), Policy::NONE);
    mem.free(table).expect("allocated");
    let fault = cpu.read(VA, Access::READ).unwrap_err();
    assert!(
        matches!(fault, Fault::Violation(v) if v.via == Via::Entry(Level::L2)),
        "{fault}"
    );
    // Linked anew after being handed out again, it is a table like any other.
    assert_eq!(mem.alloc(Zone::Any), Some(table));
    let page = PfCode::empty();
    assert_eq!(
        cpu.read(VA, Access::READ),
        Err(Fault::Page { va: VA, code: page })
    );
}

#[test]
fn a_freed_root_and_a_freed_page_are_reported() {
    let mem = Arc::new(PhysMemory::with_pool(
        4096,
        Frame::new(0x300)..Frame::new(0x310),
    ));
    let (root, page) = (
        mem.alloc(Zone::Any).expect("frames"),
        mem.alloc(Zone::Any).expect("frames"),
    );
    let mut tables = Tables::new(&mem, Format::Long4, 0x10_0000, 0);
    tables.map(VA.get(), page.hpa().get(), PageSize::Size4K, RWU);
    for index in 0..512 {
        mem.store(
            root.hpa().plus(index * 8),
            mem.load(Hpa::new(0x10_0000 + index * 8)),
        );
    }
    let mut cpu = flat(
        &mem,
        registers(Format::Long4, root.hpa().get()),
        Policy::KEEP,
    );
    cpu.read(VA, Access::READ).expect("mapped");
    assert!(cpu.reach(root).contains(Reach::ROOT));
    mem.free(page).expect("allocated");
    let fault = cpu.read(VA, Access::READ).unwrap_err();
    assert!(
        matches!(fault, Fault::Violation(v) if v.via == Via::Tlb && v.frame == page),
        "{fault}"
    );
    mem.free(root).expect("allocated");
    cpu.flush(Flush::All);
    let fault = cpu.read(VA, Access::READ).unwrap_err();
    assert!(
        matches!(fault, Fault::Violation(v) if v.via == Via::Root && v.frame == root),
        "{fault}"
    );
    assert_eq!(mem.usable(root, Moment::LATEST), Err(Unusable::Free));
}

#[test]
fn large_and_small_pages_live_side_by_side_and_are_reported() {
    let (mem, mut tables, mut cpu) = simple();
    let large = VA.get() & !0x1f_ffff;
    let slot = tables.slot(large, Level::L2);
    let old = tables.entry(large, Level::L2);
    tables.store(slot, 0x40_0000 | PS_RWU);
    cpu.read(Va::new(large), Access::READ).expect("large page");
    assert!(cpu.conflicts().is_empty());
    // Split without a flush: the large entry stays, and a speculative walk adds a small one.
    tables.store(slot, old);
    cpu.guess(VA);
    let found = cpu.conflicts();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].small.size, found[0].large.size),
        (PageSize::Size4K, PageSize::Size2M)
    );
    assert!(found[0].differs_in_frame());
    // Either may answer.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        seen.insert(cpu.translate(VA, Access::READ).expect("cached").hpa);
    }
    assert_eq!(seen.len(), 2);
    cpu.invlpg(VA);
    assert_eq!(cpu.tlb_entries().count(), 0, "invlpg drops both sizes");
    drop(mem);
}

const PS_RWU: u64 = RWU | common::PS;

#[test]
fn a_large_entry_is_dropped_by_invlpg_of_any_of_its_bytes() {
    for offset in [0, 0x1000, 0x1f_ffff] {
        let (_, mut tables, mut cpu) = simple();
        let large = 0x8000_0000;
        tables.map(large, 0x40_0000, PageSize::Size2M, RWU);
        cpu.read(Va::new(large), Access::READ).expect("mapped");
        cpu.invlpg(Va::new(large + offset));
        assert_eq!(cpu.tlb_entries().count(), 0);
    }
}

#[test]
fn global_entries_survive_cr3_but_not_invlpg_nor_a_pge_toggle() {
    let (_, mut tables, mut cpu) = simple();
    tables.map(VA.get(), PAGE, PageSize::Size4K, RWU | G);
    tables.map(VA.get() + 0x1000, PAGE, PageSize::Size4K, RWU);
    let touch = |cpu: &mut vmmu_cpu::Cpu| {
        cpu.read(VA, Access::READ).expect("mapped");
        cpu.read(VA.plus(0x1000), Access::READ).expect("mapped");
        assert_eq!(cpu.tlb_entries().count(), 2);
    };
    touch(&mut cpu);
    cpu.mov_cr3(0x10_0000).expect("no pdptes");
    assert_eq!(cpu.tlb_entries().count(), 1);
    assert!(cpu.tlb_entries().all(|entry| entry.tag.is_global()));
    touch(&mut cpu);
    cpu.invlpg(VA);
    assert!(cpu.tlb_entries().all(|entry| !entry.tag.is_global()));
    touch(&mut cpu);
    let cr4 = cpu.registers().cr4;
    cpu.mov_cr4(cr4 - Cr4::PGE).expect("no pdptes");
    assert_eq!(cpu.tlb_entries().count(), 0);
    touch(&mut cpu);
    assert!(
        cpu.tlb_entries().all(|entry| !entry.tag.is_global()),
        "G counts only with PGE"
    );
}

#[test]
fn pcids_keep_their_translations_apart_and_the_no_flush_bit_keeps_them() {
    let (mem, mut tables, mut cpu) = simple();
    let other_root = 0x80_0000;
    let mut other = Tables::new(&mem, Format::Long4, other_root, 0);
    other.map(VA.get(), PAGE + 0x5000, PageSize::Size4K, RWU);
    let cr4 = cpu.registers().cr4;
    cpu.mov_cr4(cr4 | Cr4::PCIDE).expect("no pdptes");
    let at = |cpu: &mut vmmu_cpu::Cpu| cpu.translate(VA, Access::READ).expect("mapped").hpa.get();
    cpu.mov_cr3(0x10_0000 | 1).expect("no pdptes");
    assert_eq!(at(&mut cpu), PAGE);
    cpu.mov_cr3(other_root | 2).expect("no pdptes");
    assert_eq!(at(&mut cpu), PAGE + 0x5000);
    tables.map(VA.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
    cpu.mov_cr3(0x10_0000 | 1 | Cr3::NO_FLUSH)
        .expect("no pdptes");
    assert_eq!(at(&mut cpu), PAGE, "kept");
    cpu.mov_cr3(0x10_0000 | 1).expect("no pdptes");
    assert_eq!(at(&mut cpu), PAGE + 0x1000);
}

#[test]
fn a_world_switch_flushes_only_what_it_is_told_and_asids_are_apart() {
    let (_, mut tables, mut cpu) = simple();
    let regs: Registers = *cpu.registers();
    let world = |asid| World {
        regs,
        asid: Asid::new(asid),
        nested: None,
    };
    cpu.read(VA, Access::READ).expect("mapped");
    let slot = tables.slot(VA.get(), Level::L1);
    tables.store(slot, 0);
    cpu.enter(&world(2), Flush::Nothing).expect("no pdptes");
    assert!(cpu.read(VA, Access::READ).is_err());
    cpu.enter(&world(1), Flush::Asid(Asid::new(2)))
        .expect("no pdptes");
    assert!(cpu.read(VA, Access::READ).is_ok(), "stale entry of asid 1");
    cpu.enter(&world(1), Flush::Asid(Asid::new(1)))
        .expect("no pdptes");
    assert!(cpu.read(VA, Access::READ).is_err());
}

#[test]
fn a_bit_set_in_a_4_byte_entry_leaves_the_other_half_of_its_word_alone() {
    let mem = Arc::new(PhysMemory::new(1 << 16));
    let mut tables = Tables::new(&mem, Format::Bits32, 0x10_0000, 0);
    tables.map(0x1000, PAGE, PageSize::Size4K, RWU);
    tables.map(0x0, PAGE + 0x1000, PageSize::Size4K, RWU);
    let mut cpu = flat(&mem, registers(Format::Bits32, 0x10_0000), Policy::KEEP);
    cpu.write(Va::new(0x1000), 1, Access::WRITE)
        .expect("mapped");
    assert_eq!(
        tables.entry(0, Level::L1),
        (PAGE + 0x1000) | RWU,
        "the neighbour in the word is untouched"
    );
    assert_eq!(tables.entry(0x1000, Level::L1), PAGE | RWU | A | D);
}

#[test]
fn a_cached_structure_entry_brings_the_rights_of_its_time() {
    let (_, mut tables, mut cpu) = simple();
    let neighbour = VA.plus(0x1000);
    tables.map(neighbour.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
    let (slot, pde) = (
        tables.slot(VA.get(), Level::L2),
        tables.entry(VA.get(), Level::L2),
    );
    tables.store(slot, pde & !2);
    cpu.read(VA, Access::USER_READ).expect("readable");
    tables.store(slot, pde);
    let code = PfCode::PRESENT | PfCode::WRITE | PfCode::USER;
    let denied = Err(Fault::Page {
        va: neighbour,
        code,
    });
    assert_eq!(
        cpu.write(neighbour, 1, Access::USER_WRITE),
        denied,
        "read-only when cached"
    );
    assert_eq!(
        cpu.write(neighbour, 1, Access::USER_WRITE),
        Ok(()),
        "the fault dropped it"
    );
}

#[test]
fn bytes_may_cross_pages_and_a_fault_on_the_second_writes_neither() {
    let (mem, mut tables, mut cpu) = simple();
    let last = VA.plus(0xffe);
    assert!(cpu.write_bytes(last, &[1, 2, 3], Access::WRITE).is_err());
    assert_eq!(mem.load(Hpa::new(PAGE + 0xff8)), 0);
    tables.map(VA.get() + 0x1000, PAGE + 0x5000, PageSize::Size4K, RWU);
    cpu.write_bytes(last, &[1, 2, 3], Access::WRITE)
        .expect("both mapped");
    assert_eq!(mem.load(Hpa::new(PAGE + 0x5000)), 3);
    let mut back = [0; 3];
    cpu.read_bytes(last, &mut back, Access::EXECUTE)
        .expect("executable");
    assert_eq!(back, [1, 2, 3]);
}
