//! When A and D are stored, and when not (AMD APM vol. 2, section 5.4.2; Intel SDM vol. 3, section 4.8).

use super::guest::{ALL, Memory, ROOT, bits32, fault, level4, level5, pae, walk};
use crate::addr::{Gva, Level};
use crate::paging::PagingState;
use crate::walk::{Access, Gpte, GpteWidth, Walk, WalkFailure, Walker};

/// P, R/W and U/S.
const FRESH: u64 = 0x7;
const A: u64 = 0x20;
const D: u64 = 0x40;

/// Maps address 0 to frame 0x9 by fresh entries in four tables.
fn fresh() -> Memory {
    let memory = Memory::default();
    memory.put(ROOT, 0x2000 | FRESH);
    memory.put(0x2000, 0x3000 | FRESH);
    memory.put(0x3000, 0x4000 | FRESH);
    memory.put(0x4000, 0x9000 | FRESH);
    memory
}

#[test]
fn a_read_sets_a_from_the_root_down_and_no_d() {
    let memory = fresh();
    let walk = walk(level4(), &memory, 0, Access::READ).expect("mapped");
    assert_eq!(
        memory.stores(),
        [
            (ROOT, 0x2000 | FRESH | A),
            (0x2000, 0x3000 | FRESH | A),
            (0x3000, 0x4000 | FRESH | A),
            (0x4000, 0x9000 | FRESH | A)
        ]
    );
    assert!(!walk.is_dirty());
    assert!(walk.leaf().has(Gpte::ACCESSED));
    assert!(
        walk.records()
            .all(|record| record.gpte.raw() == memory.get8(record.at.get()))
    );
}

#[test]
fn a_write_sets_d_in_the_leaf_only_and_with_a_at_once() {
    let memory = fresh();
    let walk = walk(level4(), &memory, 0, Access::WRITE).expect("mapped");
    assert_eq!(
        memory.stores().last(),
        Some(&(0x4000, 0x9000 | FRESH | A | D))
    );
    assert_eq!(memory.get8(0x3000) & D, 0);
    assert!(walk.is_dirty());
}

#[test]
fn bits_that_are_set_are_not_stored_again() {
    let memory = fresh();
    for access in [Access::WRITE, Access::WRITE, Access::READ, Access::FETCH] {
        walk(level4(), &memory, 0, access).expect("mapped");
    }
    assert_eq!(memory.stores().len(), 4);
    memory.put(0x3000, 0x4000 | FRESH);
    walk(level4(), &memory, 0, Access::READ).expect("mapped");
    assert_eq!(memory.stores(), [(0x3000, 0x4000 | FRESH | A)]);
}

#[test]
fn a_large_leaf_is_marked_as_a_leaf() {
    for state in [level4(), level5(), pae()] {
        let memory = fresh();
        if state == level5() {
            memory.put(ROOT, 0x5000 | FRESH);
            memory.put(0x5000, 0x2000 | FRESH);
        }
        let pd = if state == pae() {
            memory.put(ROOT, 0x2001);
            0x2000
        } else {
            0x3000
        };
        memory.put(pd, 0x20_0000 | 0x80 | FRESH);
        assert!(
            walk(state, &memory, 0, Access::WRITE)
                .expect("mapped")
                .is_dirty()
        );
        assert_eq!(memory.get8(pd), 0x20_0000 | 0x80 | FRESH | A | D);
    }
}

#[test]
fn short_entries_are_exchanged_as_such() {
    let memory = Memory::default();
    memory.put4(ROOT, 0x2007);
    memory.put4(ROOT + 4, 0xdead_beef);
    memory.put4(0x2000, 0x9007);
    memory.put4(0x2004, 0xdead_beef);
    walk(bits32(), &memory, 0, Access::WRITE).expect("mapped");
    assert_eq!(memory.get(ROOT, GpteWidth::Bytes8), 0xdead_beef_0000_2027);
    assert_eq!(memory.get(0x2000, GpteWidth::Bytes8), 0xdead_beef_0000_9067);
}

#[test]
fn a_refused_access_stores_nothing() {
    let memory = fresh();
    memory.put(0x4000, 0x9000 | FRESH & !2);
    fault(level4(), &memory, 0, Access::WRITE);
    memory.put(0x4000, 0);
    fault(level4(), &memory, 0, Access::READ);
    memory.put(0x4000, 1 << 45 | FRESH);
    fault(level4(), &memory, 0, Access::READ);
    assert!(memory.stores().is_empty());
}

#[test]
fn a_lost_race_asks_for_another_walk() {
    let memory = fresh();
    memory.interfere.set(1 << 9);
    assert_eq!(
        walk(level4(), &memory, 0, Access::READ),
        Err(WalkFailure::Retry)
    );
    assert!(walk(level4(), &memory, 0, Access::READ).is_ok());
}

#[test]
fn in_read_only_memory_the_walk_goes_on_without() {
    let memory = fresh();
    memory.read_only.set(true);
    assert!(
        !walk(level4(), &memory, 0, Access::READ)
            .expect("mapped")
            .is_dirty()
    );
    assert!(
        walk(level4(), &memory, 0, Access::WRITE)
            .expect("mapped")
            .is_dirty(),
        "no later fault could record it"
    );
    assert!(memory.stores().is_empty());
}

#[test]
fn a_probe_stores_nothing_and_answers_alike() {
    let memory = fresh();
    let mut probed = Walk::new();
    let walker = Walker::new(level4());
    walker
        .probe(&memory, Gva::new(0x123), Access::WRITE, &mut probed)
        .expect("mapped");
    assert!(memory.stores().is_empty());
    assert!(!probed.is_dirty());
    assert_eq!(probed.gpa().get(), 0x9123);
}

#[test]
fn a_failed_walk_keeps_its_course() {
    let memory = fresh();
    memory.put(0x3000, 0);
    let walker = Walker::new(level4());
    let mut course = Walk::new();
    walker
        .walk_into(&memory, Gva::new(0), Access::READ, &mut course)
        .expect_err("not present");
    assert_eq!(
        course
            .records()
            .map(|record| record.level)
            .collect::<alloc::vec::Vec<_>>(),
        [Level::L4, Level::L3, Level::L2]
    );
    memory.put(0x3000, 0x40_0000 | ALL);
    walker
        .walk_into(&memory, Gva::new(0), Access::READ, &mut course)
        .expect_err("outside memory");
    assert_eq!(course.records().count(), 3);
    assert!(
        walker
            .walk_into(&memory, Gva::new(1 << 50), Access::READ, &mut course)
            .is_err()
    );
    assert_eq!(course.records().count(), 0);
}

#[test]
fn a_new_state_brings_new_tables() {
    let memory = fresh();
    memory.put(0x4000, 1 << 63 | 0x9000 | ALL);
    let mut walker = Walker::new(level4());
    assert!(walker.walk(&memory, Gva::new(0), Access::READ).is_ok());
    let no_nx = PagingState {
        efer: level4().efer - crate::paging::Efer::NXE,
        ..level4()
    };
    walker.set_state(no_nx);
    assert!(walker.walk(&memory, Gva::new(0), Access::READ).is_err());
    walker.set_state(level4());
    walker.set_cr3(crate::paging::Cr3::new(0x8000), None);
    assert!(walker.walk(&memory, Gva::new(0), Access::READ).is_err());
}
