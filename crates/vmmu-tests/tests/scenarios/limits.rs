//! L1, L3 to L6: limits, errors and progress (rule R11). L2 has a binary of its own, for its allocator.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use vmmu::addr::{Gfn, Level};
use vmmu::{AddressSpace, Engine, Event, SlotConfig, SlotFlags};
use vmmu_cpu::Hpa;
use vmmu_tests::guest::{PAGE, ROOT, TABLE, USER_READ, USER_WRITE, entry, slot};
use vmmu_tests::machine::{Seen, Writes};
use vmmu_tests::stage::{after_look_up, end, frame, guest, setup, va};

#[test]
fn l1_the_smallest_page_limit_is_enough_for_progress() {
    for vcpus in 1..4 {
        let mut setup = setup(Engine::Shadow, vcpus);
        setup.config.max_pages = setup.config.smallest_limit();
        let mut machine = guest(&setup, SlotFlags::empty());
        // 40 level-1 tables under three level-2 tables.
        for i in 0..40 {
            let (upper, directory) = (i % 3, 30 + i % 3);
            machine.poke(slot(40 + i, 1), entry(200 + i, PAGE));
            machine.poke(slot(directory, i), entry(40 + i, TABLE));
            machine.poke(slot(ROOT + 1, 1 + upper), entry(directory, TABLE));
        }
        for _ in 0..3 {
            for i in 0..40 {
                for cpu in 0..usize::from(vcpus) {
                    let at = (1 + i % 3) << 30 | va(i, 1);
                    assert_eq!(machine.access(cpu, at, USER_WRITE), frame(200 + i));
                }
            }
        }
        assert!(machine.mmu.stats().pages <= u64::from(setup.config.max_pages));
        assert!(machine.mmu.stats().get(Event::Reclaim) > 0);
    }
}

#[test]
fn l3_an_instruction_that_writes_its_own_page_table_terminates() {
    for writes in [Writes::Emulate, Writes::Unprotect] {
        for level in [Level::L1, Level::L4] {
            let mut setup = setup(Engine::Shadow, 1);
            setup.writes = writes;
            setup.config.unsync_level = level;
            let mut machine = guest(&setup, SlotFlags::empty());
            // Each table of the tree is mapped by the level-1 table; the store changes an entry on its own way.
            for table in 0..4 {
                machine.poke(slot(ROOT + 3, 20 + table), entry(ROOT + table, PAGE));
            }
            for table in 0..4 {
                let index = if table == 3 { 20 + table } else { 0 };
                let own = slot(ROOT + table, index);
                for _ in 0..3 {
                    let at = va(0, 20 + table) + index * 8;
                    let same = machine.peek(own);
                    let seen = machine.write(0, at, same, USER_WRITE);
                    let done = matches!(seen, Seen::Memory(_) | Seen::Emulated(_));
                    assert!(done, "{writes:?} {level:?} table {table}: {seen:?}");
                }
            }
            assert_eq!(machine.access(0, va(0, 1), USER_READ), frame(101));
        }
    }
}

#[test]
fn l4_a_slot_removed_or_moved_during_a_fault_is_not_mapped() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        for moved in [false, true] {
            let mut machine = guest(&setup(engine, 2), SlotFlags::empty());
            let id = machine.add_slot(2048, 512, 0x8000, SlotFlags::empty());
            machine.poke(slot(ROOT + 3, 9), entry(2050, PAGE));
            // Everything but the page itself is mapped.
            let _ = machine.access(0, va(0, 0), USER_READ);
            let (mmu, ran) = (machine.mmu.clone(), Arc::new(AtomicBool::new(false)));
            let (done, base) = (ran.clone(), Gfn::new(2048));
            after_look_up(&machine, move || {
                mmu.remove_slot(id).expect("a slot");
                if moved {
                    let config = SlotConfig {
                        space: AddressSpace::Normal,
                        base,
                        frames: 512,
                        token: vmmu::host::MemoryToken(0x9000),
                        flags: SlotFlags::empty(),
                    };
                    mmu.add_slot(&config).expect("a good slot");
                }
                done.store(true, Ordering::SeqCst);
            });
            // The machine's own list follows the change.
            let at = machine
                .slots
                .iter()
                .position(|s| s.id == id)
                .expect("it was added");
            if moved {
                machine.slots[at].config.token = vmmu::host::MemoryToken(0x9000);
            } else {
                machine.slots.remove(at);
            }
            let seen = machine.access(0, va(0, 9), USER_WRITE);
            end(&machine, &ran);
            match (moved, seen) {
                (true, Seen::Memory(hpa)) => assert_eq!(hpa, Hpa::new(0x9002 << 12)),
                (false, Seen::Device(..)) => {}
                _ => panic!("{engine:?} {moved} {seen:x?}"),
            }
        }
    }
}

/// L5: the library keeps no entries for devices, so that none can outlive a slot change, however many there were.
#[test]
fn l5_a_device_answers_only_while_no_slot_has_its_address() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = guest(&setup(engine, 1), SlotFlags::empty());
        machine.poke(slot(ROOT + 3, 9), entry(5000, PAGE));
        for i in 0..64 {
            for access in [USER_READ, USER_WRITE, USER_READ] {
                let seen = machine.access(0, va(0, 9), access);
                assert!(matches!(seen, Seen::Device(..)), "{seen:?}");
            }
            let id = machine.add_slot(4990 + i % 8, 64, 0x8000, SlotFlags::empty());
            let host = Hpa::new((0x8000 + 10 - i % 8) << 12);
            assert_eq!(machine.access(0, va(0, 9), USER_WRITE), Seen::Memory(host));
            machine.remove_slot(id);
        }
    }
}

#[test]
fn l6_teardown_returns_every_table() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = guest(&setup(engine, 2), SlotFlags::empty());
        for i in 0..8 {
            for cpu in 0..2 {
                let _ = machine.access(cpu, va(0, i), USER_WRITE);
            }
        }
        machine.load_cr3(0, 40 << 12);
        let _ = machine.access(0, va(0, 1), USER_READ);
        if engine == Engine::Shadow {
            machine.mmu.zap_frame(Gfn::new(ROOT + 2));
        }
        let (host, memory) = (machine.host.clone(), machine.host.memory.clone());
        assert!(host.tables() > 0);
        drop(machine);
        assert_eq!(host.tables(), 0);
        assert_eq!(memory.allocs(), memory.frees());
    }
}
