//! R7: a flush that is owed is paid before anything is promised, and reaches every processor.

use vmmu::TlbFlush;
use vmmu::addr::{Gfn, Gva};
use vmmu::host::VcpuId;
use vmmu_tests::guest::{
    PAGE, READ, ROOT, TABLE, USER_READ, WRITE, entry, map_window, slot, window,
};
use vmmu_tests::machine::Seen;

use crate::stage::{LEAVES, OTHER, Other, Ran, at, guest, on_kick, reached};

#[test]
fn a_frame_that_is_taken_back_is_in_no_tlb() {
    let mut machine = guest(2);
    let va = at(0, 1);
    for cpu in 0..2 {
        assert_eq!(machine.access(cpu, va, READ), reached(100, va));
    }
    // One processor is in its guest then, one is not.
    machine.host.exit(1);
    machine.take_back(100, 1);
    for cpu in 0..2 {
        assert!(matches!(machine.access(cpu, va, READ), Seen::Memory(_)));
    }
}

#[test]
fn a_table_that_is_protected_is_writable_in_no_tlb() {
    let mut machine = guest(2);
    for cpu in 0..2 {
        let _ = machine.write(cpu, window(slot(OTHER, 1)), entry(101, PAGE), WRITE);
    }
    let va = at(1, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
    let _ = machine.write(1, window(slot(OTHER, 1)), entry(102, PAGE), WRITE);
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(102, va));
}

#[test]
fn who_finds_nothing_waits_for_the_flush_of_who_removed_it() {
    let mut machine = guest(2);
    for cpu in 0..2 {
        let _ = machine.access(cpu, at(0, 1), READ);
    }
    let (other, ran) = (Other::of(&machine), Ran::default());
    let count = ran.clone();
    on_kick(&machine, move |kicked| {
        if count.count() == 0 {
            // A second one takes the same frame back, before anybody has left the guest.
            drop(other.mmu.invalidate_begin(Gfn::new(100), 1));
            count.attempt(|| {
                assert!(!other.host.is_inside(0) && !other.host.is_inside(1));
            });
        }
        other.exit(kicked);
    });
    drop(machine.mmu.invalidate_begin(Gfn::new(100), 1));
    ran.done(&machine);
}

#[test]
fn a_flush_waits_for_a_processor_though_the_first_kick_is_lost() {
    let mut machine = guest(1);
    let _ = machine.access(0, at(0, 1), READ);
    let (other, ran) = (Other::of(&machine), Ran::default());
    let count = ran.clone();
    on_kick(&machine, move |kicked| {
        if count.count() == 1 {
            other.exit(kicked);
        }
    });
    let invalidation = machine.mmu.invalidate_begin(Gfn::new(100), 1);
    assert!(!machine.host.is_inside(0));
    drop(invalidation);
    ran.done(&machine);
}

#[test]
fn a_flush_ends_though_the_processor_is_back_in_its_guest() {
    let mut machine = guest(1);
    let _ = machine.access(0, at(0, 1), READ);
    let (other, ran) = (Other::of(&machine), Ran::default());
    let count = ran.clone();
    on_kick(&machine, move |kicked| {
        other.exit(kicked);
        if count.count() > 2 {
            count.attempt(|| panic!("kicked again after it has left and entered"));
            return;
        }
        let entry = other.mmu.vcpu(VcpuId(kicked)).expect("a vCPU").enter();
        count.attempt(|| assert!(entry.expect("a root").flush));
        other.host.entered(usize::from(kicked));
    });
    drop(machine.mmu.invalidate_begin(Gfn::new(100), 1));
    ran.done(&machine);
}

#[test]
fn another_root_has_another_tlb() {
    let mut machine = guest(1);
    let second = 60;
    for level in 0..3 {
        machine.poke(slot(second + level, 0), entry(second + level + 1, TABLE));
    }
    machine.poke(slot(second + 3, 1), entry(300, PAGE));
    map_window(&mut machine, second);
    let va = at(0, 1);
    for _ in 0..2 {
        machine.load_cr3(0, ROOT << 12);
        assert_eq!(machine.access(0, va, READ), reached(100, va));
        machine.load_cr3(0, second << 12);
        assert_eq!(machine.access(0, va, READ), reached(300, va));
    }
}

#[test]
fn invlpg_flushes_the_own_tlb() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, READ);
    machine.host.exit(0);
    let vcpu = machine.mmu.vcpu(VcpuId(0)).expect("a vCPU");
    vcpu.invalidate(TlbFlush::Address(Gva::new(va)))
        .expect("INVLPG");
    assert!(vcpu.enter().expect("a root").flush);
    vcpu.exited();
    assert_eq!(machine.peek(slot(LEAVES, 1)), entry(100, PAGE));
}
