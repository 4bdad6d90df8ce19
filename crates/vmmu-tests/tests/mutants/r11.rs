//! R11: errors leave no trace.

use vmmu::{Engine, Error, SlotFlags};
use vmmu_tests::guest::{P, PAGE, TABLE, U, USER_READ, WRITE, entry, slot, window};
use vmmu_tests::machine::Seen;

use crate::stage::{DIRECTORY, OTHER, at, audit, guest, quiet, reached, start, stats};

#[test]
fn a_leaf_without_room_in_the_reverse_map_is_no_leaf() {
    // The first mapping of each region, and the second one of each frame, need room.
    let mut machine = guest(1);
    for i in 1..40 {
        machine.poke(slot(OTHER, i), entry(100, PAGE));
        let va = at(1, i);
        assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
        audit(&machine);
    }
}

#[test]
fn a_page_without_a_table_goes_back() {
    let mut machine = guest(1);
    let va = at(0, 1);
    // The root exists; three more tables are needed.
    for k in 1..=3 {
        machine.host.fail_table(k);
        let seen = machine.access(0, va, USER_READ);
        assert_eq!(seen, Seen::Failed(Error::OutOfTables));
        assert_eq!(stats(&machine).pages, machine.host.tables());
        machine.host.fail_table(0);
        let _ = machine.mmu.zap_all();
    }
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
}

#[test]
fn a_table_whose_pages_do_not_all_fit_on_the_list_takes_no_place() {
    let mut setup = quiet(Engine::Shadow, 1);
    setup.config.unsync_limit = 1;
    let (mut machine, _) = start(&setup, SlotFlags::empty());
    // One table with two pages, one with one.
    machine.poke(slot(DIRECTORY, 1), entry(OTHER, TABLE));
    machine.poke(slot(DIRECTORY, 2), entry(OTHER, P | U));
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let single = OTHER + 1;
    machine.poke(slot(DIRECTORY, 3), entry(single, TABLE));
    machine.poke(slot(single, 1), entry(102, PAGE));
    for directory in 1..=3 {
        let _ = machine.access(0, at(directory, 1), USER_READ);
    }
    for _ in 0..4 {
        let seen = machine.write(0, window(slot(OTHER, 2)), 0, WRITE);
        assert!(matches!(seen, Seen::Emulated(_)), "{seen:?}");
    }
    crate::stage::write_unseen(&mut machine, 0, slot(single, 2), 0);
}
