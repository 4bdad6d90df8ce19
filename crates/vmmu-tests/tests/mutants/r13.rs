//! R13: the guest's accessed and dirty bits are guest memory: stored in time, logged, and never in a frame that is not the guest's to write.

use vmmu::addr::Gfn;
use vmmu::walk::AccessKind;
use vmmu::{Engine, FaultOutcome, SlotFlags};
use vmmu_tests::guest::{A, D, P, PAGE, TABLE, U, USER_READ, USER_WRITE, W, entry, slot};
use vmmu_tests::machine::{Seen, Setup};

use crate::stage::{DIRECTORY, FRAMES, LEAVES, Other, READ_PAGE, at, guest, quiet, reached, start};

#[test]
fn no_bit_is_stored_in_a_frame_that_is_being_taken_back() {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 1), entry(100, P | W | U));
    let invalidation = machine.mmu.invalidate_begin(Gfn::new(LEAVES), 1);
    let outcome = Other::of(&machine).fault(0, at(0, 1), AccessKind::Read);
    assert_eq!(outcome, FaultOutcome::Retry);
    assert_eq!(machine.peek(slot(LEAVES, 1)), entry(100, P | W | U));
    drop(invalidation);
    assert_eq!(machine.access(0, at(0, 1), USER_READ), reached(100, 0));
}

#[test]
fn no_bit_is_stored_in_read_only_memory() {
    let mut machine = guest(1);
    machine.add_slot(FRAMES, 16, 0x9000, SlotFlags::READ_ONLY);
    machine.poke(slot(DIRECTORY, 3), entry(FRAMES, TABLE | A));
    machine.poke(slot(FRAMES, 1), entry(100, P | W | U));
    assert_eq!(machine.access(0, at(3, 1), USER_READ), reached(100, 0));
    assert_eq!(machine.peek(slot(FRAMES, 1)), entry(100, P | W | U));
}

#[test]
fn a_table_in_which_bits_are_stored_is_logged() {
    let (mut machine, id) = start(&quiet(Engine::Shadow, 1), SlotFlags::LOG_DIRTY);
    machine.poke(slot(LEAVES, 1), entry(100, P | W | U));
    let _ = machine.mmu.harvest_dirty(id, |_| {});
    assert_eq!(machine.access(0, at(0, 1), USER_READ), reached(100, 0));
    let mut taken = Vec::new();
    machine
        .mmu
        .harvest_dirty(id, |gfn| taken.push(gfn.get()))
        .expect("a slot that logs");
    assert!(taken.contains(&LEAVES), "{taken:?}");
}

#[test]
fn a_page_is_dirty_when_it_is_written_after_it_was_read() {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 1), entry(100, READ_PAGE));
    let _ = machine.access(0, at(0, 1), USER_READ);
    let _ = machine.access(0, at(0, 1), USER_WRITE);
    assert_ne!(machine.peek(slot(LEAVES, 1)) & D, 0);
}

#[test]
fn a_neighbour_is_dirty_when_it_is_written() {
    let (mut machine, _) = start(&Setup::new(Engine::Shadow, 1), SlotFlags::empty());
    machine.poke(slot(LEAVES, 2), entry(102, READ_PAGE));
    let _ = machine.access(0, at(0, 1), USER_READ);
    let _ = machine.access(0, at(0, 2), USER_WRITE);
    assert_ne!(machine.peek(slot(LEAVES, 2)) & D, 0);
}

#[test]
fn a_neighbour_is_accessed_when_it_is_read() {
    let (mut machine, _) = start(&Setup::new(Engine::Shadow, 1), SlotFlags::empty());
    machine.poke(slot(LEAVES, 2), entry(102, P | W | U));
    let _ = machine.access(0, at(0, 1), USER_READ);
    let _ = machine.access(0, at(0, 2), USER_READ);
    assert_ne!(machine.peek(slot(LEAVES, 2)) & A, 0);
}

#[test]
fn an_accessed_bit_that_the_guest_clears_is_set_again() {
    let mut machine = guest(1);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    machine.emulated_write(slot(LEAVES, 1), entry(100, PAGE & !A));
    machine.invlpg(0, va);
    assert!(matches!(machine.access(0, va, USER_READ), Seen::Memory(_)));
    assert_ne!(machine.peek(slot(LEAVES, 1)) & A, 0);
}
