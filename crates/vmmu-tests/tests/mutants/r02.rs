//! R2: guest entries change behind one's back; each is read once, and again before something is built on it.

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use vmmu::addr::{Gpa, Gva};
use vmmu::host::VcpuId;
use vmmu::walk::{AccessKind, Privilege};
use vmmu::{Engine, SlotFlags};
use vmmu_tests::guest::{A, PAGE, TABLE, USER_READ, USER_WRITE, entry, slot};
use vmmu_tests::host::Hooks;
use vmmu_tests::machine::{Seen, Setup};

use crate::stage::{
    DIRECTORY, FRAMES, LEAVES, OTHER, READ_PAGE, at, at_look_up, guest, quiet, reached, start,
    write_unseen,
};

#[test]
fn a_leaf_follows_from_the_entry_as_it_is_when_it_is_installed() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let ran = at_look_up(&machine, 100, |other| {
        other.store(slot(LEAVES, 1), entry(101, PAGE));
        other.mmu.guest_wrote(Gpa::new(slot(LEAVES, 1)), 8);
    });
    let other = crate::stage::Other::of(&machine);
    let _ = other.fault(0, va, AccessKind::Read);
    ran.done(&machine);
    machine.poke(slot(LEAVES, 1), entry(101, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn a_link_follows_from_the_entry_as_it_is_when_it_is_made() {
    let mut machine = guest(1);
    let va = at(0, 1);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    // There are records already, so that the fault does not start over for want of them.
    let _ = machine.access(0, at(1, 1), USER_READ);
    machine.host.exit(0);
    let ran = at_look_up(&machine, 100, |other| {
        other.store(slot(DIRECTORY, 0), entry(OTHER, TABLE | A));
        other.mmu.guest_wrote(Gpa::new(slot(DIRECTORY, 0)), 8);
    });
    let other = crate::stage::Other::of(&machine);
    let _ = other.fault(0, va, AccessKind::Read);
    ran.done(&machine);
    machine.poke(slot(DIRECTORY, 0), entry(OTHER, TABLE | A));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn a_neighbour_follows_from_the_entry_as_it_is_when_it_is_installed() {
    let (mut machine, _) = start(&Setup::new(Engine::Shadow, 1), SlotFlags::empty());
    for i in 2..6 {
        machine.poke(slot(LEAVES, i), entry(100 + i, PAGE));
    }
    let ran = at_look_up(&machine, 103, |other| {
        other.store(slot(LEAVES, 3), entry(200, PAGE));
        other.mmu.guest_wrote(Gpa::new(slot(LEAVES, 3)), 8);
    });
    let other = crate::stage::Other::of(&machine);
    let _ = other.fault(0, at(0, 1), AccessKind::Read);
    ran.done(&machine);
    machine.poke(slot(LEAVES, 3), entry(200, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, at(0, 3), USER_READ), reached(200, 0));
}

#[test]
fn a_neighbour_is_looked_up_in_the_slot_that_has_it() {
    let (mut machine, _) = start(&Setup::new(Engine::Shadow, 1), SlotFlags::empty());
    machine.add_slot(FRAMES, 16, 0x9000, SlotFlags::empty());
    machine.poke(slot(LEAVES, 2), entry(102, PAGE));
    machine.poke(slot(LEAVES, 3), entry(FRAMES + 1, PAGE));
    // There are records of the region already, so that nothing keeps the neighbour from being mapped.
    machine.poke(slot(OTHER, 1), entry(FRAMES + 2, PAGE));
    let _ = machine.access(0, at(1, 1), USER_READ);
    let _ = machine.access(0, at(0, 1), USER_READ);
    let seen = machine.access(0, at(0, 3), USER_READ);
    assert_eq!(seen, Seen::Memory(vmmu_cpu::Hpa::new(0x9001 << 12)));
}

#[test]
fn a_walk_reads_each_entry_once() {
    let machine = guest(1);
    let reads = Arc::new(AtomicU32::new(0));
    let count = reads.clone();
    machine.host.set_hooks(Hooks {
        gpte: Some(Arc::new(move |gpa| {
            if gpa == slot(DIRECTORY, 0) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        })),
        ..Hooks::default()
    });
    let vcpu = machine.mmu.vcpu(VcpuId(0)).expect("a vCPU");
    let privilege = Privilege::new(3, vmmu::paging::Rflags::empty());
    let walk = vcpu.translate(Gva::new(at(0, 1)), AccessKind::Read, privilege);
    assert!(matches!(walk, Ok(Ok(_))));
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[test]
fn the_copy_of_a_dense_table_follows_what_was_installed() {
    let mut machine = guest(1);
    for i in 1..80 {
        machine.poke(slot(LEAVES, i), entry(100 + i, PAGE));
        let _ = machine.access(0, at(0, i), USER_READ);
    }
    // A sync makes the copy, in which entry 5 is empty; then the entry is used, and emptied again.
    let (to, va) = (slot(LEAVES, 5), at(0, 5));
    write_unseen(&mut machine, 0, to, 0);
    machine.flush(0);
    for gfn in [300, 301] {
        write_unseen(&mut machine, 0, to, entry(gfn, PAGE));
        machine.flush(0);
        assert_eq!(machine.access(0, va, USER_READ), reached(gfn, va));
        write_unseen(&mut machine, 0, to, 0);
        machine.flush(0);
        let seen = machine.access(0, va, USER_READ);
        assert!(matches!(seen, Seen::PageFault(_)), "{seen:?}");
    }
}

#[test]
fn an_access_to_a_device_leaves_nothing_of_an_earlier_mapping() {
    let (mut machine, _) = start(&quiet(Engine::Shadow, 1), SlotFlags::empty());
    machine.poke(slot(LEAVES, 1), entry(100, READ_PAGE));
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    // Nobody reports that the entry names a device now; a write finds out.
    machine.poke_unseen(slot(LEAVES, 1), entry(0x10_0000, READ_PAGE));
    assert!(matches!(
        machine.access(0, va, USER_WRITE),
        Seen::Device(..)
    ));
    let seen = machine.access(0, va, USER_READ);
    assert!(matches!(seen, Seen::Device(..)), "{seen:?}");
}
