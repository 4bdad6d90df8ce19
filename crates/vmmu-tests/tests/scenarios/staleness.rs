//! T1, T4, T6, T12, T19: what a flush, a load of CR3 or INVLPG makes visible (rules R2, R6 and R7).

use vmmu::addr::{Gfn, Level};
use vmmu::paging::{Cr0, Cr4, Efer};
use vmmu::{Engine, Event, SlotFlags, Strictness};
use vmmu_spec::ErrorCode;
use vmmu_tests::guest::{
    PAGE, PS, READ, ROOT, TABLE, USER_READ, USER_WRITE, WRITE, entry, long4, slot, window,
};
use vmmu_tests::machine::Seen;
use vmmu_tests::stage::{frame, guest, map_more, setup, shadow, va};

/// A child is clean when it is linked.
#[test]
fn t1_a_table_changed_while_nothing_leads_to_it_shows_its_current_entries() {
    for level in [Level::L1, Level::L4] {
        let mut setup = setup(Engine::Shadow, 1);
        setup.config.unsync_level = level;
        let mut machine = guest(&setup, SlotFlags::empty());
        map_more(&mut machine, 1, 40, 200, 4);
        let link = slot(ROOT + 2, 1);
        for round in 0..4 {
            assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(201 + round));
            let _ = machine.write(0, window(link), 0, WRITE);
            machine.invlpg(0, va(1, 1));
            let refused = Seen::PageFault(ErrorCode::USER);
            assert_eq!(machine.access(0, va(1, 1), USER_READ), refused);
            machine.load_cr3(0, ROOT << 12);
            let next = entry(202 + round, PAGE);
            let _ = machine.write(0, window(slot(40, 1)), next, WRITE);
            // From non-present to present: the guest owes no flush.
            let _ = machine.write(0, window(link), entry(40, TABLE), WRITE);
        }
    }
}

/// A walk in steps misses nothing: more mappings than one step takes.
#[test]
fn t4_a_removal_in_steps_skips_no_mapping() {
    let mut setup = setup(Engine::Shadow, 1);
    setup.config.stripes = 2;
    let mut machine = guest(&setup, SlotFlags::empty());
    // One frame mapped 150 times, and 300 frames mapped once.
    for i in 0..150 {
        machine.poke(slot(41, i), entry(600, PAGE));
    }
    machine.poke(slot(ROOT + 2, 2), entry(41, TABLE));
    map_more(&mut machine, 1, 40, 512, 300);
    for i in 0..300 {
        let _ = machine.access(0, va(1, i), USER_READ);
        let _ = machine.access(0, va(2, i % 150), USER_READ);
    }
    let leaves = |machine: &vmmu_tests::machine::Machine| {
        let report = machine.mmu.audit(Strictness::Exact).expect("all is well");
        report.leaves(Level::L1)
    };
    assert_eq!(leaves(&machine), 450);
    drop(machine.mmu.invalidate_begin(Gfn::new(600), 1));
    assert_eq!(leaves(&machine), 299);
    drop(machine.mmu.invalidate_begin(Gfn::new(512), 512));
    assert_eq!(leaves(&machine), 0);
    assert!(machine.mmu.zap_all() > 0);
    assert_eq!(machine.access(0, va(2, 149), USER_READ), frame(600));
}

#[test]
fn t6_invlpg_of_any_part_of_a_large_page_drops_that_part() {
    for level in [Level::L1, Level::L4] {
        for size in [Level::L1, Level::L2] {
            let mut setup = setup(Engine::Shadow, 1);
            setup.config.unsync_level = level;
            let mut machine = guest(&setup, SlotFlags::empty());
            machine.add_slot(1024, 1024, 0x8000, SlotFlags::empty());
            machine.host.limit_size(Some(size));
            let link = slot(ROOT + 2, 1);
            machine.poke(link, entry(1024, PAGE | PS));
            for (round, part) in (0..).zip([0, 1, 77, 511]) {
                for i in [0, 1, 77, 511] {
                    let _ = machine.access(0, va(1, i), USER_READ);
                }
                let next = [512, 1024][round % 2];
                let _ = machine.write(0, window(link), entry(next, PAGE | PS), WRITE);
                machine.invlpg(0, va(1, part));
                let seen = machine.access(0, va(1, part), USER_READ);
                let host = machine.hpa(vmmu::AddressSpace::Normal, (next + part) << 12);
                assert_eq!(seen, Seen::Memory(host.expect("memory")), "part {part}");
            }
        }
    }
}

#[test]
fn t6_invlpg_with_paging_off_is_harmless() {
    let mut machine = shadow(1);
    let _ = machine.access(0, va(0, 1), READ);
    let mut state = machine.cpus[0].state;
    state.cr0.remove(Cr0::PG);
    state.efer.remove(Efer::LMA);
    machine.set_state(0, state);
    machine.invlpg(0, va(0, 1));
    assert_eq!(machine.access(0, va(0, 1), READ), frame(1));
    machine.invlpg(0, va(0, 1));
    machine.flush(0);
    assert_eq!(machine.access(0, va(0, 1), READ), frame(1));
}

/// A load of CR3, a change of CR4.PGE, and INVPCID of everything: whatever was written before is seen after.
#[test]
fn t6_every_way_to_flush_shows_what_was_written_before() {
    for way in 0..3 {
        let mut machine = shadow(1);
        for i in 0..6 {
            let at = slot(ROOT + 3, 1);
            let _ = machine.write(0, window(at), entry(100 + i, PAGE | 1 << 8), WRITE);
            match way {
                0 => machine.load_cr3(0, ROOT << 12),
                1 => machine.flush(0),
                _ => {
                    let mut state = machine.cpus[0].state;
                    state.cr4.toggle(Cr4::PGE);
                    machine.set_state(0, state);
                }
            }
            assert_eq!(
                machine.access(0, va(0, 1), USER_READ),
                frame(100 + i),
                "way {way}"
            );
        }
    }
}

/// The table was unsync, dies, and comes back.
#[test]
fn t12_a_table_whose_pages_died_shows_what_is_written_next() {
    let mut machine = shadow(2);
    let at = slot(ROOT + 3, 1);
    for round in 0..4 {
        let _ = machine.access(0, va(0, 1), USER_READ);
        let _ = machine.access(1, va(0, 1), USER_READ);
        let _ = machine.write(0, window(at), entry(101 + round, PAGE), WRITE);
        let _ = machine.unprotect(1, if round % 2 == 0 { ROOT + 3 } else { ROOT + 2 });
        let _ = machine.write(0, window(at), entry(102 + round, PAGE), WRITE);
        machine.load_cr3(0, ROOT << 12);
        assert_eq!(machine.access(0, va(0, 1), USER_READ), frame(102 + round));
        machine.load_cr3(1, ROOT << 12);
        assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(102 + round));
    }
    assert!(machine.mmu.stats().get(Event::Unprotect) > 0);
}

/// INVLPG derives the entry anew though the page is clean: the report may be under way.
#[test]
fn t19_invlpg_sees_an_emulated_write_that_is_not_yet_reported() {
    let mut machine = shadow(2);
    assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(101));
    // In memory, and in the log; the report comes later.
    machine.audits = vmmu_tests::machine::Audits::OnDemand;
    machine.poke(slot(ROOT + 3, 1), entry(107, PAGE));
    machine.invlpg(1, va(0, 1));
    assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(107));
    machine.report(ROOT + 3);
    machine.audit();
    for cpu in 0..2 {
        assert_eq!(machine.access(cpu, va(0, 1), USER_WRITE), frame(107));
    }
    let _ = long4(0);
}

/// The list of unsync pages is full: the write is emulated, and is seen (T14's second half).
#[test]
fn t14_a_write_that_finds_the_list_full_is_emulated() {
    let mut setup = setup(Engine::Shadow, 1);
    setup.config.unsync_limit = 1;
    let mut machine = guest(&setup, SlotFlags::empty());
    map_more(&mut machine, 1, 40, 200, 4);
    for upper in 0..2 {
        let _ = machine.access(0, va(upper, 1), USER_READ);
    }
    let first = machine.write(0, window(slot(ROOT + 3, 1)), entry(103, PAGE), WRITE);
    assert!(matches!(first, Seen::Memory(_)), "{first:?}");
    let second = machine.write(0, window(slot(40, 1)), entry(203, PAGE), WRITE);
    assert!(matches!(second, Seen::Emulated(_)), "{second:?}");
    // What was reported counts at once.
    assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(203));
    machine.flush(0);
    assert_eq!(machine.access(0, va(0, 1), USER_READ), frame(103));
}
