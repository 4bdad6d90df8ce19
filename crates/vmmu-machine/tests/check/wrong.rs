//! Deliberately wrong translations: each is caught, with a report that says what it is.

use std::sync::Arc;

use vmmu::Engine;
use vmmu::host::VcpuId;
use vmmu_cpu::{Access, Policy};
use vmmu_machine::check::{Mismatch, Wrong};
use vmmu_tests::guest::{A, D, P, PAGE, U, W, entry, slot};

use crate::rig::{HOST, ROOT, Rig, Seen};

const CPU: VcpuId = VcpuId(0);
/// The address of the page that frame 101 is mapped at.
const VA: u64 = 0x1000;

fn shadow() -> Rig {
    Rig::new(Engine::Shadow, 1, Policy::KEEP)
}

/// Uses a page, and sees to it that the judge knows the tables' past from then on.
fn used(rig: &mut Rig, va: u64, access: Access) {
    rig.access(CPU, va, access).expect("nothing is wrong yet");
    rig.mov_cr3(CPU, ROOT);
    rig.access(CPU, va, access).expect("nothing is wrong yet");
}

/// Checks what a report says is wrong, and that a person finds in it what there is to know.
fn says(report: &Arc<Mismatch>, wrong: &Wrong, words: &[&str]) {
    let text = report.to_string();
    assert_eq!(&report.wrong, wrong, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
}

const WALKS: [&str; 3] = [
    "the guest's walk now",
    "the processor's walk now",
    "the TLB entry",
];

#[test]
fn a_translation_kept_over_invlpg_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_READ);
    rig.poke(slot(ROOT + 3, 1), entry(200, PAGE));
    let old = rig.access(CPU, VA, Access::USER_READ);
    old.expect("the old translation is right until it is flushed");
    rig.faults.keep_tlb = true;
    rig.invlpg(CPU, VA);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(&report, &Wrong::Frame { gpa: 101 << 12 }, &WALKS);
    says(
        &report,
        &Wrong::Frame { gpa: 101 << 12 },
        &["INVLPG of 0x1000", "0xc8000"],
    );
}

#[test]
fn a_translation_kept_over_a_load_of_cr3_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_READ);
    rig.write(slot(ROOT + 3, 1), 0);
    rig.faults.keep_tlb = true;
    rig.mov_cr3(CPU, ROOT);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(&report, &Wrong::Right { gpa: 101 << 12 }, &WALKS);
}

#[test]
fn a_frame_that_was_taken_back_and_is_used_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_READ);
    rig.faults.move_silently = true;
    rig.take_back(101);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(
        &report,
        &Wrong::Kept { frame: HOST + 101 },
        &["host changed gfn 0x65"],
    );
}

#[test]
fn a_table_that_maps_a_frame_that_was_taken_back_is_caught_without_a_tlb() {
    let mut rig = Rig::new(Engine::Shadow, 1, Policy::NONE);
    used(&mut rig, VA, Access::USER_READ);
    rig.faults.move_silently = true;
    rig.take_back(101);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    let hpa = (HOST + 101) << 12;
    says(&report, &Wrong::Foreign { hpa }, &["backs no guest frame"]);
}

#[test]
fn one_right_too_many_is_caught_before_it_is_used() {
    let mut rig = shadow();
    rig.poke(slot(ROOT + 3, 1), entry(101, P | U | A | D));
    used(&mut rig, VA, Access::USER_READ);
    let leaf = rig.shadow_leaf(CPU, VA);
    let value = rig.host.memory.peek(leaf);
    rig.host.memory.store(leaf, value | W | D);
    rig.drop_tlb(CPU);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(&report, &Wrong::Grants(Access::USER_WRITE), &["user write"]);
}

#[test]
fn a_use_of_a_right_that_the_guest_took_away_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_WRITE);
    rig.write(slot(ROOT + 3, 1), entry(101, P | U | A | D));
    rig.faults.keep_tlb = true;
    rig.invlpg(CPU, VA);
    let report = rig.access(CPU, VA, Access::USER_WRITE).unwrap_err();
    says(&report, &Wrong::Right { gpa: 101 << 12 }, &WALKS);
}

#[test]
fn a_write_that_leaves_no_dirty_bit_is_caught() {
    let mut rig = shadow();
    rig.poke(slot(ROOT + 3, 1), entry(101, P | W | U | A));
    used(&mut rig, VA, Access::USER_READ);
    let leaf = rig.shadow_leaf(CPU, VA);
    let value = rig.host.memory.peek(leaf);
    rig.host.memory.store(leaf, value | W | D);
    rig.drop_tlb(CPU);
    let report = rig.access(CPU, VA, Access::USER_WRITE).unwrap_err();
    let (entry, missing) = (slot(ROOT + 3, 1), D);
    says(
        &report,
        &Wrong::Bits { entry, missing },
        &["lacks its bits 0x40"],
    );
}

#[test]
fn an_entry_that_lets_writes_through_before_the_dirty_bit_is_caught_at_a_read() {
    let mut rig = shadow();
    rig.poke(slot(ROOT + 3, 1), entry(101, P | W | U | A));
    used(&mut rig, VA, Access::USER_READ);
    let leaf = rig.shadow_leaf(CPU, VA);
    let value = rig.host.memory.peek(leaf);
    rig.host.memory.store(leaf, value | W | D);
    rig.drop_tlb(CPU);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(&report, &Wrong::GrantsClean, &["dirty bit is clear"]);
}

#[test]
fn an_access_that_leaves_no_accessed_bit_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_READ);
    // The guest clears A and flushes, and the entry stays.
    rig.poke(slot(ROOT + 3, 1), entry(101, P | W | U));
    rig.faults.keep_tlb = true;
    rig.judge_flush(CPU);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    let (entry, missing) = (slot(ROOT + 3, 1), A);
    says(
        &report,
        &Wrong::Bits { entry, missing },
        &["lacks its bits 0x20"],
    );
}

#[test]
fn a_wrong_error_code_is_caught() {
    let mut rig = shadow();
    rig.poke(slot(ROOT + 3, 1), 0);
    used(&mut rig, 0, Access::USER_READ);
    let seen = rig
        .access(CPU, VA, Access::USER_WRITE)
        .expect("right so far");
    assert!(matches!(seen, Seen::Fault(_)));
    rig.faults.flip_code = 1;
    let report = rig.access(CPU, VA, Access::USER_WRITE).unwrap_err();
    says(
        &report,
        &Wrong::PageFault { code: 7 },
        &["code 0x7", "#PF, code 0x6"],
    );
}

#[test]
fn a_wrong_guest_frame_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_READ);
    let leaf = rig.shadow_leaf(CPU, VA);
    let value = rig.host.memory.peek(leaf);
    rig.host.memory.store(leaf, value + 0x1000);
    rig.drop_tlb(CPU);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(&report, &Wrong::Frame { gpa: 102 << 12 }, &WALKS);
}

#[test]
fn a_write_to_read_only_memory_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_WRITE);
    rig.set_read_only();
    let emulated = rig.access(CPU, VA, Access::USER_WRITE).expect("emulated");
    assert!(matches!(emulated, Seen::Emulated(_)));
    rig.access(CPU, VA, Access::USER_READ).expect("read-only");
    let leaf = rig.shadow_leaf(CPU, VA);
    let value = rig.host.memory.peek(leaf);
    rig.host.memory.store(leaf, value | W | D);
    rig.drop_tlb(CPU);
    let report = rig.access(CPU, VA, Access::USER_WRITE).unwrap_err();
    says(&report, &Wrong::ReadOnly { gpa: 101 << 12 }, &["read-only"]);
}

#[test]
fn a_freed_table_that_is_walked_is_caught() {
    let mut rig = shadow();
    used(&mut rig, VA, Access::USER_READ);
    let table = rig.shadow_leaf(CPU, VA).frame();
    rig.host.memory.free(table).expect("a table");
    rig.drop_tlb(CPU);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    assert!(matches!(report.wrong, Wrong::Violation(_)), "{report}");
    assert!(
        report.to_string().contains("led the processor astray"),
        "{report}"
    );
    // The rig's own end has nothing more to free.
    core::mem::forget(rig);
}

#[test]
fn under_nested_paging_a_translation_kept_over_invlpg_is_caught() {
    let mut rig = Rig::new(Engine::Npt, 1, Policy::KEEP);
    used(&mut rig, VA, Access::USER_READ);
    rig.write(slot(ROOT + 3, 1), entry(200, PAGE));
    rig.access(CPU, VA, Access::USER_READ)
        .expect("stale, as it may be");
    rig.faults.keep_tlb = true;
    rig.invlpg(CPU, VA);
    let report = rig.access(CPU, VA, Access::USER_READ).unwrap_err();
    says(&report, &Wrong::Frame { gpa: 101 << 12 }, &WALKS);
}
