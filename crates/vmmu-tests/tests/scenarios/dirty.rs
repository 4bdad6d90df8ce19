//! D2, D4 and D5: no dirty bit is lost (rules R10 and R13).

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use vmmu::addr::{Gfn, Gpa};
use vmmu::{Engine, SlotFlags};
use vmmu_tests::guest::{
    A, D, P, PAGE, ROOT, U, USER_READ, USER_WRITE, W, WRITE, entry, slot, window,
};
use vmmu_tests::machine::Machine;
use vmmu_tests::stage::{during_kick, end, frame, guest, setup, va};

fn logged(engine: Engine, vcpus: u16) -> Machine {
    guest(&setup(engine, vcpus), SlotFlags::LOG_DIRTY)
}

fn harvest(machine: &Machine) -> BTreeSet<u64> {
    let mut taken = BTreeSet::new();
    let id = machine.slots[0].id;
    let done = machine.mmu.harvest_dirty(id, |gfn| {
        taken.insert(gfn.get());
    });
    done.expect("a slot with a log");
    taken
}

#[test]
fn d2_a_frame_whose_mapping_a_sync_narrows_is_still_in_the_log() {
    let mut machine = logged(Engine::Shadow, 1);
    let _ = harvest(&machine);
    assert_eq!(machine.access(0, va(0, 1), USER_WRITE), frame(101));
    let at = slot(ROOT + 3, 1);
    let _ = machine.write(0, window(at), entry(101, P | U | A | D), WRITE);
    machine.load_cr3(0, ROOT << 12);
    assert_eq!(machine.access(0, va(0, 1), USER_READ), frame(101));
    assert!(harvest(&machine).contains(&101));
    assert!(!harvest(&machine).contains(&101), "it is there once only");
}

/// The same when the mapping disappears altogether.
#[test]
fn d2_a_frame_whose_mapping_is_removed_is_still_in_the_log() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = logged(engine, 1);
        let _ = harvest(&machine);
        assert_eq!(machine.access(0, va(0, 1), USER_WRITE), frame(101));
        drop(machine.mmu.invalidate_begin(Gfn::new(101), 1));
        assert!(harvest(&machine).contains(&101), "{engine:?}");
    }
}

#[test]
fn d4_a_write_through_a_dirty_tlb_entry_after_a_harvest_is_in_the_next() {
    let mut machine = logged(Engine::Shadow, 2);
    let _ = harvest(&machine);
    assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
    let ran = Arc::new(AtomicBool::new(false));
    let log = Arc::new(Mutex::new(BTreeSet::new()));
    let (mmu, id, host) = (
        machine.mmu.clone(),
        machine.slots[0].id,
        machine.host.clone(),
    );
    let (seen, done) = (log.clone(), ran.clone());
    during_kick(&machine, move || {
        // The entry is gone and D recorded; CPU 1 still has it in its TLB, dirty.
        mmu.harvest_dirty(id, |gfn| {
            seen.lock().unwrap().insert(gfn.get());
        })
        .expect("a slot with a log");
        // Had the harvest returned without a flush, CPU 1 could write unseen now.
        assert!(
            !host.is_inside(1),
            "the harvest promised what a TLB can break"
        );
        done.store(true, Ordering::SeqCst);
    });
    machine.emulated_write(slot(ROOT + 3, 1), 0);
    end(&machine, &ran);
    assert!(log.lock().unwrap().contains(&101));
    // What a TLB may have written until the flush is reported once more.
    assert!(harvest(&machine).contains(&101));
}

#[test]
fn d5_accessed_and_dirty_updates_mark_the_tables_frame() {
    let mut machine = logged(Engine::Shadow, 1);
    machine.poke(slot(ROOT + 3, 9), entry(109, P | W | U));
    let _ = machine.access(0, va(0, 1), USER_READ);
    let _ = harvest(&machine);
    let _ = machine.access(0, va(0, 9), USER_READ);
    assert!(harvest(&machine).contains(&(ROOT + 3)), "A");
    let _ = machine.access(0, va(0, 9), USER_WRITE);
    let log = harvest(&machine);
    assert!(log.contains(&(ROOT + 3)) && log.contains(&109), "D");
}

/// R13: while the host takes the table's frame back, nothing is stored in it.
#[test]
fn d5_no_update_lands_in_a_frame_that_is_being_taken_back() {
    let mut machine = logged(Engine::Shadow, 1);
    machine.poke(slot(ROOT + 3, 9), entry(109, P | W | U));
    let _ = machine.access(0, va(0, 1), USER_READ);
    let _ = machine.host.take_gpte_writes();
    machine.host.exit(0);
    let taking = machine.mmu.invalidate_begin(Gfn::new(ROOT + 3), 1);
    let access = vmmu_tests::convert::access(USER_READ);
    let outcome = machine
        .vcpu(0)
        .handle_fault(vmmu::addr::Gva::new(va(0, 9)), access);
    assert_eq!(outcome, Ok(vmmu::FaultOutcome::Retry));
    assert_eq!(machine.host.take_gpte_writes(), []);
    drop(taking);
    assert_eq!(machine.access(0, va(0, 9), USER_READ), frame(109));
    assert_ne!(machine.peek(slot(ROOT + 3, 9)) & A, 0);
    let _ = (Gpa::new(0), PAGE);
}

/// D3 in its single-threaded form: each written page once a round, none missed, over a large page.
#[test]
fn d3_each_page_of_a_large_page_is_logged_once_a_round() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = logged(engine, 2);
        machine.poke(slot(ROOT + 2, 1), entry(512, PAGE | vmmu_tests::guest::PS));
        for round in 0..4 {
            let _ = harvest(&machine);
            for i in [3, 7, 500, round] {
                let cpu = (i % 2) as usize;
                assert_eq!(machine.access(cpu, va(1, i), USER_WRITE), frame(512 + i));
                assert_eq!(machine.access(cpu, va(1, i), USER_WRITE), frame(512 + i));
            }
            let mut log = harvest(&machine);
            log.retain(|gfn| *gfn >= 512);
            let expected: BTreeSet<u64> = [3, 7, 500, round].map(|i| 512 + i).into();
            assert_eq!(log, expected, "{engine:?} round {round}");
        }
    }
}
