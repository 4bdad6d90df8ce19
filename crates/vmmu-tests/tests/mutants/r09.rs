//! R9: rights only narrow on the way from the guest's entries, the slot and the host to an entry.

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use vmmu::paging::{Cr0, Cr4};
use vmmu::{Engine, SlotFlags};
use vmmu_spec::Access;
use vmmu_tests::guest::{
    A, D, FETCH, NX, P, PAGE, ROOT, TABLE, U, USER_FETCH, USER_READ, USER_WRITE, W, WRITE, entry,
    long4, slot,
};
use vmmu_tests::host::Hooks;
use vmmu_tests::machine::{Machine, Seen, Setup};

use crate::stage::{DIRECTORY, FRAMES, LEAVES, OTHER, TOKEN, at, guest, quiet, reached, start};

fn refused(machine: &mut Machine, va: u64, access: Access) {
    let seen = machine.access(0, va, access);
    assert!(matches!(seen, Seen::PageFault(_)), "{access:?}: {seen:?}");
}

#[test]
fn two_ways_to_a_table_with_different_rights_are_two_pages() {
    let mut machine = guest(1);
    machine.poke(slot(DIRECTORY, 2), entry(OTHER, P | U));
    machine.poke(slot(DIRECTORY, 3), entry(OTHER, P | W));
    machine.poke(slot(DIRECTORY, 4), entry(OTHER, TABLE | NX));
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let va = at(1, 1);
    for access in [USER_READ, USER_WRITE, USER_FETCH] {
        assert_eq!(machine.access(0, va, access), reached(101, va));
    }
    assert_eq!(machine.access(0, at(2, 1), USER_READ), reached(101, va));
    refused(&mut machine, at(2, 1), USER_WRITE);
    refused(&mut machine, at(3, 1), USER_READ);
    assert_eq!(machine.access(0, at(4, 1), USER_READ), reached(101, va));
    refused(&mut machine, at(4, 1), USER_FETCH);
}

#[test]
fn rights_that_the_guest_takes_are_gone_after_its_flush() {
    for (flags, access) in [
        (P | W | A | D, USER_READ),
        (P | U | A | D, USER_WRITE),
        (PAGE | NX, USER_FETCH),
    ] {
        for unseen in [false, true] {
            let mut machine = guest(1);
            let va = at(0, 1);
            for all in [USER_READ, USER_WRITE, USER_FETCH] {
                assert_eq!(machine.access(0, va, all), reached(100, va));
            }
            let to = (slot(LEAVES, 1), entry(100, flags));
            if unseen {
                crate::stage::write_unseen(&mut machine, 0, to.0, to.1);
            } else {
                machine.emulated_write(to.0, to.1);
            }
            machine.invlpg(0, va);
            refused(&mut machine, va, access);
        }
    }
}

/// A guest with a page at `at(0, 2)` in a read-only slot.
fn with_rom(setup: &Setup) -> Machine {
    let (mut machine, _) = start(setup, SlotFlags::empty());
    machine.add_slot(FRAMES, 16, 0x9000, SlotFlags::READ_ONLY);
    machine.poke(slot(LEAVES, 2), entry(FRAMES + 1, PAGE));
    machine
}

#[test]
fn a_read_only_slot_is_not_written() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = with_rom(&quiet(engine, 1));
        let seen = machine.access(0, at(0, 2), USER_READ);
        assert!(matches!(seen, Seen::Memory(_)));
        let seen = machine.access(0, at(0, 2), USER_WRITE);
        assert!(matches!(seen, Seen::Device(..)), "{engine:?}: {seen:?}");
    }
}

#[test]
fn a_neighbour_in_a_read_only_slot_is_not_written() {
    let mut machine = with_rom(&Setup::new(Engine::Shadow, 1));
    // There are records of the region already, so that nothing keeps the neighbour from being mapped.
    machine.poke(slot(OTHER, 1), entry(FRAMES + 2, PAGE));
    let _ = machine.access(0, at(1, 1), USER_READ);
    let _ = machine.access(0, at(0, 1), USER_READ);
    let seen = machine.access(0, at(0, 2), USER_WRITE);
    assert!(matches!(seen, Seen::Device(..)), "{seen:?}");
}

#[test]
fn a_frame_that_the_host_shares_is_asked_for_before_it_is_written() {
    for engine in [Engine::Shadow, Engine::Npt] {
        let (mut machine, _) = start(&quiet(engine, 1), SlotFlags::empty());
        machine.host.share(TOKEN, 100);
        let va = at(0, 1);
        assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        machine.host.set_hooks(Hooks {
            look_up: Some(Arc::new(move |frame: vmmu::host::BackedFrame| {
                if frame.gfn.get() == 100 {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            })),
            ..Hooks::default()
        });
        assert_eq!(machine.access(0, va, USER_WRITE), reached(100, va));
        assert_ne!(asked.load(Ordering::SeqCst), 0, "{engine:?}");
    }
}

/// A guest with CR0.WP = 0 and a read-only user page.
fn loose(cr4: Cr4) -> Machine {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 1), entry(100, P | U | A | D));
    let mut state = long4(ROOT);
    state.cr0.remove(Cr0::WP);
    state.cr4 |= cr4;
    machine.set_state(0, state);
    machine
}

#[test]
fn what_the_kernel_writes_without_wp_users_do_not() {
    let va = at(0, 1);
    for read_first in [false, true] {
        let mut machine = loose(Cr4::empty());
        if read_first {
            assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
        }
        assert_eq!(machine.access(0, va, WRITE), reached(100, va));
        refused(&mut machine, va, USER_WRITE);
        assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
        refused(&mut machine, va, USER_WRITE);
    }
}

#[test]
fn what_the_kernel_writes_without_wp_it_does_not_execute_under_smep() {
    let va = at(0, 1);
    let mut machine = loose(Cr4::SMEP);
    assert_eq!(machine.access(0, va, WRITE), reached(100, va));
    refused(&mut machine, va, FETCH);
}
