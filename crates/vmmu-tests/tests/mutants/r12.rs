//! R12: the gate is open while a page may be hit by a write, and closes when the last is gone.

use vmmu::addr::Gfn;
use vmmu_tests::guest::{PAGE, ROOT, USER_READ, entry, slot};

use crate::stage::{DIRECTORY, LEAVES, at, at_kick, guest, reached};

#[test]
fn a_reported_write_is_heard() {
    let mut machine = guest(1);
    let va = at(0, 1);
    assert_eq!(machine.access(0, va, USER_READ), reached(100, va));
    assert!(machine.mmu.may_be_protected());
    machine.emulated_write(slot(LEAVES, 1), entry(101, PAGE));
    machine.flush(0);
    assert_eq!(machine.access(0, va, USER_READ), reached(101, va));
}

#[test]
fn the_gate_is_open_until_the_last_page_is_flushed() {
    let mut machine = guest(1);
    let _ = machine.access(0, at(0, 1), USER_READ);
    for table in [LEAVES, DIRECTORY, ROOT + 1] {
        assert_eq!(machine.mmu.zap_frame(Gfn::new(table)), 1);
    }
    machine.enter(0).expect("the root");
    let ran = at_kick(&machine, 0, |other| {
        assert!(other.mmu.may_be_protected());
    });
    assert_eq!(machine.mmu.zap_frame(Gfn::new(ROOT)), 1);
    ran.done(&machine);
}

#[test]
fn the_gate_closes_when_the_last_page_is_gone() {
    let mut machine = guest(1);
    let _ = machine.access(0, at(0, 1), USER_READ);
    assert_eq!(machine.mmu.zap_all(), 4);
    assert!(!machine.mmu.may_be_protected());
}
