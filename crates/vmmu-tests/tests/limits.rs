//! Scenarios L1 to L6: limits, memory that runs out, loops, slots that change, teardown.
//!
//! Each test names its scenario and the break of the library that it was seen to catch.
#![forbid(unsafe_code)]

#[path = "mutants/stage.rs"]
#[allow(dead_code, reason = "what tests begin with is shared")]
mod stage;

use vmmu::addr::{Gfn, Gpa, Level};
use vmmu::host::VcpuId;
use vmmu::walk::AccessKind;
use vmmu::{
    AddressSpace, EmulateReason, Engine, Error, Event, FaultOutcome, SlotConfig, SlotFlags, SlotId,
};
use vmmu_cpu::Hpa;
use vmmu_tests::guest::{
    PAGE, READ, ROOT, TABLE, USER_READ, USER_WRITE, WRITE, entry, slot, window,
};
use vmmu_tests::host::token;
use vmmu_tests::machine::{Audits, Machine, Seen, Setup, Writes};

use stage::{FRAMES, LEAVES, Other, RAM, at, at_kick, at_look_up, audit, quiet, reached, start};

const ENGINES: [Engine; 3] = [Engine::Shadow, Engine::Npt, Engine::Ept];
/// The host frame behind the first frame of the slot that comes and goes.
const SECOND: u64 = 0x9000;

fn in_memory(seen: Seen) {
    assert!(matches!(seen, Seen::Memory(_)), "{seen:?}");
}

/// What an access shows where no slot is.
fn device(gfn: u64) -> Seen {
    Seen::Device(Gpa::new(gfn << 12), EmulateReason::NoMemory)
}

/// Enters and leaves once, and returns the root.
fn root(machine: &Machine, cpu: usize) -> u64 {
    machine.host.exit(cpu);
    let vcpu = machine.vcpu(cpu);
    let entry = vcpu.enter().expect("a root");
    vcpu.exited();
    entry.root.get()
}

/// L1: each fault needs a branch of three tables of its own, and two branches are all that the smallest limit has room for beside the root.
///
/// Caught: reclaim that takes roots (`ReclaimRoots`).
#[test]
fn l1_the_guest_makes_progress_with_the_smallest_limit() {
    for vcpus in [1, 2] {
        let mut setup = Setup::new(Engine::Shadow, vcpus);
        setup.config.max_pages = setup.config.smallest_limit();
        let (mut machine, _) = start(&setup, SlotFlags::empty());
        for i in 0..20 {
            let first = 200 + 3 * i;
            for root in [ROOT, 60] {
                machine.poke(slot(root, 1 + i), entry(first, TABLE));
            }
            machine.poke(slot(first, 0), entry(first + 1, TABLE));
            machine.poke(slot(first + 1, 0), entry(first + 2, TABLE));
            machine.poke(slot(first + 2, 1), entry(100 + i, PAGE));
        }
        // Each vCPU has a root of its own, which the other's faults must not take.
        for cpu in 1..usize::from(vcpus) {
            machine.load_cr3(cpu, 60 << 12);
        }
        let roots: Vec<u64> = (0..usize::from(vcpus)).map(|c| root(&machine, c)).collect();
        for round in 0..60 {
            let (cpu, i) = (round % usize::from(vcpus), (7 * round % 20) as u64);
            let va = (1 + i) << 39 | 0x1000;
            assert_eq!(machine.access(cpu, va, USER_WRITE), reached(100 + i, va));
            assert!(machine.mmu.stats().pages <= u64::from(setup.config.max_pages));
        }
        assert_ne!(machine.mmu.stats().get(Event::Reclaim), 0);
        let after: Vec<u64> = (0..usize::from(vcpus)).map(|c| root(&machine, c)).collect();
        assert_eq!(roots, after, "a loaded root was taken");
    }
}

/// L1 for nested tables: each frame needs three tables of its own, and two branches are all that the smallest limit has room for beside the root.
///
/// Caught: pruning that takes tables with tables below them (`PruneLinks`), that leaves the link (`PruneKeepsLink`).
#[test]
fn l1_the_smallest_page_limit_is_enough_for_nested_tables() {
    for engine in [Engine::Npt, Engine::Ept] {
        for vcpus in [1, 2] {
            let mut setup = quiet(engine, vcpus);
            setup.config.max_pages = setup.config.smallest_limit();
            let (mut machine, _) = start(&setup, SlotFlags::empty());
            for i in 1..20 {
                machine.add_slot(i << 27, 16, SECOND + 16 * i, SlotFlags::empty());
                machine.poke(slot(LEAVES, 10 + i), entry(i << 27, PAGE));
            }
            for round in 0..60 {
                let (cpu, i) = (round % usize::from(vcpus), 1 + (7 * round % 19) as u64);
                let seen = machine.access(cpu, at(0, 10 + i), USER_WRITE);
                assert_eq!(seen, Seen::Memory(Hpa::new((SECOND + 16 * i) << 12)));
                audit(&machine);
                assert!(machine.mmu.stats().pages <= u64::from(setup.config.max_pages));
                assert!(machine.host.tables() <= u64::from(setup.config.max_pages));
            }
            assert_ne!(machine.mmu.stats().get(Event::Reclaim), 0);
            assert_eq!(machine.mmu.stats().get(Event::FaultRetried), 0);
        }
    }
}

/// L1 for the log: a write through a table that was pruned is in the next harvest, and the write after that harvest is in the one that follows.
#[test]
fn l1_what_was_written_through_a_pruned_table_is_in_the_log() {
    for engine in [Engine::Npt, Engine::Ept] {
        let mut setup = quiet(engine, 1);
        setup.config.max_pages = setup.config.smallest_limit();
        let (mut machine, _) = start(&setup, SlotFlags::empty());
        let mut ids = Vec::new();
        for i in 1..8 {
            ids.push(machine.add_slot(i << 27, 16, SECOND + 16 * i, SlotFlags::LOG_DIRTY));
            machine.poke(slot(LEAVES, 10 + i), entry(i << 27, PAGE));
        }
        for _ in 0..3 {
            for i in 1..8 {
                in_memory(machine.access(0, at(0, 10 + i), USER_WRITE));
            }
            for (id, i) in ids.iter().zip(1..) {
                let mut frames = Vec::new();
                let harvest = machine.mmu.harvest_dirty(*id, |gfn| frames.push(gfn.get()));
                assert!(harvest.is_ok(), "{harvest:?}");
                assert_eq!(frames, [i << 27], "{engine:?}");
            }
        }
        assert_ne!(machine.mmu.stats().get(Event::Reclaim), 0);
    }
}

/// L2: a scenario with faults, an unsync table and a new root, run once to count the tables that it allocates and once for each of them with
/// that one failing: the error is clean, the audit has nothing to say, and the same access works when it is tried again.
///
/// Caught: a page that is lost when it gets no table (`LeakPage`).
#[test]
fn l2_every_table_allocation_fails_once() {
    for engine in ENGINES {
        let (count, failures) = l2_scenario(engine, 0);
        assert_eq!(failures, 0);
        assert_ne!(count, 0);
        println!("{engine:?}: N = {count} table allocations");
        for k in 1..=count {
            assert_eq!(l2_scenario(engine, k).1, 1, "{engine:?}, allocation {k}");
        }
    }
}

/// Runs the scenario with the `k`th table allocation failing; returns how many there were, and how many steps failed.
fn l2_scenario(engine: Engine, k: u64) -> (u64, u64) {
    let (mut machine, _) = start(&quiet(engine, 1), SlotFlags::empty());
    machine.host.limit_size(Some(Level::L1));
    for i in 1..6 {
        let table = 200 + i;
        machine.poke(slot(ROOT + 2, 8 + i), entry(table, TABLE));
        machine.poke(slot(table, 1), entry(300 + i, PAGE));
    }
    machine.poke(slot(60, 0), entry(ROOT + 1, TABLE));
    let (before, mut failures) = (machine.host.tables_asked(), 0);
    machine.host.fail_table(k);
    for step in 0..12 {
        if step == 6 {
            machine.cpus[0].state.cr3 = vmmu::paging::Cr3::new(60 << 12);
            let loaded = machine.vcpu(0).load_cr3(vmmu::paging::Cr3::new(60 << 12));
            if loaded == Err(Error::OutOfTables) {
                failures += 1;
            }
            let state = machine.cpus[0].state;
            machine.set_state(0, state);
        }
        let va = at(9 + step % 5, 1);
        let mut seen = machine.access(0, va, USER_WRITE);
        if seen == Seen::Failed(Error::OutOfTables) {
            failures += 1;
            audit(&machine);
            assert_eq!(machine.mmu.stats().pages, machine.host.tables());
            seen = machine.access(0, va, USER_WRITE);
        }
        assert_eq!(seen, reached(301 + step % 5, va), "{engine:?}, {k}");
    }
    (machine.host.tables_asked() - before, failures)
}

/// L3: a write to the very table that translates it, at each level, comes to an end: the machine counts how often it faults.
///
/// Caught: an unprotect that never notices that the same instruction came back (it then returns `Retry` for ever).
#[test]
fn l3_a_write_to_its_own_table_terminates() {
    for writes in [Writes::Unprotect, Writes::Emulate] {
        for unsync in [Level::L1, Level::L4] {
            let mut setup = quiet(Engine::Shadow, 1);
            setup.config.unsync_level = unsync;
            setup.writes = writes;
            let (mut machine, _) = start(&setup, SlotFlags::empty());
            // Entry 5 of every table of the tree leads to the table.
            for table in [ROOT, ROOT + 1, ROOT + 2] {
                machine.poke(slot(table, 5), entry(table, TABLE));
            }
            machine.poke(slot(LEAVES, 5), entry(LEAVES, PAGE));
            let own = [
                (LEAVES, 5 << 12),
                (ROOT + 2, 5 << 21 | 5 << 12),
                (ROOT + 1, 5 << 30 | 5 << 21 | 5 << 12),
                (ROOT, 5 << 39 | 5 << 30 | 5 << 21 | 5 << 12),
            ];
            for (table, va) in own {
                // The last entry of the table, and the one that the write itself uses.
                for index in [511, 5] {
                    let value = machine.peek(slot(table, index)) | 1 << 9;
                    let seen = machine.write(0, va + index * 8, value, WRITE);
                    let done = matches!(seen, Seen::Memory(_) | Seen::Emulated(_));
                    assert!(done, "{table}: {seen:?}");
                    assert_eq!(machine.peek(slot(table, index)), value);
                    assert_eq!(machine.access(0, at(0, 1), USER_READ), reached(100, 0));
                }
            }
        }
    }
}

/// Serves a fault of vCPU 0 at guest frame `gfn`, mapped at `va`, without a processor.
fn fault(other: &Other, engine: Engine, gfn: u64, va: u64, kind: AccessKind) -> FaultOutcome {
    if engine == Engine::Shadow {
        return other.fault(0, va, kind);
    }
    let vcpu = other.mmu.vcpu(VcpuId(0)).expect("a vCPU");
    vcpu.handle_nested_fault(Gpa::new(gfn << 12), kind)
        .expect("a fault that can be served")
}

/// Makes a guest with a slot of 16 frames behind its memory, whose first one is mapped at `at(0, 2)`.
fn with_second(engine: Engine) -> (Machine, SlotId) {
    let (mut machine, _) = start(&quiet(engine, 2), SlotFlags::empty());
    machine.poke(slot(LEAVES, 2), entry(FRAMES, PAGE));
    let id = machine.add_slot(FRAMES, 16, SECOND, SlotFlags::empty());
    // The records of the region are there already: the fault does not start over for want of them.
    machine.poke(slot(LEAVES, 3), entry(FRAMES + 1, PAGE));
    in_memory(machine.access(0, at(0, 3), READ));
    machine.host.exit(0);
    (machine, id)
}

/// What another thread does to the slot.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Change {
    Remove,
    Move,
    MakeReadOnly,
}

fn change(other: &Other, id: SlotId, what: Change) {
    if what == Change::MakeReadOnly {
        let done = other.mmu.set_slot_flags(id, SlotFlags::READ_ONLY);
        return done.expect("the slot is there");
    }
    other.mmu.remove_slot(id).expect("the slot is there");
    if what == Change::Move {
        other.mmu.add_slot(&second(SECOND + 0x100)).expect("room");
    }
}

fn second(first: u64) -> SlotConfig {
    SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(FRAMES),
        frames: 16,
        token: token(first),
        flags: SlotFlags::empty(),
    }
}

/// L4: a slot is removed, moved or made read-only by another thread while a fault has looked its frame up and has not installed it yet.
///
/// Caught: a nested install without a check (`NestedWithoutCheck`), and a slot whose change leaves its mappings (`SlotChangeKeepsMappings`).
#[test]
fn l4_a_slot_changes_while_a_fault_is_in_it() {
    for engine in ENGINES {
        for what in [Change::Remove, Change::Move, Change::MakeReadOnly] {
            let (mut machine, id) = with_second(engine);
            let ran = at_look_up(&machine, FRAMES, move |other| {
                let other = other.clone();
                let thread = std::thread::spawn(move || change(&other, id, what));
                thread.join().expect("the slot changed");
            });
            let other = Other::of(&machine);
            let outcome = fault(&other, engine, FRAMES, at(0, 2), AccessKind::Write);
            ran.done(&machine);
            let to = (SECOND + 0x100) << 12;
            let expected = match what {
                Change::Move => Seen::Memory(Hpa::new(to)),
                Change::Remove => device(FRAMES),
                Change::MakeReadOnly => {
                    Seen::Device(Gpa::new(FRAMES << 12), EmulateReason::ReadOnlyMemory)
                }
            };
            let allowed = matches!(
                (what, outcome),
                (_, FaultOutcome::Retry)
                    | (Change::Move, FaultOutcome::Resume)
                    | (
                        Change::Remove | Change::MakeReadOnly,
                        FaultOutcome::EmulateMmio { .. }
                    )
            );
            assert!(allowed, "{engine:?}, {what:?}: {outcome:?}");
            match what {
                Change::Remove => machine.slots.retain(|slot| slot.id != id),
                Change::Move => machine.slots[1].config = second(SECOND + 0x100),
                Change::MakeReadOnly => machine.slots[1].config.flags = SlotFlags::READ_ONLY,
            }
            let seen = machine.access(0, at(0, 2), USER_WRITE);
            assert_eq!(seen, expected, "{engine:?}, {what:?}");
            audit(&machine);
        }
    }
}

/// L5: over 2^10 slot changes an access that a device answered is memory's as soon as a slot is there, and a device's again as soon as it is
/// gone; the slot's memory alternates. There are no cached device entries that could match.
///
/// Caught: a slot whose removal leaves its mappings (`SlotChangeKeepsMappings`).
#[test]
fn l5_no_entry_of_an_earlier_slot_matches() {
    for engine in ENGINES {
        let (mut machine, id) = with_second(engine);
        machine.remove_slot(id);
        machine.audits = Audits::OnDemand;
        let va = at(0, 2);
        for i in 0..1 << 9 {
            assert_eq!(machine.access(0, va, READ), device(FRAMES), "{engine:?}");
            let first = SECOND + 0x100 * (i & 1);
            let id = machine.add_slot(FRAMES, 16, first, SlotFlags::empty());
            let to = Seen::Memory(Hpa::new(first << 12));
            assert_eq!(machine.access(0, va, READ), to, "{engine:?}, change {i}");
            machine.remove_slot(id);
            if i % 64 == 0 {
                audit(&machine);
            }
        }
    }
}

/// L5: an answer given in the middle of a slot's removal is not remembered either.
#[test]
fn l5_an_answer_given_during_a_change_is_not_kept() {
    for engine in ENGINES {
        let (mut machine, id) = with_second(engine);
        let va = at(0, 2);
        in_memory(machine.access(0, va, READ));
        let ran = at_kick(&machine, 0, move |other| {
            let outcome = fault(other, engine, FRAMES, va, AccessKind::Read);
            assert_ne!(outcome, FaultOutcome::Resume, "{engine:?}");
        });
        machine.remove_slot(id);
        ran.done(&machine);
        assert_eq!(machine.access(0, va, READ), device(FRAMES), "{engine:?}");
        machine.add_slot(FRAMES, 16, SECOND + 0x100, SlotFlags::empty());
        let to = Seen::Memory(Hpa::new((SECOND + 0x100) << 12));
        assert_eq!(machine.access(0, va, READ), to, "{engine:?}");
    }
}

/// L6: after a workload of two vCPUs (several roots, unsync tables, zaps, a slot that goes) every table that was allocated is freed.
///
/// Caught: a drop that forgets one page.
#[test]
fn l6_teardown_returns_every_table() {
    for engine in ENGINES {
        let (mut machine, id) = with_second(engine);
        for i in 1..64 {
            let table = 200 + i;
            machine.poke(slot(ROOT + 2, 8 + i), entry(table, TABLE));
            machine.poke(slot(table, 1), entry(100 + i, PAGE));
            let cpu = (i & 1) as usize;
            in_memory(machine.access(cpu, at(8 + i, 1), USER_WRITE));
            let _ = machine.write(cpu, window(slot(table, 2)), entry(300, PAGE), WRITE);
            if i % 16 == 0 {
                let _ = machine.mmu.zap_frame(Gfn::new(table));
                machine.load_cr3(cpu, ROOT << 12);
            }
        }
        machine.remove_slot(id);
        machine.poke(slot(60, 0), entry(ROOT + 1, TABLE));
        machine.load_cr3(1, 60 << 12);
        in_memory(machine.access(1, at(0, 1), READ));
        let (memory, host) = (machine.host.memory.clone(), machine.host.clone());
        assert!(host.tables() > 1, "{engine:?}: the workload made no tables");
        drop(machine);
        assert_eq!(host.tables(), 0, "{engine:?}");
        assert_eq!(memory.allocs(), memory.frees(), "{engine:?}");
        assert_eq!(memory.strays(), 0, "{engine:?}");
    }
}

/// The frames of the slot lie behind those of RAM on the host's side too.
const _: () = assert!(RAM + FRAMES < SECOND);
