//! R6: nothing writable maps the frame of a clean page, no TLB entry either; nothing large maps a region with tables.

use vmmu::addr::Gfn;
use vmmu::{Engine, Event, SlotFlags};
use vmmu_tests::guest::{
    P, PAGE, PS, READ, TABLE, U, USER_READ, USER_WRITE, WRITE, entry, slot, window,
};
use vmmu_tests::machine::Seen;

use crate::stage::{
    DIRECTORY, LEAVES, OTHER, at, at_kick, audit, guest, quiet, reached, start, stats, write_unseen,
};

#[test]
fn a_write_to_a_table_is_noticed() {
    let mut machine = guest(1);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    let _ = machine.write(0, window(slot(LEAVES, 1)), entry(101, PAGE), WRITE);
    audit(&machine);
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn a_write_to_a_table_that_was_read_is_noticed() {
    let mut machine = guest(1);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    let _ = machine.access(0, window(slot(LEAVES, 1)), READ);
    let _ = machine.write(0, window(slot(LEAVES, 1)), entry(101, PAGE), WRITE);
    audit(&machine);
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn a_frame_that_becomes_a_table_is_no_longer_writable_anywhere() {
    let mut machine = guest(2);
    // Both processors have it writable, in their TLBs too.
    for cpu in 0..2 {
        let seen = machine.write(cpu, window(slot(OTHER, 1)), entry(101, PAGE), WRITE);
        assert!(matches!(seen, Seen::Memory(_)));
    }
    let va = at(1, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
    audit(&machine);
    let _ = machine.write(1, window(slot(OTHER, 1)), entry(102, PAGE), WRITE);
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
}

#[test]
fn a_frame_that_becomes_a_table_loses_all_its_writable_mappings() {
    let mut machine = guest(1);
    for i in 10..50 {
        machine.poke(slot(LEAVES, i), entry(OTHER, PAGE));
        let _ = machine.access(0, at(0, i), USER_WRITE);
    }
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let _ = machine.access(0, at(1, 1), USER_READ);
    audit(&machine);
}

#[test]
fn a_table_is_not_covered_by_a_large_leaf() {
    let table = 600;
    for large_first in [true, false] {
        let mut machine = guest(1);
        machine.poke(slot(DIRECTORY, 2), entry(512, PAGE | PS));
        machine.poke(slot(DIRECTORY, 3), entry(table, TABLE));
        machine.poke(slot(table, 1), entry(101, PAGE));
        let va = at(3, 1);
        if large_first {
            let _ = machine.access(0, at(2, 0), USER_WRITE);
            assert_eq!(stats(&machine).get(Event::Leaf2M), 1);
        }
        assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
        let _ = machine.access(0, at(2, 0), USER_WRITE);
        audit(&machine);
        let through = at(2, table - 512) + 8;
        let _ = machine.write(0, through, entry(102, PAGE), USER_WRITE);
        machine.flush(0);
        assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
    }
}

#[test]
fn large_leaves_come_back_when_the_last_table_is_gone() {
    let table = 600;
    let mut machine = guest(1);
    machine.poke(slot(DIRECTORY, 2), entry(512, PAGE | PS));
    machine.poke(slot(DIRECTORY, 3), entry(table, TABLE));
    machine.poke(slot(table, 1), entry(101, PAGE));
    let _ = machine.access(0, at(3, 1), USER_READ);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(table)), 1);
    let _ = machine.access(0, at(2, 0), USER_READ);
    assert_eq!(stats(&machine).get(Event::Leaf2M), 1);
}

#[test]
fn a_frame_is_writable_again_when_its_pages_are_gone() {
    let mut machine = guest(1);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let _ = machine.access(0, at(1, 1), USER_READ);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(OTHER)), 1);
    audit(&machine);
    let unsyncs = stats(&machine).get(Event::Unsync);
    let seen = machine.write(0, window(slot(OTHER, 1)), 0, WRITE);
    assert!(matches!(seen, Seen::Memory(_)), "{seen:?}");
    assert_eq!(stats(&machine).get(Event::Unsync), unsyncs);
}

#[test]
fn a_page_that_is_unsync_is_synced() {
    let mut machine = guest(1);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(101, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn every_page_of_a_table_becomes_unsync() {
    let mut machine = guest(1);
    machine.poke(slot(DIRECTORY, 1), entry(OTHER, TABLE));
    machine.poke(slot(DIRECTORY, 2), entry(OTHER, P | U));
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    for directory in [1, 2] {
        let _ = machine.access(0, at(directory, 1), USER_READ);
    }
    write_unseen(&mut machine, 0, slot(OTHER, 1), entry(102, PAGE));
    machine.flush(0);
    for directory in [1, 2] {
        let va = at(directory, 1);
        assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
    }
}

#[test]
fn a_page_is_derived_when_no_tlb_can_write_its_table_any_more() {
    let (mut machine, _) = start(&quiet(Engine::Shadow, 2), SlotFlags::empty());
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    let _ = machine.access(1, va, USER_READ);
    write_unseen(&mut machine, 1, slot(LEAVES, 2), entry(101, PAGE));
    // Processor 0 cleans the page; until the flush reaches processor 1, that goes on writing through its TLB.
    let ran = at_kick(&machine, 1, |other| {
        other.store(slot(LEAVES, 1), entry(102, PAGE));
    });
    machine.flush(0);
    ran.done(&machine);
    machine.poke(slot(LEAVES, 1), entry(102, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
}
