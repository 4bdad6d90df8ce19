//! What whole guests need of a processor: bounded memory, policies that change over time, and answers that a faster cache can keep.

mod common;

use std::collections::BTreeSet;

use common::{A, D, PAGE, RWU, Tables, VA, flat, registers, simple};
use vmmu_cpu::{
    Access, Asid, Cpu, Cr4, Event, Fault, Flush, Format, Hostility, Kind, Level, Model, Odds,
    PageSize, PhysMemory, Policy, Privilege, World,
};

/// Maps `pages` pages from `VA` on, one after the other in memory too.
fn map_many(tables: &mut Tables, pages: u64) {
    for page in 0..pages {
        let va = VA.plus(page << 12);
        tables.map(va.get(), PAGE + (page << 12), PageSize::Size4K, RWU);
    }
}

#[test]
fn the_caches_keep_to_their_capacity() {
    let (_, mut tables, mut cpu) = simple();
    map_many(&mut tables, 500);
    cpu.set_capacity(64);
    for page in 0..500 {
        let va = VA.plus(page << 12);
        let at = cpu.translate(va, Access::READ).expect("mapped");
        assert_eq!(at.hpa.get(), PAGE + (page << 12));
        assert!(cpu.tlb_entries().count() <= 64);
        assert!(cpu.structure_entries().count() <= 64);
    }
    assert!(cpu.tlb_entries().count() > 16);
}

#[test]
fn a_hostile_schedule_is_exact_for_a_guest_that_invalidates_and_walks_ahead_of_it() {
    let (_, mut tables, mut cpu) = simple();
    map_many(&mut tables, 500);
    let hostility = Hostility {
        calm: 3000,
        burst: 300,
        speculate: Odds::of_256(8),
        ..Hostility::default()
    };
    cpu.set_schedule(hostility.schedule().expect("phases"));
    let mut draw = fastrand::Rng::with_seed(3);
    let mut moved = [0; 32];
    for step in 0..60_000 {
        let page = draw.u64(0..32);
        let va = VA.plus(page << 12);
        if draw.u8(..) < 16 {
            moved[page as usize] = step % 32 + 1;
            let target = PAGE + ((page + moved[page as usize]) << 12);
            tables.map(va.get(), target, PageSize::Size4K, RWU);
            cpu.invlpg(va);
        }
        let at = cpu.translate(va, Access::WRITE).expect("mapped");
        let expected = PAGE + ((page + moved[page as usize]) << 12);
        assert_eq!(at.hpa.get(), expected, "after an invlpg nothing is stale");
    }
    let counters = cpu.counters();
    assert!(
        counters.evictions > 10 && counters.guesses > 500,
        "{counters:?}"
    );
    assert!(
        counters.hits > 20_000 && counters.walks > 2000,
        "{counters:?}"
    );
    // Pages that nobody used have been walked ahead of use, and are accessed but not dirty.
    let ahead = (32..36).map(|page| tables.entry(VA.plus(page << 12).get(), Level::L1) & (A | D));
    assert_eq!(ahead.collect::<BTreeSet<_>>(), BTreeSet::from([A]));
    assert!(cpu.violations().is_empty());
}

#[test]
fn a_forgotten_invalidation_shows_under_the_hostile_schedule() {
    let stale = (0..100).filter(|seed| {
        let (mem, mut tables, _) = simple();
        let mut cpu = Cpu::new(mem, Model::STRICT, Policy::KEEP, *seed);
        let world = World {
            regs: registers(Format::Long4, 0x10_0000),
            asid: Asid::new(1),
            nested: None,
        };
        cpu.enter(&world, Flush::All).expect("no pdptes");
        cpu.set_schedule(Hostility::default().schedule().expect("phases"));
        cpu.read(VA, Access::READ).expect("mapped");
        tables.map(VA.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
        cpu.translate(VA, Access::READ).expect("mapped").hpa.get() == PAGE
    });
    assert!(stale.count() > 50);
}

#[test]
fn what_an_entry_permits_is_what_goes_through() {
    let mem = std::sync::Arc::new(PhysMemory::new(1 << 16));
    let mut seen = BTreeSet::new();
    for leaf in [1, 3, 5, 7, 7 | 1 << 63, 3 | D] {
        for cr4 in [Cr4::empty(), Cr4::SMEP | Cr4::SMAP] {
            let mut tables = Tables::new(&mem, Format::Long4, 0x10_0000, 0);
            tables.map(VA.get(), PAGE, PageSize::Size4K, leaf);
            let mut regs = registers(Format::Long4, 0x10_0000);
            regs.cr4 |= cr4;
            let mut cpu = flat(&mem, regs, Policy::KEEP);
            cpu.guess(VA);
            let entry = *cpu.tlb_entries().next().expect("the guess filled it");
            let permits = cpu.permits(&entry);
            for kind in [Kind::Read, Kind::Write, Kind::Execute] {
                for privilege in [
                    Privilege::User,
                    Privilege::Supervisor,
                    Privilege::SupervisorAc,
                ] {
                    let access = Access::new(kind, privilege);
                    cpu.flush(Flush::All);
                    cpu.guess(VA);
                    let through = match cpu.translate(VA, access) {
                        Ok(_) => kind != Kind::Write || leaf & D != 0,
                        Err(Fault::Page { .. }) => false,
                        Err(other) => panic!("{other}"),
                    };
                    assert_eq!(
                        permits.contains(access),
                        through,
                        "{leaf:#x} {cr4:?} {access:?}"
                    );
                    seen.insert((access.kind as u8, through));
                    tables.map(VA.get(), PAGE, PageSize::Size4K, leaf);
                }
            }
        }
    }
    assert_eq!(seen.len(), 6, "each kind is allowed and denied");
}

#[test]
fn the_last_events_are_kept_without_hits() {
    let (_, mut tables, mut cpu) = simple();
    map_many(&mut tables, 100);
    cpu.record_last_events(8);
    for page in 0..100 {
        for _ in 0..10 {
            let _ = cpu.read(VA.plus(page << 12), Access::READ);
        }
    }
    let events = cpu.take_events();
    assert_eq!(events.len(), 8);
    assert!(!events.iter().any(|event| matches!(event, Event::Hit(..))));
    assert!(matches!(events[7], Event::Filled(entry) if entry.covers(VA.plus(99 << 12).get())));
}
