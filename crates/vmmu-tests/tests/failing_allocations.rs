//! L2: every allocation in turn fails, the host's tables and the library's own memory (rule R11).
//!
//! A run counts the N allocations of a scenario; then N runs fail the k-th each. What fails is a clean error: the auditor finds nothing, trying again
//! works, and teardown returns every table.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

use vmmu::addr::{Gfn, Gpa, Gva};
use vmmu::host::VcpuId;
use vmmu::paging::Cr3;
use vmmu::{AddressSpace, Engine, Error, Mmu, SlotConfig, SlotFlags};
use vmmu_tests::convert;
use vmmu_tests::guest::{PAGE, PS, ROOT, TABLE, USER_WRITE, entry, long4, slot};
use vmmu_tests::host::{Host, inside_host};
use vmmu_tests::machine::{Machine, Seen};
use vmmu_tests::stage::{guest, map_more, setup, va};

thread_local! {
    /// Allocations of the library until one fails; 0: none does. Counted only while `ARMED`.
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static SEEN: Cell<u64> = const { Cell::new(0) };
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

struct Failing;

fn fails() -> bool {
    if !ARMED.get() || inside_host() {
        return false;
    }
    SEEN.set(SEEN.get() + 1);
    match LEFT.get() {
        0 => false,
        1 => {
            LEFT.set(0);
            true
        }
        n => {
            LEFT.set(n - 1);
            false
        }
    }
}

// SAFETY:
// - Memory comes from the system's allocator alone, with the layout asked for, and goes back there.
// - A null pointer is an allowed answer of `alloc` and `realloc`.
// - Nothing here allocates: the counters are constant-initialised cells.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return core::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the block came from the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs a call of the library with its allocations counted, and perhaps failing.
fn armed<T>(call: impl FnOnce() -> T) -> T {
    ARMED.set(true);
    let result = call();
    ARMED.set(false);
    result
}

/// What fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Tables,
    Memory,
}

fn expect_clean(error: Error) -> u64 {
    let clean = matches!(error, Error::OutOfTables | Error::OutOfMemory);
    assert!(clean, "{error}");
    1
}

/// Makes everything that allocates: slots, logs, roots, pages of each level, reverse maps, copies. Returns how many calls failed.
fn scenario(machine: &mut Machine, engine: Engine) -> u64 {
    let mmu: std::sync::Arc<Mmu<Host>> = machine.mmu.clone();
    let vcpu = mmu.vcpu(VcpuId(0)).expect("a vCPU");
    let mut failed = 0;
    let mut again = |call: &mut dyn FnMut() -> Result<(), Error>| {
        for _ in 0..4 {
            match armed(&mut *call) {
                Ok(()) => return,
                Err(error) => failed += expect_clean(error),
            }
            mmu.audit(vmmu::Strictness::Exact)
                .expect("an error leaves no trace");
        }
        panic!("trying again does not help");
    };
    let config = SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(4096),
        frames: 1024,
        token: vmmu::host::MemoryToken(0x9000),
        flags: SlotFlags::LOG_DIRTY,
    };
    again(&mut || mmu.add_slot(&config).map(drop));
    let space = AddressSpace::Normal;
    again(&mut || vcpu.set_paging(&long4(ROOT), space));
    let pages = [
        va(0, 1),
        va(1, 1),
        va(1, 2),
        va(2, 5),
        va(3, 77),
        (1 << 30) + va(4, 3),
        va(5, 0),
    ];
    for at in pages {
        again(&mut || {
            let enter = vcpu.enter().map(|_| vcpu.exited());
            enter?;
            let outcome = match engine {
                Engine::Shadow => vcpu.handle_fault(Gva::new(at), convert::access(USER_WRITE)),
                _ => {
                    let write = vmmu::walk::AccessKind::Write;
                    vcpu.handle_nested_fault(Gpa::new((at & 0x3f_ffff) | (at >> 30) << 24), write)
                }
            };
            outcome.map(|_| ())
        });
    }
    again(&mut || vcpu.load_cr3(Cr3::new(40 << 12)));
    again(&mut || vcpu.load_cr3(Cr3::new(ROOT << 12)));
    armed(|| mmu.guest_wrote(Gpa::new(slot(ROOT + 3, 1)), 8));
    armed(|| drop(mmu.invalidate_begin(Gfn::new(0), 600)));
    failed
}

fn prepared(engine: Engine) -> Machine {
    let mut machine = guest(&setup(engine, 1), SlotFlags::empty());
    machine.host.exit(0);
    map_more(&mut machine, 1, 40, 200, 4);
    machine.poke(slot(ROOT + 2, 2), entry(512, PAGE | PS));
    machine.poke(slot(ROOT + 2, 3), entry(ROOT + 3, TABLE));
    machine.poke(slot(ROOT + 1, 1), entry(42, TABLE));
    machine.poke(slot(42, 4), entry(43, TABLE));
    // One frame mapped several times: its reverse map needs nodes.
    machine.poke(slot(43, 3), entry(201, PAGE));
    machine.poke(slot(ROOT + 3, 77), entry(201, PAGE));
    machine.poke(slot(ROOT + 2, 5), entry(44, TABLE));
    machine.poke(slot(44, 0), entry(201, PAGE));
    machine
}

fn run(engine: Engine, what: What, k: u64) -> (u64, u64) {
    let mut machine = prepared(engine);
    let asked = machine.host.tables_asked();
    SEEN.set(0);
    match what {
        What::Tables => machine.host.fail_table(k),
        What::Memory => LEFT.set(k),
    }
    let failed = scenario(&mut machine, engine);
    LEFT.set(0);
    let count = match what {
        What::Tables => machine.host.tables_asked() - asked,
        What::Memory => SEEN.get(),
    };
    machine.set_state(0, long4(ROOT));
    let seen = machine.access(0, va(1, 1), USER_WRITE);
    assert!(matches!(seen, Seen::Memory(_)), "{seen:?}");
    let host = machine.host.clone();
    drop(machine);
    assert_eq!(host.tables(), 0, "tables are left");
    (count, failed)
}

#[test]
fn l2_each_allocation_may_fail_and_trying_again_works() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        for what in [What::Tables, What::Memory] {
            let (count, none) = run(engine, what, 0);
            assert_eq!(none, 0);
            let mut errors = 0;
            for k in 1..=count {
                errors += run(engine, what, k).1;
            }
            println!(
                "{engine:?}: {count} allocations of {what:?}, each failed once: {errors} errors"
            );
            assert!(count > 0 && (what == What::Memory || errors == count));
        }
    }
}
