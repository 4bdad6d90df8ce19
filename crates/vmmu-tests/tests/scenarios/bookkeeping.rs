//! B1 to B10: records, reverse maps, roles and large-page counters (rules R1 to R6).

use vmmu::addr::{Gva, Level};
use vmmu::{Engine, Event, FaultOutcome, SlotFlags};
use vmmu_cpu::Hpa;
use vmmu_spec::ErrorCode;
use vmmu_tests::guest::{
    A, D, P, PAGE, PS, READ, ROOT, TABLE, U, USER_READ, USER_WRITE, WINDOW, WRITE, entry, slot,
    window,
};
use vmmu_tests::machine::{Machine, Seen};
use vmmu_tests::stage::{FRAMES, frame, guest, map_more, setup, shadow, va};

/// A guest whose large page at 2 MiB is mapped by a split: the host has small frames only.
fn with_split_page() -> (Machine, vmmu::SlotId) {
    let mut machine = shadow(1);
    let other = machine.add_slot(2048, 1024, 0x8000, SlotFlags::empty());
    machine.host.limit_size(Some(Level::L1));
    machine.poke(slot(ROOT + 2, 1), entry(512, PAGE | PS));
    for i in 0..4 {
        assert_eq!(machine.access(0, va(1, i), USER_READ), frame(512 + i));
    }
    (machine, other)
}

/// CVE-2026-46113; R1, R4: the record names the gfn that was mapped, whatever the guest's entry has become.
#[test]
fn b1_a_split_page_whose_large_entry_changes_unseen_leaves_nothing_dangling() {
    let (mut machine, other) = with_split_page();
    machine.poke_unseen(slot(ROOT + 2, 1), entry(2048, PAGE | PS));
    let seen = machine.access(0, va(1, 7), USER_WRITE);
    assert_eq!(seen, Seen::Memory(Hpa::new(0x8007 << 12)));
    machine.remove_slot(other);
    machine.audit();
    // What the old pages mapped is still found under the frames that they mapped.
    machine.take_back(512, 16);
    machine.report(ROOT + 2);
    machine.flush(0);
    let seen = machine.access(0, va(1, 7), USER_READ);
    assert!(matches!(seen, Seen::Device(..)), "{seen:?}");
}

/// CVE-2026-53359; R4: a role says whether a page is direct.
#[test]
fn b2_a_direct_page_is_never_taken_for_the_table_of_its_gfn() {
    let (mut machine, _) = with_split_page();
    machine.poke(slot(512, 9), entry(101, PAGE));
    machine.poke_unseen(slot(ROOT + 2, 1), entry(512, TABLE | A));
    // The direct page would show frame 521.
    assert_eq!(machine.access(0, va(1, 9), USER_READ), frame(101));
    machine.report(ROOT + 2);
    machine.flush(0);
    assert_eq!(machine.access(0, va(1, 9), USER_READ), frame(101));
}

/// CVE-2026-23401; R3: what stood in the slot is gone before the device answers.
#[test]
fn b3_a_mapping_is_gone_before_a_device_takes_its_place() {
    let mut machine = shadow(2);
    machine.poke(slot(ROOT + 3, 9), entry(110, P | U | A));
    for cpu in 0..2 {
        assert_eq!(machine.access(cpu, va(0, 9), USER_READ), frame(110));
    }
    machine.poke_unseen(slot(ROOT + 3, 9), entry(5000, PAGE));
    let seen = machine.access(0, va(0, 9), USER_WRITE);
    assert!(matches!(seen, Seen::Device(..)), "{seen:?}");
    for cpu in 0..2 {
        let seen = machine.access(cpu, va(0, 9), USER_READ);
        assert!(matches!(seen, Seen::Device(..)), "cpu {cpu}: {seen:?}");
    }
}

/// CVE-2021-38198; R9: two parents with different rights are two pages.
#[test]
fn b4_a_table_reached_with_fewer_rights_grants_fewer() {
    let mut machine = shadow(1);
    machine.poke(slot(ROOT + 2, 1), entry(ROOT + 3, P | U));
    assert_eq!(machine.access(0, va(0, 1), USER_WRITE), frame(101));
    let refused = ErrorCode::PRESENT | ErrorCode::WRITE | ErrorCode::USER;
    assert_eq!(
        machine.access(0, va(1, 1), USER_WRITE),
        Seen::PageFault(refused)
    );
    assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(101));
}

/// CVE-2021-47639; R5: unmapping reaches every root, the ones not in use too.
#[test]
fn b5_a_frame_taken_back_is_mapped_by_no_root() {
    let mut machine = shadow(2);
    let second = 40;
    machine.poke(slot(second, 0), entry(ROOT + 1, P | U));
    for cpu in 0..2 {
        let _ = machine.access(cpu, va(0, 1), USER_READ);
    }
    machine.load_cr3(0, second << 12);
    let _ = machine.access(0, va(0, 1), USER_READ);
    machine.take_back(101, 1);
    machine.load_cr3(0, ROOT << 12);
    for cpu in 0..2 {
        let seen = machine.access(cpu, va(0, 1), USER_READ);
        assert!(matches!(seen, Seen::Memory(_)) && seen != frame(101));
    }
    assert!(machine.mmu.stats().get(Event::RootCached) > 0);
}

/// CVE-2024-26991; R5: a large page never leaves its slot.
#[test]
fn b6_no_large_page_leaves_a_slot_with_unaligned_ends() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = guest(&setup(engine, 1), SlotFlags::empty());
        // Frames 1100 to 2147: of three regions only the middle one is whole.
        let slot_id = machine.add_slot(1100, 1048, 0x8000 + 1100 - 1024, SlotFlags::empty());
        for region in 0..3 {
            let at = slot(ROOT + 2, 2 + region);
            machine.poke(at, entry(1024 + region * 512, PAGE | PS));
        }
        for (upper, lower) in [(2, 76), (2, 511), (3, 0), (3, 511), (4, 0), (4, 99)] {
            let seen = machine.access(0, va(upper, lower), USER_WRITE);
            assert!(
                matches!(seen, Seen::Memory(_)),
                "{engine:?} {upper} {lower} {seen:?}"
            );
        }
        for (upper, lower) in [(2, 75), (2, 0), (4, 100), (4, 511)] {
            let seen = machine.access(0, va(upper, lower), USER_READ);
            assert!(
                matches!(seen, Seen::Device(..)),
                "{engine:?} {upper} {lower} {seen:?}"
            );
        }
        // Main memory holds the guest's tables: large under nested paging only.
        let main = if engine == Engine::Shadow { 0 } else { 1 };
        let report = machine
            .mmu
            .audit(vmmu::Strictness::Exact)
            .expect("all is well");
        assert_eq!(report.leaves(Level::L2), 1 + main, "{engine:?}");
        machine.remove_slot(slot_id);
        let seen = machine.access(0, va(3, 5), USER_READ);
        assert!(matches!(seen, Seen::Device(..)), "{engine:?} {seen:?}");
    }
}

/// The same for 1 GiB, which the direct engine has.
#[test]
fn b6_a_gigabyte_page_needs_the_whole_gigabyte() {
    for (frames, expected) in [((1 << 18) - 1, 0), (1 << 18, 1)] {
        let mut machine = guest(&setup(Engine::Npt, 1), SlotFlags::empty());
        machine.add_slot(1 << 18, frames, 1 << 18, SlotFlags::empty());
        machine.poke(slot(ROOT + 1, 1), entry(1 << 18, PAGE | PS));
        let seen = machine.access(0, (1 << 30) + 0x5000, USER_READ);
        assert_eq!(seen, Seen::Memory(Hpa::new((1 << 30) + 0x5000)));
        assert_eq!(machine.mmu.stats().get(Event::Leaf1G), expected);
    }
}

/// CVE-2016-3960; R1: all bits of a frame number are kept.
#[test]
fn b7_addresses_above_2_to_the_44_keep_every_bit() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = guest(&setup(engine, 1), SlotFlags::empty());
        let high = 1 << 32;
        machine.add_slot(high, FRAMES, 0x8000, SlotFlags::empty());
        // A page and a table there, where the low bits name other memory.
        machine.poke(slot(ROOT + 3, 20), entry(high + 101, PAGE));
        machine.poke(slot(high + ROOT + 3, 1), entry(high + 102, PAGE));
        machine.poke(slot(ROOT + 2, 1), entry(high + ROOT + 3, TABLE));
        let page = machine.access(0, va(0, 20), USER_WRITE);
        assert_eq!(
            page,
            Seen::Memory(Hpa::new((0x8000 + 101) << 12)),
            "{engine:?}"
        );
        let below = machine.access(0, va(1, 1), USER_WRITE);
        assert_eq!(
            below,
            Seen::Memory(Hpa::new((0x8000 + 102) << 12)),
            "{engine:?}"
        );
        machine.take_back(high + 101, 2);
        let page = machine.access(0, va(0, 20), USER_READ);
        assert!(matches!(page, Seen::Memory(hpa) if hpa.get() >> 12 < 0x4000));
    }
}

/// R1, R5: records are keyed by gfn, so that both names of a frame are found.
#[test]
fn b8_two_names_of_a_host_frame_are_both_removed() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = guest(&setup(engine, 1), SlotFlags::empty());
        machine.add_slot(5000, 8, vmmu_tests::stage::HOST + 100, SlotFlags::empty());
        machine.poke(slot(ROOT + 3, 20), entry(5001, PAGE));
        assert_eq!(machine.access(0, va(0, 1), USER_WRITE), frame(101));
        assert_eq!(machine.access(0, va(0, 20), USER_WRITE), frame(101));
        machine.take_back(101, 1);
        let one = machine.access(0, va(0, 1), USER_WRITE);
        let two = machine.access(0, va(0, 20), USER_WRITE);
        assert_eq!(one, two);
        assert_ne!(one, frame(101), "{engine:?}");
    }
}

/// R4, R6: a table may be its own parent, and serve at two levels.
#[test]
fn b9_tables_that_contain_themselves_and_serve_at_two_levels_are_shadowed() {
    let mut machine = shadow(1);
    // Slot 1 of the root leads to the root; the level-2 table serves as level 1 too.
    machine.poke(slot(ROOT, 1), entry(ROOT, TABLE));
    machine.poke(slot(ROOT + 2, 5), entry(ROOT + 2, TABLE));
    let one = |l4: u64, l3: u64, l2: u64, l1: u64| l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12;
    assert_eq!(machine.access(0, one(1, 1, 1, 1), READ), frame(ROOT));
    assert_eq!(machine.access(0, one(1, 1, 1, 0), READ), frame(ROOT + 1));
    assert_eq!(machine.access(0, one(1, 0, 0, 0), READ), frame(ROOT + 3));
    assert_eq!(machine.access(0, va(5, 5), READ), frame(ROOT + 2));
    assert_eq!(machine.access(0, va(5, 0), READ), frame(ROOT + 3));
    // The kernel edits the level-1 table through its own recursive mapping.
    let _ = machine.write(0, one(1, 0, 0, 0) + 8 * 30, entry(103, PAGE), WRITE);
    assert_eq!(machine.access(0, va(0, 30), USER_READ), frame(103));
    let _ = machine.write(0, one(1, 1, 1, 1) + 8 * 2, entry(ROOT + 1, TABLE), WRITE);
    assert_eq!(machine.access(0, one(2, 0, 0, 1), USER_READ), frame(101));
    machine.flush(0);
    assert_eq!(machine.access(0, one(1, 1, 1, 1), READ), frame(ROOT));
}

/// R6: a write to a guest table is seen though the table maps itself writable.
#[test]
fn b10_a_table_in_the_frame_that_it_maps_is_tracked() {
    for level in [Level::L1, Level::L4] {
        let mut setup = setup(Engine::Shadow, 1);
        setup.config.unsync_level = level;
        let mut machine = guest(&setup, SlotFlags::empty());
        machine.poke(slot(ROOT + 3, 20), entry(ROOT + 3, PAGE));
        for i in 0..8 {
            let at = va(0, 20) + 8 * 21;
            let _ = machine.write(0, at, entry(100 + i, PAGE), USER_WRITE);
            machine.invlpg(0, va(0, 21));
            assert_eq!(machine.access(0, va(0, 21), USER_READ), frame(100 + i));
        }
        // A large page over the table's region does not hide it either.
        machine.poke(slot(ROOT + 2, 6), entry(0, PAGE | PS));
        let at = va(6, ROOT + 3) + 8 * 22;
        let _ = machine.write(0, at, entry(104, PAGE | D), USER_WRITE);
        machine.invlpg(0, va(0, 22));
        assert_eq!(machine.access(0, va(0, 22), USER_READ), frame(104));
    }
}

/// The window writes what the other tests poke, through the guest's own mapping.
#[test]
fn b10_the_window_edits_tables_of_every_level() {
    let mut machine = shadow(1);
    map_more(&mut machine, 1, 40, 200, 4);
    assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(201));
    for (table, index) in [(40, 1), (ROOT + 2, 1), (ROOT + 1, 0), (ROOT, 0)] {
        let at = slot(table, index);
        let old = machine.peek(at);
        let _ = machine.write(0, window(at), 0, WRITE);
        machine.flush(0);
        let seen = machine.access(0, va(1, 1), USER_READ);
        assert_eq!(seen, Seen::PageFault(ErrorCode::USER), "table {table}");
        let _ = machine.write(0, window(at), old, WRITE);
        assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(201));
    }
    let _ = (WINDOW, FaultOutcome::Resume, Gva::new(0));
}
