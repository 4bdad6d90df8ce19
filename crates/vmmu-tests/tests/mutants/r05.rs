//! R5: frame records belong to the VM: they serve all address spaces and outlive slots. Slot edges limit large pages.

use vmmu::{AddressSpace, Engine, SlotFlags};
use vmmu_cpu::Hpa;
use vmmu_tests::guest::{
    PAGE, PS, READ, ROOT, USER_READ, USER_WRITE, WRITE, entry, long4, map_tree, slot, window,
};
use vmmu_tests::machine::{Machine, Seen};

use crate::stage::{DIRECTORY, FRAMES, LEAVES, RAM, at, audit, guest, quiet, reached, start};

#[test]
fn a_table_is_tracked_in_every_address_space() {
    let mut machine = guest(2);
    machine.add_slot_in(
        AddressSpace::SystemManagement,
        0,
        FRAMES,
        RAM,
        SlotFlags::empty(),
    );
    machine.set_space(1, AddressSpace::SystemManagement);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    let _ = machine.access(1, va, USER_READ);
    let _ = machine.write(1, window(slot(LEAVES, 1)), entry(101, PAGE), WRITE);
    audit(&machine);
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn records_outlive_their_slot() {
    let mut machine = Machine::new(&quiet(Engine::Shadow, 1));
    machine.add_slot(0, 300, RAM, SlotFlags::empty());
    let neighbour = machine.add_slot(300, 300, RAM + 300, SlotFlags::empty());
    map_tree(&mut machine);
    machine.poke(slot(LEAVES, 1), entry(100, PAGE));
    machine.set_state(0, long4(ROOT));
    assert_eq!(machine.access(0, at(0, 1), USER_READ), reached(100, 0));
    machine.remove_slot(neighbour);
    audit(&machine);
}

#[test]
fn a_large_leaf_stays_within_its_slot() {
    let mut machine = guest(1);
    let base = 4096;
    machine.add_slot(base, 100, 0xa000, SlotFlags::empty());
    machine.poke(slot(DIRECTORY, 2), entry(base, PAGE | PS));
    let inside = machine.access(0, at(2, 3), USER_READ);
    assert_eq!(inside, Seen::Memory(Hpa::new(0xa003 << 12)));
    let beyond = machine.access(0, at(2, 100), USER_READ);
    assert!(matches!(beyond, Seen::Device(..)), "{beyond:?}");
}

#[test]
fn address_spaces_have_pages_of_their_own() {
    let mut machine = guest(2);
    let hidden = 0xc000;
    machine.add_slot_in(
        AddressSpace::SystemManagement,
        0,
        FRAMES,
        hidden,
        SlotFlags::empty(),
    );
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, READ), reached(100, va));
    for table in [ROOT, ROOT + 1, ROOT + 2, ROOT + 3] {
        for index in 0..2 {
            let value = machine.peek(slot(table, index));
            let there = Hpa::new((hidden << 12) + slot(table, index));
            machine.host.memory.store(there, value);
        }
    }
    machine.set_space(1, AddressSpace::SystemManagement);
    let seen = machine.access(1, va, READ);
    assert_eq!(seen, Seen::Memory(Hpa::new((hidden + 100) << 12)));
    assert_eq!(machine.access(0, va, READ), reached(100, va));
}

#[test]
fn frames_are_taken_back_from_every_address_space() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let (mut machine, _) = start(&quiet(engine, 2), SlotFlags::empty());
        machine.add_slot_in(
            AddressSpace::SystemManagement,
            0,
            FRAMES,
            RAM,
            SlotFlags::empty(),
        );
        machine.set_space(1, AddressSpace::SystemManagement);
        let va = at(0, 1);
        for cpu in 0..2 {
            let _ = machine.access(cpu, va, USER_WRITE);
        }
        machine.take_back(100, 1);
        for cpu in 0..2 {
            // The judge knows where the frame is now.
            let seen = machine.access(cpu, va, USER_READ);
            assert!(matches!(seen, Seen::Memory(_)), "{engine:?}: {seen:?}");
        }
    }
}

#[test]
fn a_slot_that_is_removed_is_mapped_nowhere() {
    for engine in [Engine::Shadow, Engine::Npt] {
        let (mut machine, _) = start(&quiet(engine, 1), SlotFlags::empty());
        let id = machine.add_slot(FRAMES, 16, 0x9000, SlotFlags::empty());
        machine.poke(slot(LEAVES, 2), entry(FRAMES + 2, PAGE));
        let seen = machine.access(0, at(0, 2), USER_READ);
        assert_eq!(seen, Seen::Memory(Hpa::new(0x9002 << 12)));
        machine.remove_slot(id);
        let seen = machine.access(0, at(0, 2), USER_READ);
        assert!(matches!(seen, Seen::Device(..)), "{engine:?}: {seen:?}");
    }
}
