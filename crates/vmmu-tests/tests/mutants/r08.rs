//! R8: a table is freed after the flush, after the calls that may know it, and after the processors that have it loaded.

use vmmu::addr::Gfn;
use vmmu::walk::AccessKind;
use vmmu::{Engine, SlotFlags};
use vmmu_tests::guest::{PAGE, READ, ROOT, TABLE, USER_READ, entry, slot};
use vmmu_tests::machine::Seen;

use crate::stage::{
    DIRECTORY, LEAVES, Other, at, at_kick, at_look_up, audit, guest, quiet, reached, start,
};

#[test]
fn a_table_is_not_freed_before_the_flush() {
    let mut machine = guest(1);
    let _ = machine.access(0, at(0, 1), READ);
    let ran = at_kick(&machine, 0, |other| {
        assert_eq!(other.host.take_table_frees(), [] as [u64; 0]);
    });
    assert_eq!(machine.mmu.zap_frame(Gfn::new(LEAVES)), 1);
    ran.done(&machine);
    assert_eq!(machine.host.take_table_frees().len(), 1);
}

#[test]
fn a_table_is_not_freed_while_a_call_may_know_it() {
    let mut machine = guest(1);
    machine.poke(slot(LEAVES, 2), entry(102, PAGE));
    let _ = machine.access(0, at(0, 1), READ);
    machine.host.exit(0);
    let ran = at_look_up(&machine, 102, |other| {
        assert_eq!(other.mmu.zap_frame(Gfn::new(LEAVES)), 1);
        assert_eq!(other.mmu.zap_frame(Gfn::new(LEAVES)), 0);
        assert_eq!(other.host.take_table_frees(), [] as [u64; 0]);
    });
    let _ = Other::of(&machine).fault(0, at(0, 2), AccessKind::Read);
    ran.done(&machine);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(LEAVES)), 1);
    assert_eq!(machine.host.take_table_frees().len(), 2);
}

#[test]
fn a_root_is_not_freed_while_a_processor_has_it_loaded() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, READ);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(ROOT)), 1);
    assert_eq!(machine.host.take_table_frees(), [] as [u64; 0]);
    assert_eq!(machine.access(0, va, READ), reached(100, va));
    let _ = machine.mmu.zap_frame(Gfn::new(LEAVES));
    assert_eq!(machine.host.take_table_frees().len(), 2);
}

/// Makes a machine with as few nested tables as there may be, and addresses that need branches of three of them each.
fn nested_at_the_limit(vcpus: u16) -> vmmu_tests::machine::Machine {
    let mut setup = quiet(Engine::Npt, vcpus);
    setup.config.max_pages = setup.config.smallest_limit();
    let (mut machine, _) = start(&setup, SlotFlags::empty());
    for i in 1..8 {
        machine.add_slot(i << 27, 16, 0x9000 + 16 * i, SlotFlags::empty());
        machine.poke(slot(LEAVES, 10 + i), entry(i << 27, PAGE));
    }
    machine
}

#[test]
fn a_nested_table_leaves_the_tree_before_it_is_given_back() {
    let mut machine = nested_at_the_limit(1);
    for i in [1, 2, 3, 4, 5, 1] {
        let seen = machine.access(0, at(0, 10 + i), USER_READ);
        assert!(matches!(seen, Seen::Memory(_)), "{seen:?}");
        audit(&machine);
    }
}

#[test]
fn a_nested_table_is_not_given_back_before_the_flush() {
    let mut machine = nested_at_the_limit(2);
    let _ = machine.access(1, at(0, 11), USER_READ);
    let _ = machine.host.take_table_frees();
    let ran = at_kick(&machine, 1, |other| {
        assert_eq!(other.host.take_table_frees(), [] as [u64; 0]);
    });
    for i in 2..8 {
        let _ = machine.access(0, at(0, 10 + i), USER_READ);
    }
    ran.done(&machine);
    assert_ne!(machine.host.take_table_frees(), [] as [u64; 0]);
}

#[test]
fn reclaim_spares_loaded_roots() {
    let mut setup = quiet(Engine::Shadow, 2);
    setup.config.max_pages = 16;
    let (mut machine, _) = start(&setup, SlotFlags::empty());
    let second = 60;
    machine.poke(slot(second, 0), entry(ROOT + 1, TABLE));
    machine.load_cr3(1, second << 12);
    let root = |machine: &vmmu_tests::machine::Machine| {
        machine.host.exit(1);
        let vcpu = machine.vcpu(1);
        let entry = vcpu.enter().expect("a root");
        vcpu.exited();
        entry.root
    };
    let before = root(&machine);
    for i in 0..60 {
        let table = 200 + i;
        machine.poke(slot(DIRECTORY, 10 + i), entry(table, TABLE));
        machine.poke(slot(table, 1), entry(100, PAGE));
        let seen = machine.access(0, at(10 + i, 1), USER_READ);
        assert!(matches!(seen, Seen::Memory(_)), "{seen:?}");
    }
    assert_eq!(root(&machine), before);
}

#[test]
fn a_page_dies_empty() {
    let mut machine = guest(1);
    let va = at(0, 1);
    let _ = machine.access(0, va, READ);
    assert_eq!(machine.mmu.zap_frame(Gfn::new(LEAVES)), 1);
    audit(&machine);
    machine.take_back(100, 1);
    assert!(matches!(machine.access(0, va, READ), Seen::Memory(_)));
}
