//! The shadow engine, end to end.

use vmmu::paging::{Cr0, Cr4, Efer};
use vmmu::{Engine, SlotFlags};
use vmmu_spec as spec;
use vmmu_tests::guest::{A, D, RESERVED, ROOT, TABLE, entry, long4, map_tree, slot};
use vmmu_tests::machine::{Audits, Machine, Setup};

use super::Format;

/// A tree whose level-2 entries and level-1 entries have every combination of W, U and NX, level-1 ones without A and D too, and one that is reserved.
fn machine(bits: u64) -> Machine {
    let mut machine = Machine::new(&Setup::new(Engine::Shadow, 1));
    machine.audits = Audits::OnDemand;
    machine.add_slot(0, 1024, 0x4000, SlotFlags::empty());
    map_tree(&mut machine);
    for upper in 0..8 {
        let table = ROOT + 3 + upper;
        let rights = Format::Level4.entry(2, upper, false) & 0x8000_0000_0000_0fff;
        machine.poke(slot(ROOT + 2, upper), entry(table, rights));
        for lower in 0..8 {
            let rights = Format::Level4.entry(1, lower, true) & 0x8000_0000_0000_0fff;
            machine.poke(slot(table, lower), entry(100 + lower, rights));
            machine.poke(
                slot(table, 8 + lower),
                entry(100 + lower, rights & !(A | D)),
            );
        }
        machine.poke(slot(table, 16), entry(100, TABLE | RESERVED));
    }
    let mut state = long4(ROOT);
    let on = |bit: u64| bits >> bit & 1 != 0;
    state.cr0.set(Cr0::WP, on(0));
    state.cr4.set(Cr4::SMEP, on(1));
    state.cr4.set(Cr4::SMAP, on(2));
    state.efer.set(Efer::NXE, on(3));
    machine.set_state(0, state);
    machine
}

#[test]
fn p3_shadow_tables_grant_what_the_specification_grants() {
    let mut judged = 0;
    for bits in 0..16 {
        let mut machine = machine(bits);
        // Twice and in two orders: what one access left behind must not serve another.
        for round in 0..2 {
            for upper in 0..8 {
                for lower in 0..17 {
                    for i in 0..12 {
                        let access = spec::Access::ALL[if round == 0 { i } else { 11 - i }];
                        let va = upper << 21 | lower << 12;
                        let _ = machine.access(0, va, access);
                    }
                }
            }
            machine.audit();
            machine.flush(0);
        }
        judged += machine.judged.all;
    }
    println!("{judged} accesses through shadow tables judged");
}
