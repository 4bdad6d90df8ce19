//! R13: the guest's accessed and dirty bits are guest memory: stored in time, logged, and never in a frame that is not the guest's to write.

use vmmu::addr::{Gfn, Level};
use vmmu::paging::Cr0;
use vmmu::walk::AccessKind;
use vmmu::{Engine, FaultOutcome, SlotFlags};
use vmmu_tests::guest::{
    A, D, P, PAGE, READ, ROOT, TABLE, U, USER_READ, USER_WRITE, W, WRITE, entry, long4, slot,
};
use vmmu_tests::machine::{Machine, Seen, Setup};

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

/// A bit of an entry: a huge page.
const HUGE: u64 = 1 << 7;

/// A guest with CR0.WP = 0, its huge pages split, and such pages of the same 2 MiB at entries 2 and 3 of its directory, the first read-only and dirty.
fn two_huge_pages(second: u64) -> Machine {
    let mut setup = quiet(Engine::Shadow, 1);
    setup.config.largest_leaf = Level::L1;
    let (mut machine, _) = start(&setup, SlotFlags::empty());
    let mut state = long4(ROOT);
    state.cr0.remove(Cr0::WP);
    machine.set_state(0, state);
    machine.poke(slot(DIRECTORY, 2), entry(512, P | U | A | D | HUGE));
    machine.poke(slot(DIRECTORY, 3), entry(512, second | HUGE));
    machine
}

#[test]
fn a_huge_page_that_the_kernel_writes_without_wp_is_dirty_again_after_the_guest_cleared_that() {
    let mut machine = two_huge_pages(P | U | A);
    let va = at(2, 5);
    assert_eq!(machine.access(0, va, WRITE), reached(517, va));
    machine.emulated_write(slot(DIRECTORY, 2), entry(512, P | U | A | HUGE));
    machine.invlpg(0, va);
    assert_eq!(machine.access(0, va, READ), reached(517, va));
    assert_eq!(machine.access(0, va, WRITE), reached(517, va));
    assert_ne!(machine.peek(slot(DIRECTORY, 2)) & D, 0);
}

#[test]
fn a_huge_page_does_not_use_the_writable_entries_of_one_that_is_dirty() {
    for second in [P | U | A, P | W | U | A] {
        let mut machine = two_huge_pages(second);
        let (dirty, other) = (at(2, 5), at(3, 5));
        let neighbour = at(3, 6);
        assert_eq!(machine.access(0, neighbour, READ), reached(518, neighbour));
        assert_eq!(machine.access(0, dirty, WRITE), reached(517, dirty));
        assert_eq!(machine.access(0, other, WRITE), reached(517, other));
        assert_ne!(machine.peek(slot(DIRECTORY, 3)) & D, 0, "{second:#x}");
        machine
            .mmu
            .audit(vmmu::Strictness::Exact)
            .expect("the rules hold");
    }
}
