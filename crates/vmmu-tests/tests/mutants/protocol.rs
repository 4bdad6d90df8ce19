//! What processors promise each other: invalidation by the host, sync, epochs, reports.

use vmmu::addr::{Gfn, Gpa, Level};
use vmmu::host::VcpuId;
use vmmu::paging::Cr0;
use vmmu::walk::AccessKind;
use vmmu::{Engine, Event, FaultOutcome, ForeignWrites, SlotFlags};
use vmmu_tests::guest::{
    A, NX, P, PAGE, PS, READ, ROOT, TABLE, U, USER_READ, W, entry, long4, map_window, slot, window,
};
use vmmu_tests::machine::Seen;

use crate::stage::{
    DIRECTORY, LEAVES, OTHER, Other, TOKEN, at, at_kick, at_look_up, guest, quiet, reached, start,
    write_unseen,
};

#[test]
fn a_frame_is_not_mapped_while_it_is_being_taken_back() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let invalidation = machine.mmu.invalidate_begin(Gfn::new(100), 1);
    let outcome = Other::of(&machine).fault(0, va, AccessKind::Read);
    assert_eq!(outcome, FaultOutcome::Retry);
    drop(invalidation);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
}

#[test]
fn a_frame_that_was_taken_back_since_its_look_up_is_looked_up_again() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let (mut machine, _) = start(&quiet(engine, 1), SlotFlags::empty());
        machine.host.limit_size(Some(Level::L1));
        // There are records already, so that the fault does not start over for want of them.
        machine.poke(slot(OTHER, 1), entry(101, PAGE));
        let _ = machine.access(0, at(1, 1), READ);
        let ran = at_look_up(&machine, 100, |other| {
            let invalidation = other.mmu.invalidate_begin(Gfn::new(100), 1);
            other.host.move_frame(&[(TOKEN, 100)]);
            drop(invalidation);
        });
        // The judge knows where the frame is now.
        let seen = machine.access(0, at(0, 1), READ);
        assert!(matches!(seen, Seen::Memory(_)), "{engine:?}: {seen:?}");
        ran.done(&machine);
    }
}

#[test]
fn a_frame_is_not_mapped_again_while_its_flush_is_under_way() {
    for engine in [Engine::Shadow, Engine::Npt] {
        let (mut machine, _) = start(&quiet(engine, 1), SlotFlags::empty());
        let va = at(0, 1);
        assert_eq!(machine.access(0, va, READ), reached(100, va));
        let ran = at_kick(&machine, 0, move |other| {
            let outcome = if engine == Engine::Shadow {
                other.fault(0, va, AccessKind::Read)
            } else {
                let vcpu = other.mmu.vcpu(VcpuId(0)).expect("a vCPU");
                let gpa = Gpa::new(100 << 12);
                vcpu.handle_nested_fault(gpa, AccessKind::Read)
                    .expect("a fault")
            };
            assert_eq!(outcome, FaultOutcome::Retry, "{engine:?}");
        });
        machine.take_back(100, 1);
        ran.done(&machine);
        assert!(matches!(machine.access(0, va, READ), Seen::Memory(_)));
    }
}

#[test]
fn a_frame_is_taken_back_from_large_leaves() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let (mut machine, _) = start(&quiet(engine, 1), SlotFlags::empty());
        machine.poke(slot(DIRECTORY, 2), entry(512, PAGE | PS));
        let va = at(2, 7);
        assert_eq!(machine.access(0, va, USER_READ), reached(512 + 7, va));
        machine.take_back(512 + 7, 1);
        assert!(matches!(machine.access(0, va, READ), Seen::Memory(_)));
    }
}

#[test]
fn invlpg_finds_what_the_guest_wrote_unseen() {
    for foreign_writes in [ForeignWrites::SeenEarly, ForeignWrites::ReportedFirst] {
        let mut setup = quiet(Engine::Shadow, 1);
        setup.config.foreign_writes = foreign_writes;
        setup.config.unsync_level = Level::L4;
        let (mut machine, _) = start(&setup, SlotFlags::empty());
        let va = at(0, 1);
        assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
        write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(101, PAGE));
        machine.invlpg(0, va);
        assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
        // The same above level 1: another table with another page.
        machine.poke(slot(OTHER, 1), entry(102, PAGE));
        write_unseen(&mut machine, 0, slot(DIRECTORY, 0), entry(OTHER, TABLE));
        machine.invlpg(0, va);
        assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
    }
}

#[test]
fn invlpg_finds_what_the_guest_wrote_to_its_root() {
    const SECOND: u64 = 41;
    let mut setup = quiet(Engine::Shadow, 2);
    setup.config.foreign_writes = ForeignWrites::ReportedFirst;
    setup.config.unsync_level = Level::L4;
    let (mut machine, _) = start(&setup, SlotFlags::empty());
    map_window(&mut machine, SECOND);
    machine.poke(slot(SECOND, 0), entry(ROOT + 1, TABLE));
    for table in SECOND + 1..SECOND + 3 {
        machine.poke(slot(table, 0), entry(table + 1, TABLE));
    }
    machine.poke(slot(SECOND + 3, 1), entry(103, PAGE));
    machine.set_state(1, long4(SECOND));
    let va = at(0, 1);
    assert_eq!(machine.access(1, va, USER_READ), reached(100, va));
    write_unseen(&mut machine, 1, slot(SECOND, 0), entry(SECOND + 1, TABLE));
    // Another processor's root load takes the root, which nothing links, off the list.
    machine.flush(0);
    machine.invlpg(1, va);
    assert_eq!(machine.access(1, va, USER_READ), reached(103, va));
}

#[test]
fn a_root_load_finds_what_the_guest_wrote_unseen() {
    let mut machine = guest(1);
    let va = at(0, 1);
    for gfn in [101, 102, 100] {
        let _ = machine.access(0, va, USER_READ);
        write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(gfn, PAGE));
        machine.load_cr3(0, ROOT << 12);
        assert_eq!(machine.access(0, va, USER_READ), reached(gfn, va));
    }
}

#[test]
fn a_page_that_is_left_unsync_is_compared_at_every_root_load() {
    let mut setup = quiet(Engine::Shadow, 1);
    setup.config.unsync_patience = 1;
    let (mut machine, _) = start(&setup, SlotFlags::empty());
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(101, PAGE));
    let unsyncs = machine.mmu.stats().get(Event::Unsync);
    // The table changes before each load, then it doesn't, and then it does again.
    for (load, frame) in [101, 102, 103, 103, 103, 104, 105].into_iter().enumerate() {
        write_unseen(&mut machine, 0, slot(LEAVES, 1), entry(frame, PAGE));
        machine.flush(0);
        assert_eq!(machine.access(0, va, USER_READ), reached(frame, va));
        machine.audit();
        if load < 3 {
            assert_eq!(machine.mmu.stats().get(Event::Unsync), unsyncs);
        }
    }
}

#[test]
fn a_page_that_becomes_unsync_while_it_is_cleaned_is_not_clean() {
    let mut machine = guest(2);
    let va = at(0, 1);
    for cpu in 0..2 {
        let _ = machine.access(cpu, va, USER_READ);
    }
    write_unseen(&mut machine, 1, slot(LEAVES, 1), entry(101, PAGE));
    // Processor 0 cleans the page; in the wait for the flush processor 1 writes the table once more.
    let ran = at_kick(&machine, 1, |other| {
        for _ in 0..4 {
            let to = window(slot(LEAVES, 1));
            if other.fault(1, to, AccessKind::Write) == FaultOutcome::Resume {
                return;
            }
        }
        panic!("the table does not become unsync");
    });
    machine.flush(0);
    ran.done(&machine);
    write_unseen(&mut machine, 1, slot(LEAVES, 1), entry(102, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
}

#[test]
fn a_second_root_load_does_not_rely_on_the_first_that_is_not_done() {
    let mut machine = guest(2);
    let va = at(0, 1);
    for cpu in 0..2 {
        let _ = machine.access(cpu, va, READ);
    }
    write_unseen(&mut machine, 1, slot(LEAVES, 1), entry(101, PAGE));
    let root = machine.cpus[1].cpu.registers().cr3.get();
    let ran = at_kick(&machine, 1, move |other| {
        let vcpu = other.mmu.vcpu(VcpuId(1)).expect("a vCPU");
        vcpu.invalidate(vmmu::TlbFlush::All).expect("a flush");
        let (found, level) = other.shadow(root, va);
        let stale = (crate::stage::RAM + 100) << 12;
        assert_ne!(found & 0xf_ffff_f000, stale, "{level:?}: {found:#x}");
    });
    machine.flush(0);
    ran.done(&machine);
}

#[test]
fn an_unsync_during_a_root_load_is_seen_by_the_next() {
    let mut machine = guest(2);
    machine.poke(slot(OTHER, 1), entry(111, PAGE));
    for cpu in 0..2 {
        let _ = machine.access(cpu, at(0, 1), READ);
        let _ = machine.access(cpu, at(1, 1), READ);
    }
    write_unseen(&mut machine, 1, slot(LEAVES, 1), entry(101, PAGE));
    let ran = at_kick(&machine, 1, |other| {
        for _ in 0..4 {
            let to = window(slot(OTHER, 1));
            if other.fault(1, to, AccessKind::Write) == FaultOutcome::Resume {
                return;
            }
        }
        panic!("the table does not become unsync");
    });
    machine.flush(0);
    ran.done(&machine);
    write_unseen(&mut machine, 1, slot(OTHER, 1), entry(112, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, at(1, 1), USER_READ), reached(112, 0));
}

#[test]
fn a_tree_that_is_linked_late_is_as_clean_as_if_it_was_loaded() {
    let mut machine = guest(2);
    let second = 60;
    machine.poke(slot(second, 0), entry(ROOT + 1, TABLE));
    map_window(&mut machine, second);
    let va = at(0, 1);
    // Processor 1 uses the tree below another root; processor 0 does not have it yet.
    machine.load_cr3(1, second << 12);
    machine.poke(slot(ROOT, 0), 0);
    machine.poke(slot(LEAVES, 2), entry(102, PAGE));
    machine.flush(0);
    let _ = machine.access(0, window(0), READ);
    for i in 1..=2 {
        let _ = machine.access(1, at(0, i), USER_READ);
    }
    write_unseen(&mut machine, 1, slot(LEAVES, 1), entry(101, PAGE));
    machine.emulated_write(slot(ROOT, 0), entry(ROOT + 1, TABLE));
    // The fault that links the tree is about another page.
    assert_eq!(machine.access(0, at(0, 2), USER_READ), reached(102, 0));
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn a_report_looks_at_every_entry_that_was_written() {
    let mut machine = guest(1);
    machine.poke(slot(ROOT, 1), entry(ROOT + 1, TABLE));
    let va = |i: u64| i << 39 | at(0, 1);
    for i in 0..2 {
        assert_eq!(machine.access(0, va(i), USER_READ), reached(100, 0));
    }
    // A second tree, put in by one store of 16 bytes; a root that is loaded stays a table however it is written.
    for level in 1..3 {
        machine.poke(slot(60 + level, 0), entry(60 + level + 1, TABLE));
    }
    machine.poke(slot(63, 1), entry(300, PAGE));
    for i in 0..2 {
        machine.poke(slot(ROOT, i), entry(61, TABLE));
    }
    machine.mmu.guest_wrote(Gpa::new(slot(ROOT, 0)), 16);
    machine.flush(0);
    for i in 0..2 {
        assert_eq!(machine.access(0, va(i), USER_READ), reached(300, 0));
    }
}

#[test]
fn a_report_visits_every_page_of_a_table() {
    let mut machine = guest(1);
    machine.poke(slot(OTHER, 1), entry(101, PAGE));
    let tables = [0, W, U, W | U, NX, NX | W, NX | U, NX | W | U];
    for (i, flags) in (1..).zip(tables) {
        machine.poke(slot(DIRECTORY, i), entry(OTHER, P | A | flags));
    }
    // Eight ways to the table under each value of WP: sixteen pages.
    let mut loose = long4(ROOT);
    loose.cr0.remove(Cr0::WP);
    let states = [long4(ROOT), loose];
    for state in states {
        machine.set_state(0, state);
        for i in 1..=8 {
            assert_eq!(machine.access(0, at(i, 1), READ), reached(101, 0));
        }
    }
    machine.emulated_write(slot(OTHER, 1), entry(102, PAGE));
    for state in states {
        machine.set_state(0, state);
        for i in 1..=8 {
            assert_eq!(machine.access(0, at(i, 1), READ), reached(102, 0));
        }
    }
}
