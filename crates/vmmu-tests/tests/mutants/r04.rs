//! R4: a child is checked when it is linked; a role says what a page holds, and never whether it lives.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use vmmu::FaultOutcome;
use vmmu::addr::{Gfn, Level};
use vmmu::host::{BackedFrame, VcpuId};
use vmmu::paging::Cr0;
use vmmu::walk::AccessKind;
use vmmu_tests::guest::{
    A, D, P, PAGE, PS, READ, ROOT, TABLE, USER_READ, WRITE, entry, long4, slot,
};
use vmmu_tests::host::Hooks;
use vmmu_tests::machine::Seen;

use crate::stage::{DIRECTORY, LEAVES, OTHER, Other, Ran, at, audit, guest, reached, write_unseen};

#[test]
fn a_link_is_followed_to_the_page_that_the_walk_demands_only() {
    let mut machine = guest(1);
    machine.poke(slot(DIRECTORY, 1), entry(LEAVES, TABLE));
    machine.poke(slot(OTHER, 7), entry(107, PAGE));
    let _ = machine.access(0, at(0, 1), USER_READ);
    let _ = machine.access(0, at(1, 1), USER_READ);
    machine.poke_unseen(slot(DIRECTORY, 1), entry(OTHER, TABLE));
    assert_eq!(machine.access(0, at(1, 7), USER_READ), reached(107, 0));
    // The first table has nothing there.
    let seen = machine.access(0, at(0, 7), USER_READ);
    assert!(matches!(seen, Seen::PageFault(_)), "{seen:?}");
    machine.report(DIRECTORY);
    audit(&machine);
}

#[test]
fn a_link_goes_when_the_entry_leads_elsewhere() {
    let mut machine = guest(1);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    machine.emulated_write(slot(DIRECTORY, 0), entry(OTHER, TABLE | A));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn a_page_that_was_unlinked_unsync_is_clean_when_it_is_linked_again() {
    let mut machine = guest(1);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let va = at(1, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
    write_unseen(&mut machine, 0, slot(OTHER, 1), entry(102, PAGE));
    machine.emulated_write(slot(DIRECTORY, 1), 0);
    machine.flush(0);
    machine.emulated_write(slot(DIRECTORY, 1), entry(OTHER, TABLE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
    audit(&machine);
}

#[test]
fn a_split_huge_page_and_a_table_in_its_first_frame_are_two_pages() {
    let mut machine = guest(1);
    machine.poke(slot(DIRECTORY, 2), entry(512, PAGE | PS));
    machine.poke(slot(DIRECTORY, 3), entry(512, TABLE));
    machine.poke(slot(512, 5), entry(105, PAGE));
    for va in [at(3, 5), at(2, 5), at(3, 5)] {
        let gfn = if va == at(3, 5) { 105 } else { 512 + 5 };
        machine.flush(0);
        assert_eq!(machine.access(0, va, READ), reached(gfn, va));
    }
    audit(&machine);
}

#[test]
fn pages_of_another_mode_are_other_pages() {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 1), entry(100, P | A | D));
    let va = at(0, 1);
    let mut loose = long4(ROOT);
    loose.cr0.remove(Cr0::WP);
    machine.set_state(0, loose);
    assert_eq!(machine.access(0, va, WRITE), reached(100, va));
    machine.set_state(0, long4(ROOT));
    let seen = machine.access(0, va, WRITE);
    assert!(matches!(seen, Seen::PageFault(_)), "{seen:?}");
}

#[test]
fn a_dead_page_is_not_found_again() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    machine.host.exit(0);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(LEAVES)), 1);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(LEAVES)), 0);
    let outcome = Other::of(&machine).fault(0, va, AccessKind::Read);
    assert_eq!(outcome, FaultOutcome::Resume);
    audit(&machine);
}

#[test]
fn no_dead_page_is_hashed() {
    let mut machine = guest(1);
    let _ = machine.access(0, at(0, 1), USER_READ);
    assert_eq!(machine.mmu.zap_all(), 4);
    audit(&machine);
}

#[test]
fn a_dead_page_has_no_parents() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(LEAVES)), 1);
    audit(&machine);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
}

#[test]
fn a_page_that_dies_before_it_is_linked_is_not_linked() {
    let mut machine = guest(2);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let va = at(0, 1);
    for cpu in 0..2 {
        let _ = machine.access(cpu, va, READ);
    }
    let root = machine.cpus[0].cpu.registers().cr3.get();
    // A flush is under way when processor 0 makes a page for the other table; cleaning it waits for the flush, and in that wait the page dies. Then the
    // fault starts over, looks the frame up again, and the directory must not lead to the dead page.
    let looked = Arc::new(AtomicBool::new(false));
    let seen = looked.clone();
    let (ran, died) = (Ran::default(), Arc::new(AtomicBool::new(false)));
    let (other, count, dies) = (Other::of(&machine), ran.clone(), died.clone());
    let kick = move |kicked: VcpuId| {
        other.exit(kicked.0);
        match (kicked.0, count.count()) {
            (0, 0) => drop(other.fault(0, at(1, 1), AccessKind::Read)),
            (1, 1) => {
                dies.store(true, Ordering::SeqCst);
                let zapped = other.mmu.zap_frame(Gfn::new(OTHER));
                count.attempt(|| assert_eq!(zapped, 1));
            }
            _ => {}
        }
    };
    let (other, count) = (Other::of(&machine), ran.clone());
    let looked_up = move |frame: BackedFrame| {
        if frame.gfn.get() == 101 && died.swap(false, Ordering::SeqCst) {
            let (found, level) = other.shadow(root, at(1, 1));
            count.attempt(|| assert_eq!((found, level), (0, Level::L2), "leads to a dead page"));
            looked.store(true, Ordering::SeqCst);
        }
    };
    machine.host.set_hooks(Hooks {
        kick: Some(Arc::new(kick)),
        looked_up: Some(Arc::new(looked_up)),
        ..Hooks::default()
    });
    machine.emulated_write(slot(LEAVES, 1), entry(103, PAGE));
    ran.done(&machine);
    assert!(seen.load(Ordering::SeqCst), "the fault did not start over");
}

#[test]
fn a_root_that_died_is_chosen_anew() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    machine.host.exit(0);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(ROOT)), 1);
    let outcome = Other::of(&machine).fault(0, va, AccessKind::Read);
    assert_eq!(outcome, FaultOutcome::Resume);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
}
