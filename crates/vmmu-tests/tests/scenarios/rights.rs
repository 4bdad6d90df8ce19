//! P1, P2 and T7: what changes of control registers and of entries may not let through (rule R9).

use vmmu::addr::Level;
use vmmu::paging::{Cr0, Cr4, Efer};
use vmmu_spec::{Access, ErrorCode};
use vmmu_tests::guest::{
    A, D, FETCH, NX, P, PAGE, PS, READ, ROOT, U, USER_READ, USER_WRITE, W, WRITE, entry, slot,
};
use vmmu_tests::machine::Seen;
use vmmu_tests::stage::{frame, shadow, va};

/// R9's exception has a role of its own: nothing made under it serves another mode.
#[test]
fn p1_what_a_kernel_wrote_without_wp_grants_nothing_later() {
    let later: [fn(&mut vmmu::paging::PagingState); 3] = [
        |state| state.cr0.insert(Cr0::WP),
        |state| state.cr4.insert(Cr4::SMEP),
        |state| state.cr4.insert(Cr4::SMAP),
    ];
    for change in later {
        let mut machine = shadow(1);
        machine.poke(slot(ROOT + 3, 9), entry(109, P | U | A | D));
        let mut state = machine.cpus[0].state;
        state.cr0.remove(Cr0::WP);
        machine.set_state(0, state);
        let _ = machine.access(0, va(0, 9), FETCH);
        assert_eq!(machine.access(0, va(0, 9), WRITE), frame(109));
        // The entry is the kernel's now: the user comes back, and writes nothing.
        assert_eq!(machine.access(0, va(0, 9), USER_READ), frame(109));
        let refused = ErrorCode::PRESENT | ErrorCode::WRITE | ErrorCode::USER;
        assert_eq!(
            machine.access(0, va(0, 9), USER_WRITE),
            Seen::PageFault(refused)
        );
        assert_eq!(machine.access(0, va(0, 9), WRITE), frame(109));
        change(&mut state);
        machine.set_state(0, state);
        for access in Access::ALL {
            // The judge knows what each of them has to show.
            let _ = machine.access(0, va(0, 9), access);
        }
    }
}

/// The same with SMEP on from the start: the kernel's entry is not executable.
#[test]
fn p1_a_page_written_without_wp_is_not_executed_under_smep() {
    let mut machine = shadow(1);
    machine.poke(slot(ROOT + 3, 9), entry(109, P | U | A | D));
    let mut state = machine.cpus[0].state;
    state.cr0.remove(Cr0::WP);
    state.cr4.insert(Cr4::SMEP);
    machine.set_state(0, state);
    assert_eq!(machine.access(0, va(0, 9), WRITE), frame(109));
    let refused = ErrorCode::PRESENT | ErrorCode::FETCH;
    assert_eq!(machine.access(0, va(0, 9), FETCH), Seen::PageFault(refused));
}

/// R9: each page of a split has its own parent's rights.
#[test]
fn p2_a_write_through_one_mapping_of_a_split_page_opens_no_other() {
    let mut machine = shadow(1);
    machine.host.limit_size(Some(Level::L1));
    // Writable and clean; and the same frames read-only.
    machine.poke(slot(ROOT + 2, 1), entry(512, P | W | U | A | PS));
    machine.poke(slot(ROOT + 2, 2), entry(512, P | U | A | PS));
    for upper in [1, 2] {
        assert_eq!(machine.access(0, va(upper, 3), USER_READ), frame(515));
    }
    assert_eq!(machine.access(0, va(1, 3), USER_WRITE), frame(515));
    assert_ne!(machine.peek(slot(ROOT + 2, 1)) & D, 0, "the guest's D");
    let refused = ErrorCode::PRESENT | ErrorCode::WRITE | ErrorCode::USER;
    assert_eq!(
        machine.access(0, va(2, 3), USER_WRITE),
        Seen::PageFault(refused)
    );
    assert_eq!(
        machine.access(0, va(2, 4), USER_WRITE),
        Seen::PageFault(refused)
    );
    assert_eq!(machine.peek(slot(ROOT + 2, 2)) & D, 0);
}

/// R4: the control bits are in the role, cached roots and pages included.
#[test]
fn t7_no_translation_made_for_other_control_bits_is_used() {
    let mut machine = shadow(1);
    let flags = [
        PAGE,
        P | W | A | D,
        P | U | A | D,
        P | A | D,
        PAGE | NX,
        P | W | A | D | NX,
    ];
    for (i, flags) in (10..).zip(flags) {
        machine.poke(slot(ROOT + 3, i), entry(100 + i, flags));
    }
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..48_u32 {
        let bits = if round < 16 {
            round ^ round >> 1
        } else {
            rng.u32(0..32)
        };
        let on = |bit: u32| bits >> bit & 1 != 0;
        let mut state = machine.cpus[0].state;
        state.cr0.set(Cr0::WP, on(0));
        state.cr4.set(Cr4::SMEP, on(1));
        state.cr4.set(Cr4::SMAP, on(2));
        state.efer.set(Efer::NXE, on(3));
        state.cr4.set(Cr4::PGE, on(4));
        machine.set_state(0, state);
        for i in 10..16 {
            for _ in 0..4 {
                let access = Access::ALL[rng.usize(0..12)];
                let _ = machine.access(0, va(0, i), access);
            }
        }
    }
    assert!(machine.mmu.stats().get(vmmu::Event::RootCached) > 0);
}

/// Paging off and on again: LA57 and the legacy formats are other roles too, as far as the engine has them.
#[test]
fn t7_switching_paging_off_and_on_uses_nothing_of_before() {
    let mut machine = shadow(1);
    assert_eq!(machine.access(0, va(0, 1), READ), frame(101));
    let paged = machine.cpus[0].state;
    for _ in 0..3 {
        let mut state = paged;
        state.cr0.remove(Cr0::PG);
        state.efer.remove(Efer::LMA);
        machine.set_state(0, state);
        // Linear is physical now.
        assert_eq!(machine.access(0, va(0, 1), READ), frame(1));
        assert_eq!(machine.access(0, va(1, 5), WRITE), frame(517));
        machine.set_state(0, paged);
        assert_eq!(machine.access(0, va(0, 1), READ), frame(101));
    }
}
