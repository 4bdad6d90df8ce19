//! Scenarios D2, D4, D5, P1 and P2: dirty logging beside sync and late writers, and rights of other modes and other mappings.
//!
//! Each test names its scenario and the break of the library that it was seen to catch.
#![forbid(unsafe_code)]

#[path = "mutants/stage.rs"]
#[allow(dead_code, reason = "what tests begin with is shared")]
mod stage;

use vmmu::addr::Gfn;
use vmmu::paging::{Cr0, Cr4};
use vmmu::walk::AccessKind;
use vmmu::{Engine, FaultOutcome, SlotFlags, SlotId};
use vmmu_tests::guest::{
    A, D, FETCH, P, PAGE, PS, READ, ROOT, U, USER_FETCH, USER_READ, USER_WRITE, W, WRITE, entry,
    long4, slot,
};
use vmmu_tests::machine::{Machine, Seen};

use stage::{
    DIRECTORY, LEAVES, Other, TOKEN, at, at_kick, guest, quiet, reached, start, write_unseen,
};

fn harvest(machine: &Machine, id: SlotId) -> Vec<u64> {
    let mut taken = Vec::new();
    let visit = |gfn: Gfn| taken.push(gfn.get());
    machine.mmu.harvest_dirty(id, visit).expect("it logs");
    taken
}

/// D2: the guest makes a written page read-only in a table edited unseen, and flushes: sync narrows the entry, and the frame is in the log.
///
/// Caught: a leaf that becomes writable without a mark (`WritableUnmarked`).
#[test]
fn d2_a_frame_whose_entry_sync_narrows_stays_in_the_log() {
    let (mut machine, id) = start(&quiet(Engine::Shadow, 1), SlotFlags::LOG_DIRTY);
    let va = at(0, 1);
    let _ = machine.access(0, va, USER_READ);
    let _ = harvest(&machine, id);
    assert_eq!(machine.write(0, va, 1, USER_WRITE), reached(100, va));
    write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(100, PAGE & !W));
    machine.flush(0);
    let refused = machine.access(0, va, USER_WRITE);
    assert!(matches!(refused, Seen::PageFault(_)), "{refused:?}");
    let taken = harvest(&machine, id);
    assert!(taken.contains(&100), "{taken:?}");
    assert!(taken.contains(&LEAVES), "the table was written: {taken:?}");
}

/// D4: an entry of a written page is removed; before its flush has come the log is harvested, and another processor writes through its TLB once
/// more: the next harvest has the frame.
///
/// Caught: a flush that does not mark again what disappeared before it.
#[test]
fn d4_a_write_through_a_tlb_after_the_harvest_is_in_the_next_one() {
    let (mut machine, id) = start(&quiet(Engine::Shadow, 2), SlotFlags::LOG_DIRTY);
    let va = at(0, 1);
    assert_eq!(machine.write(1, va, 1, USER_WRITE), reached(100, va));
    machine.host.exit(0);
    let ran = at_kick(&machine, 1, move |other| {
        // vCPU 1 has left; what it wrote until then comes after this harvest of another thread.
        let taken = harvest_of(other, id);
        assert!(taken.contains(&100), "{taken:?}");
    });
    let _ = machine.mmu.zap_frame(Gfn::new(LEAVES));
    ran.done(&machine);
    let taken = harvest(&machine, id);
    assert!(taken.contains(&100), "{taken:?}");
}

fn harvest_of(other: &Other, id: SlotId) -> Vec<u64> {
    let mut taken = Vec::new();
    let visit = |gfn: Gfn| taken.push(gfn.get());
    other.mmu.harvest_dirty(id, visit).expect("it logs");
    taken
}

/// D5: accessed and dirty bits that the library sets in a table mark the table's own frame, at each level.
///
/// Caught: an update that is not logged (`MarkNotLogged`).
#[test]
fn d5_bits_stored_in_a_table_mark_its_frame() {
    let (mut machine, id) = start(&quiet(Engine::Shadow, 1), SlotFlags::LOG_DIRTY);
    machine.poke(slot(LEAVES, 1), entry(100, P | W | U));
    // The records of the region exist: a mark has where to go.
    machine.poke(slot(LEAVES, 2), entry(102, PAGE));
    let _ = machine.access(0, at(0, 2), READ);
    let _ = harvest(&machine, id);
    for (access, bit) in [(USER_READ, A), (USER_WRITE, D)] {
        assert_eq!(machine.access(0, at(0, 1), access), reached(100, 0));
        assert_ne!(machine.peek(slot(LEAVES, 1)) & bit, 0);
        let taken = harvest(&machine, id);
        assert!(taken.contains(&LEAVES), "{access:?}: {taken:?}");
    }
}

/// D5: while the table's frame is being taken back no bit is stored in it; afterwards the bit is in the new frame, and not in the old one.
///
/// Caught: an update in a frame that is being taken back (`MarkWhileTakenBack`).
#[test]
fn d5_no_bit_lands_in_a_frame_that_was_taken_back() {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 1), entry(100, P | W | U));
    let other = Other::of(&machine);
    let invalidation = machine.mmu.invalidate_begin(Gfn::new(LEAVES), 1);
    let outcome = other.fault(0, at(0, 1), AccessKind::Read);
    assert_eq!(outcome, FaultOutcome::Retry);
    assert_eq!(machine.peek(slot(LEAVES, 1)), entry(100, P | W | U));
    machine.host.move_frame(&[(TOKEN, LEAVES)]);
    drop(invalidation);
    // A store to the frame that is nobody's now would show as a stray, or as lost poison.
    assert_eq!(machine.access(0, at(0, 1), USER_READ), reached(100, 0));
    assert_ne!(machine.peek(slot(LEAVES, 1)) & A, 0);
    let old = vmmu_cpu::Hpa::new(((stage::RAM + LEAVES) << 12) + 8);
    assert_eq!(machine.host.memory.peek(old), vmmu_cpu::POISON);
}

/// P1: the kernel has written a read-only user page under CR0.WP = 0; then SMEP, SMAP or WP is set, and nothing made before grants what the
/// new mode forbids.
///
/// Caught: pages of one mode that serve another (`RoleWithoutRules`), and kernel leaves that users write or the kernel executes.
#[test]
fn p1_nothing_made_under_wp_0_serves_a_stricter_mode() {
    let mut loose = long4(ROOT);
    loose.cr0.remove(Cr0::WP);
    let strict = [
        (long4(ROOT).cr4, Cr0::WP, WRITE),
        (long4(ROOT).cr4 | Cr4::SMEP, Cr0::empty(), FETCH),
        (long4(ROOT).cr4 | Cr4::SMAP, Cr0::empty(), READ),
        (long4(ROOT).cr4, Cr0::empty(), USER_WRITE),
    ];
    for (cr4, cr0, refused) in strict {
        let mut machine = guest(1);
        machine.poke(slot(LEAVES, 1), entry(100, P | U | A | D));
        let va = at(0, 1);
        machine.set_state(0, loose);
        assert_eq!(machine.write(0, va, 1, WRITE), reached(100, va));
        assert_eq!(machine.access(0, va, USER_FETCH), reached(100, va));
        assert_eq!(machine.write(0, va, 2, WRITE), reached(100, va));
        let mut state = loose;
        state.cr4 = cr4;
        state.cr0 |= cr0;
        machine.set_state(0, state);
        if cr4.contains(Cr4::SMEP) {
            // What the kernel's write makes now must not let it execute either.
            assert_eq!(machine.write(0, va, 3, WRITE), reached(100, va));
        }
        let seen = machine.access(0, va, refused);
        assert!(matches!(seen, Seen::PageFault(_)), "{refused:?}: {seen:?}");
        assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    }
}

/// P2: a writable large page that nobody has written is split into read-only leaves; a first write makes one of them writable, and neither a
/// read-only mapping of the same frame nor a neighbour gains anything.
///
/// Caught: split pages that share a role with the table's (`RoleWithoutDirect`), and leaves without regard for the D bit (`FirstReadWritable`).
#[test]
fn p2_a_first_write_widens_no_other_mapping() {
    let (mut machine, _) = start(&quiet(Engine::Shadow, 1), SlotFlags::empty());
    machine.poke(slot(DIRECTORY, 2), entry(512, P | W | U | A | PS));
    machine.poke(slot(DIRECTORY, 3), entry(512, P | U | A | PS));
    machine.poke(slot(LEAVES, 3), entry(515, P | U | A));
    // A guest table in the same 2 MiB forbids a large leaf.
    machine.poke(slot(DIRECTORY, 4), entry(600, P | W | U));
    machine.poke(slot(600, 3), entry(515, P | U | A));
    let others = [at(3, 3), at(0, 3), at(4, 3)];
    for va in others.into_iter().chain([at(2, 3), at(2, 4)]) {
        let gfn = if va == at(2, 4) { 516 } else { 515 };
        assert_eq!(machine.access(0, va, USER_READ), reached(gfn, va));
    }
    assert_eq!(machine.peek(slot(DIRECTORY, 2)) & D, 0);
    assert_eq!(machine.write(0, at(2, 3), 7, USER_WRITE), reached(515, 0));
    assert_ne!(machine.peek(slot(DIRECTORY, 2)) & D, 0);
    for va in others {
        let seen = machine.access(0, va, USER_WRITE);
        assert!(matches!(seen, Seen::PageFault(_)), "{va:#x}: {seen:?}");
        assert_eq!(machine.access(0, va, USER_READ), reached(515, va));
    }
    assert_eq!(machine.peek(slot(LEAVES, 3)) & D, 0);
    assert_eq!(machine.peek(slot(600, 3)) & D, 0);
}
