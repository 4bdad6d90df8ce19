//! The random policy, several processors, and speed.

mod common;

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use common::{A, D, PAGE, RWU, Tables, VA, flat, registers, simple};
use vmmu_cpu::{
    Access, Asid, Cpu, Event, Fault, Flush, Format, Frame, Level, Model, Odds, PageSize,
    PhysMemory, Policy, Va, World, Zone,
};

/// Runs one seed over a guest that remaps pages, always invalidating; returns what it saw.
fn run(seed: u64) -> Vec<Event> {
    let (mem, mut tables, _) = simple();
    let mut cpu = Cpu::new(mem.clone(), Model::STRICT, Policy::RANDOM, seed);
    let world = World {
        regs: registers(Format::Long4, 0x10_0000),
        asid: Asid::new(1),
        nested: None,
    };
    cpu.enter(&world, Flush::All).expect("no pdptes");
    cpu.record_events();
    cpu.set_candidates((0..16).map(|page| VA.plus(page << 12)));
    let mut draw = fastrand::Rng::with_seed(seed ^ 0x55);
    let mut frames = [0; 16];
    for step in 0..400 {
        let page = draw.u64(0..16);
        let va = VA.plus(page << 12);
        if draw.bool() {
            frames[page as usize] = step % 32 + 1;
            tables.map(
                va.get(),
                PAGE + (frames[page as usize] << 12),
                PageSize::Size4K,
                RWU,
            );
            cpu.invlpg(va);
        } else if frames[page as usize] != 0 {
            let at = cpu.translate(va, Access::WRITE).expect("mapped");
            assert_eq!(
                at.hpa.get(),
                PAGE + (frames[page as usize] << 12),
                "after an invlpg nothing is stale"
            );
            assert_eq!(
                tables.entry(va.get(), Level::L1) & (A | D),
                A | D,
                "a write leaves the dirty bit"
            );
        }
    }
    assert!(cpu.violations().is_empty() && cpu.conflicts().is_empty());
    cpu.take_events()
}

#[test]
fn a_seed_gives_one_run_and_another_seed_another() {
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn who_always_invalidates_never_sees_a_stale_entry() {
    for seed in 0..200 {
        run(seed);
    }
}

#[test]
fn a_forgotten_invalidation_shows_under_every_policy_that_caches() {
    for policy in [Policy::KEEP, Policy::RANDOM] {
        let stale = (0..100).filter(|seed| {
            let (mem, mut tables, _) = simple();
            let mut cpu = Cpu::new(mem, Model::STRICT, policy, *seed);
            let regs = registers(Format::Long4, 0x10_0000);
            cpu.enter(
                &World {
                    regs,
                    asid: Asid::new(1),
                    nested: None,
                },
                Flush::All,
            )
            .expect("no pdptes");
            cpu.read(VA, Access::READ).expect("mapped");
            tables.map(VA.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
            cpu.translate(VA, Access::READ).expect("mapped").hpa.get() == PAGE
        });
        let stale = stale.count();
        assert!(stale > 40, "{policy:?}: {stale} of 100");
    }
}

#[test]
fn speculation_fills_and_sets_accessed_but_neither_dirties_nor_faults() {
    let (_, mut tables, mut cpu) = simple();
    let policy = Policy {
        speculate: Odds::ALWAYS,
        ..Policy::KEEP
    };
    cpu.set_policy(policy);
    cpu.set_candidates([VA, Va::new(0x7777_0000)]);
    let other = VA.plus(0x1000);
    tables.map(other.get(), PAGE + 0x1000, PageSize::Size4K, RWU);
    for _ in 0..16 {
        cpu.write(other, 1, Access::WRITE).expect("mapped");
    }
    assert_eq!(tables.entry(VA.get(), Level::L1) & (A | D), A);
    assert!(
        cpu.tlb_entries()
            .any(|entry| entry.covers(VA.get()) && !entry.dirty)
    );
    assert!(cpu.counters().guesses == 16 && cpu.counters().faults == 0);
}

#[test]
fn bits_set_by_processors_never_undo_a_change_of_the_entry() {
    let (mem, mut tables, _) = simple();
    let slot = tables.slot(VA.get(), Level::L1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (mem, stop) = (mem.clone(), &stop);
            scope.spawn(move || {
                let mut cpu = Cpu::new(mem, Model::STRICT, Policy::NONE, seed);
                let regs = registers(Format::Long4, 0x10_0000);
                let world = World {
                    regs,
                    asid: Asid::new(1),
                    nested: None,
                };
                cpu.enter(&world, Flush::All).expect("no pdptes");
                while !stop.load(Ordering::Relaxed) {
                    cpu.translate(VA, Access::WRITE)
                        .expect("mapped at all times");
                }
            });
        }
        let (mut expected, mut dirty) = (PAGE | RWU, 0);
        // On a loaded machine the other threads may take their time to begin.
        let patience = Instant::now();
        let mut round = 0;
        while round < 20_000 || (dirty <= 100 && patience.elapsed().as_secs() < 30) {
            round += 1;
            // Another frame each time: a bit set by a plain store would bring the old one back.
            let next = (PAGE + (round % 64 + 1) * 0x1000) | RWU;
            let found = mem.swap(slot, next);
            if found & !(A | D) != expected {
                stop.store(true, Ordering::Relaxed);
                panic!("stored {expected:#x}, found {found:#x}");
            }
            expected = next;
            if found & D != 0 {
                dirty += 1;
            } else if round % 16 == 0 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(dirty > 100, "the threads met {dirty} times");
    });
}

#[test]
fn a_hypervisor_that_flushes_before_it_frees_is_never_reported() {
    let mem = Arc::new(PhysMemory::with_pool(
        4096,
        Frame::new(0x300)..Frame::new(0x304),
    ));
    let mut tables = Tables::new(&mem, Format::Long4, 0x10_0000, 0);
    let mut cpu = flat(&mem, registers(Format::Long4, 0x10_0000), Policy::RANDOM);
    cpu.set_candidates([VA, VA.plus(0x1000)]);
    let slot = tables.slot(VA.get(), Level::L2);
    for flushes in [true, false] {
        let mut reported = false;
        for _ in 0..300 {
            let table = mem.alloc(Zone::Any).expect("one at a time");
            tables.store(slot, table.hpa().get() | RWU);
            tables.map(VA.get(), PAGE, PageSize::Size4K, RWU);
            let _ = cpu.read(VA, Access::READ);
            tables.store(slot, 0);
            if flushes {
                cpu.flush(Flush::All);
            }
            mem.free(table).expect("allocated");
            reported |= matches!(
                cpu.read(VA.plus(0x1000), Access::READ),
                Err(Fault::Violation(_))
            );
        }
        assert_eq!(reported, !flushes);
    }
}

#[test]
fn memory_comes_into_being_once_though_many_touch_it_first() {
    let mem = Arc::new(PhysMemory::new(1 << 16));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mem = &mem;
            scope.spawn(move || {
                for chunk in 0..64 {
                    mem.store(vmmu_cpu::Hpa::new((chunk << 18) + thread * 8), thread + 1);
                }
            });
        }
    });
    for chunk in 0..64 {
        for thread in 0..4 {
            assert_eq!(
                mem.load(vmmu_cpu::Hpa::new((chunk << 18) + thread * 8)),
                thread + 1
            );
        }
    }
}
