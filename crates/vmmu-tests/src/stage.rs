//! What the scenarios begin with, and the moments at which another CPU comes in between.
//!
//! Key functions: [`guest`], [`during_kick`], [`after_look_up`].
//!
//! A race is a schedule here: a call of the library kicks a CPU, or looks a frame up, with no lock held; what another CPU does just then runs inside of
//! that call, to its end. So both sides are where the race needs them, every time.
//!
//! Invariants:
//! 1. What runs in between uses other vCPUs than the call around it.

use std::sync::{Mutex, PoisonError};

use vmmu::{Engine, SlotFlags};
use vmmu_cpu::Hpa;

use crate::guest::{PAGE, ROOT, TABLE, entry, long4, map_tree, slot};
use crate::host::Hooks;
use crate::machine::{Machine, Seen, Setup};

use std::sync::Arc;

/// The first host frame of main memory: guest frame n lies n further on.
pub const HOST: u64 = 0x4000;
/// How many frames main memory has.
pub const FRAMES: u64 = 1024;

/// Returns the address that slots `upper` of level 2 and `lower` of level 1 translate.
#[must_use]
pub const fn va(upper: u64, lower: u64) -> u64 {
    upper << 21 | lower << 12
}

/// Returns the setup of [`guest`].
#[must_use]
pub fn setup(engine: Engine, vcpus: u16) -> Setup {
    let mut setup = Setup::new(engine, vcpus);
    setup.config.prefetch = 0;
    setup
}

/// Makes a guest with 4 MiB of memory, a tree at [`ROOT`] whose level-1 table maps frames 100 to 107, and all its processors on it.
#[must_use]
pub fn guest(setup: &Setup, flags: SlotFlags) -> Machine {
    let mut machine = Machine::new(setup);
    machine.add_slot(0, FRAMES, HOST, flags);
    map_tree(&mut machine);
    for i in 0..8 {
        machine.poke(slot(ROOT + 3, i), entry(100 + i, PAGE));
    }
    for cpu in 0..machine.cpus.len() {
        machine.set_state(cpu, long4(ROOT));
    }
    machine
}

/// Makes the guest of a shadow-paging scenario.
#[must_use]
pub fn shadow(vcpus: u16) -> Machine {
    guest(&setup(Engine::Shadow, vcpus), SlotFlags::empty())
}

/// Puts an empty level-1 table at a frame under slot `upper` of level 2, mapping `count` frames from `first` on.
pub fn map_more(machine: &mut Machine, upper: u64, table: u64, first: u64, count: u64) {
    for i in 0..count {
        machine.poke(slot(table, i), entry(first + i, PAGE));
    }
    machine.poke(slot(ROOT + 2, upper), entry(table, TABLE));
}

/// Returns what an access to a frame of main memory shows, if the frame has not been moved.
pub const fn frame(gfn: u64) -> Seen {
    Seen::Memory(Hpa::new((HOST + gfn) << 12))
}

/// Runs `work` inside the next call that kicks a CPU, before that CPU leaves its guest. Kicks inside of `work` take CPUs out at once.
pub fn during_kick(machine: &Machine, work: impl FnOnce() + Send + 'static) {
    let host = Arc::downgrade(&machine.host);
    let work = Mutex::new(Some(work));
    let kick = move |vcpu: vmmu::host::VcpuId| {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            work();
        }
        if let Some(host) = host.upgrade() {
            host.exit(usize::from(vcpu.0));
        }
    };
    machine.host.set_hooks(Hooks {
        kick: Some(Arc::new(kick)),
        ..Hooks::default()
    });
}

/// Runs `work` inside the next look-up, after its result is found and before the caller has it.
pub fn after_look_up(machine: &Machine, work: impl FnOnce() + Send + 'static) {
    let work = Mutex::new(Some(work));
    let looked_up = move |_| {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            work();
        }
    };
    machine.host.set_hooks(Hooks {
        looked_up: Some(Arc::new(looked_up)),
        ..Hooks::default()
    });
}

/// Takes the hooks away.
///
/// # Panics
/// If what was to run in between has not run: the schedule was another than the test thinks.
pub fn end(machine: &Machine, ran: &core::sync::atomic::AtomicBool) {
    machine.host.set_hooks(Hooks::default());
    let ran = ran.load(core::sync::atomic::Ordering::SeqCst);
    assert!(ran, "nothing ran in between");
}
