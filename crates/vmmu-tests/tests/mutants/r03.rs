//! R3: a present entry is never overwritten, and a slot is used again only when its last mapping is flushed.
//!
//! The machine's tables refuse a store over a present entry.

use vmmu::FaultOutcome;
use vmmu::walk::AccessKind;
use vmmu_tests::guest::{PAGE, READ, TABLE, USER_READ, USER_WRITE, entry, slot};

use crate::stage::{DIRECTORY, LEAVES, OTHER, READ_PAGE, at, at_kick, audit, guest, reached};

#[test]
fn a_leaf_of_another_frame_is_removed_first() {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 1), entry(100, READ_PAGE));
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    machine.poke_unseen(slot(LEAVES, 1), entry(101, READ_PAGE));
    assert_eq!(machine.access(0, va, USER_WRITE), reached(101, va));
    machine.report(LEAVES);
    audit(&machine);
}

#[test]
fn a_link_to_another_page_is_removed_first() {
    let mut machine = guest(1);
    machine.poke(slot(OTHER, 2), entry(102, PAGE));
    let _ = machine.access(0, at(0, 1), USER_READ);
    machine.poke_unseen(slot(DIRECTORY, 0), entry(OTHER, TABLE));
    assert_eq!(machine.access(0, at(0, 2), USER_READ), reached(102, 0));
    machine.report(DIRECTORY);
    audit(&machine);
}

#[test]
fn a_leaf_waits_for_the_flush_of_what_its_slot_mapped() {
    let mut machine = guest(2);
    let va = at(0, 1);
    for cpu in 0..2 {
        assert_eq!(machine.access(cpu, va, READ), reached(100, va));
    }
    // The entry is removed, its flush is under way: processor 1 still runs with it when processor 0 faults.
    let ran = at_kick(&machine, 0, move |other| {
        let mapped = other.fault(0, va, AccessKind::Read) == FaultOutcome::Resume;
        assert!(
            !mapped || !other.host.is_inside(1),
            "two frames in one slot"
        );
    });
    machine.emulated_write(slot(LEAVES, 1), entry(101, PAGE));
    ran.done(&machine);
}

#[test]
fn a_link_waits_for_the_flush_of_what_its_slot_linked() {
    let mut machine = guest(2);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let va = at(0, 1);
    for cpu in 0..2 {
        assert_eq!(machine.access(cpu, va, READ), reached(100, va));
        // The other table has a clean page, which nothing has to be done for.
        let _ = machine.access(cpu, at(1, 1), READ);
    }
    let ran = at_kick(&machine, 0, move |other| {
        let mapped = other.fault(0, va, AccessKind::Read) == FaultOutcome::Resume;
        assert!(
            !mapped || !other.host.is_inside(1),
            "two tables in one slot"
        );
    });
    machine.emulated_write(slot(DIRECTORY, 0), entry(OTHER, TABLE));
    ran.done(&machine);
}
