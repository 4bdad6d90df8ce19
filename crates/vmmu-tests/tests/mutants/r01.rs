//! R1: what an entry maps is recorded, not recomputed.

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use vmmu::addr::{Gfn, Gpa, Index, Pfn};
use vmmu_cpu::Hpa;
use vmmu_tests::guest::{PAGE, USER_READ, USER_WRITE, entry, slot};

use vmmu_tests::host::Hooks;

use crate::stage::{LEAVES, Other, at, audit, guest, reached, write_unseen};

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

#[test]
fn an_entry_that_is_removed_by_its_frame_meanwhile_is_not_removed_again() {
    let va = at(0, 1);
    // While a report removes the entry, the host takes the frame back: after the report's first look at the entry, or its second. The third look has the
    // lock of the frame.
    for moment in 0..2 {
        let mut machine = guest(1);
        assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
        machine.host.exit(0);
        let looks = Arc::new(AtomicU32::new(0));
        let other = Other::of(&machine);
        let (leaf, _) = other.shadow(machine.cpus[0].cpu.registers().cr3.get(), va);
        let hook = move |(table, index): (Pfn, Index)| {
            let at = Hpa::new((table.get() << 12) + index.get() as u64 * 8);
            if other.host.memory.load(at) == leaf && looks.fetch_add(1, Ordering::SeqCst) == moment
            {
                drop(other.mmu.invalidate_begin(Gfn::new(100), 1));
            }
        };
        machine.host.set_hooks(Hooks {
            entry: Some(Arc::new(hook)),
            ..Hooks::default()
        });
        machine.poke(slot(LEAVES, 1), entry(101, PAGE));
        machine.mmu.guest_wrote(Gpa::new(slot(LEAVES, 1)), 8);
        machine.host.set_hooks(Hooks::default());
        audit(&machine);
        machine.flush(0);
        assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
    }
}
