//! R10: a write is in the log of the harvest that follows it.

use vmmu::{Engine, SlotFlags, SlotId};
use vmmu_tests::guest::{PAGE, PS, USER_READ, USER_WRITE, entry, slot};
use vmmu_tests::machine::Machine;

use crate::stage::{DIRECTORY, LEAVES, RAM, at, quiet, reached, start};

fn harvest(machine: &Machine, id: SlotId) -> Vec<u64> {
    let mut taken = Vec::new();
    machine
        .mmu
        .harvest_dirty(id, |gfn| taken.push(gfn.get()))
        .expect("a slot that logs");
    taken
}

#[test]
fn each_write_is_in_the_harvest_after_it() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let (mut machine, id) = start(&quiet(engine, 2), SlotFlags::LOG_DIRTY);
        let va = at(0, 1);
        for round in 0..3 {
            for cpu in 0..2 {
                if round == 1 {
                    let _ = machine.access(cpu, va, USER_READ);
                }
                assert_eq!(machine.access(cpu, va, USER_WRITE), reached(100, va));
            }
            assert!(harvest(&machine, id).contains(&100), "{engine:?} {round}");
        }
        let _ = machine.access(0, va, USER_READ);
        assert!(!harvest(&machine, id).contains(&100), "{engine:?}");
    }
}

#[test]
fn a_write_through_a_large_leaf_marks_all_its_frames() {
    let (mut machine, id) = start(&quiet(Engine::Shadow, 1), SlotFlags::LOG_DIRTY);
    machine.poke(slot(DIRECTORY, 2), entry(512, PAGE | PS));
    let _ = machine.access(0, at(2, 3), USER_WRITE);
    // No fault tells of this one if the leaf is large.
    let _ = machine.access(0, at(2, 200), USER_WRITE);
    let taken = harvest(&machine, id);
    assert!(taken.contains(&(512 + 3)) && taken.contains(&(512 + 200)));
}

#[test]
fn a_harvest_leaves_the_marks_of_the_neighbouring_slot() {
    let mut machine = Machine::new(&quiet(Engine::Shadow, 1));
    let first = machine.add_slot(0, 300, RAM, SlotFlags::LOG_DIRTY);
    let second = machine.add_slot(300, 300, RAM + 300, SlotFlags::LOG_DIRTY);
    vmmu_tests::guest::map_tree(&mut machine);
    machine.poke(slot(LEAVES, 1), entry(100, PAGE));
    machine.poke(slot(LEAVES, 2), entry(310, PAGE));
    machine.set_state(0, vmmu_tests::guest::long4(vmmu_tests::guest::ROOT));
    let _ = machine.access(0, at(0, 1), USER_WRITE);
    let _ = machine.access(0, at(0, 2), USER_WRITE);
    assert!(harvest(&machine, first).contains(&100));
    assert!(harvest(&machine, second).contains(&310));
}

#[test]
fn an_entry_gains_rights_without_losing_what_the_processor_sets() {
    // The machine's tables refuse a plain store over a present entry.
    let (mut machine, _) = start(&quiet(Engine::Shadow, 1), SlotFlags::LOG_DIRTY);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    assert_eq!(machine.access(0, va, USER_WRITE), reached(100, va));
}
