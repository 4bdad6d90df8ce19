//! R1: what an entry maps is recorded, not recomputed.

use vmmu_tests::guest::{PAGE, USER_READ, USER_WRITE, entry, slot};

use crate::stage::{LEAVES, at, audit, guest, reached, write_unseen};

#[test]
fn a_removal_finds_the_frame_that_was_mapped() {
    let mut machine = guest(1);
    let va = at(0, 1);
    for gfn in [100, 300, 101, 100] {
        // The guest's entry names the next frame already when the old one is removed.
        machine.emulated_write(slot(LEAVES, 1), entry(gfn, PAGE));
        machine.flush(0);
        assert_eq!(machine.access(0, va, USER_READ), reached(gfn, va));
        audit(&machine);
    }
}

#[test]
fn a_slot_that_is_used_again_has_the_record_of_its_last_mapping() {
    let mut machine = guest(1);
    let va = at(0, 1);
    for gfn in [100, 300] {
        machine.emulated_write(slot(LEAVES, 1), entry(gfn, PAGE));
        machine.flush(0);
        let _ = machine.access(0, va, USER_READ);
    }
    machine.take_back(300, 1);
    audit(&machine);
    assert!(matches!(
        machine.access(0, va, USER_WRITE),
        vmmu_tests::machine::Seen::Memory(_)
    ));
}

#[test]
fn what_is_present_is_in_the_presence_bits() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(101, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}
