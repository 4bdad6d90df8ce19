//! What most tests begin with: a guest with a tree of tables, and hooks that act as another processor would.

use core::any::Any;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicU32, Ordering};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use vmmu::addr::{Gva, Level};
use vmmu::host::{BackedFrame, MemoryToken, VcpuId};
use vmmu::walk::{Access as Call, AccessKind, Privilege};
use vmmu::{Engine, FaultOutcome, Mmu, SlotFlags, SlotId, Stats, Strictness};
use vmmu_cpu::Hpa;
use vmmu_tests::guest::{PAGE, ROOT, TABLE, W, entry, long4, map_tree, slot, window};
use vmmu_tests::host::{Hooks, Host, HostState};
use vmmu_tests::machine::{Machine, Seen, Setup};

/// The host frame behind guest frame 0.
pub(crate) const RAM: u64 = 0x4000;
/// The slot's token.
pub(crate) const TOKEN: MemoryToken = MemoryToken(RAM);
/// The guest frame of the level-1 table of the tree.
pub(crate) const LEAVES: u64 = ROOT + 3;
/// The guest frame of the level-2 table of the tree.
pub(crate) const DIRECTORY: u64 = ROOT + 2;
/// A guest frame for one more level-1 table.
pub(crate) const OTHER: u64 = 40;
/// How much memory the guest has, in frames.
pub(crate) const FRAMES: u64 = 2048;

/// Makes a machine that neither prefetches nor leaves tables unsync, so that nothing happens that a test doesn't ask for.
pub(crate) fn quiet(engine: Engine, vcpus: u16) -> Setup {
    let mut setup = Setup::new(engine, vcpus);
    setup.config.prefetch = 0;
    setup.config.unsync_patience = 0;
    setup
}

/// Makes a shadowed guest of `vcpus` processors whose page 0x1000 is guest frame 100.
pub(crate) fn guest(vcpus: u16) -> Machine {
    start(&quiet(Engine::Shadow, vcpus), SlotFlags::empty()).0
}

/// Makes a guest.
pub(crate) fn start(setup: &Setup, flags: SlotFlags) -> (Machine, SlotId) {
    let mut machine = Machine::new(setup);
    let id = machine.add_slot(0, FRAMES, RAM, flags);
    map_tree(&mut machine);
    machine.poke(slot(LEAVES, 1), entry(100, PAGE));
    machine.poke(slot(DIRECTORY, 1), entry(OTHER, TABLE));
    for cpu in 0..usize::from(setup.config.vcpus) {
        machine.set_state(cpu, long4(ROOT));
    }
    (machine, id)
}

/// Returns the address that entry `index` of the level-1 table below entry `directory` of [`DIRECTORY`] maps.
pub(crate) const fn at(directory: u64, index: u64) -> u64 {
    directory << 21 | index << 12
}

/// What an access that reaches a guest frame of the first slot shows.
pub(crate) fn reached(gfn: u64, va: u64) -> Seen {
    Seen::Memory(Hpa::new(((RAM + gfn) << 12) + (va & 0xfff)))
}

/// Returns the audit's verdict as a failure of the test.
pub(crate) fn audit(machine: &Machine) {
    if let Err(failure) = machine.mmu.audit(Strictness::Exact) {
        panic!("{failure}");
    }
}

/// Returns the statistics.
pub(crate) fn stats(machine: &Machine) -> Stats {
    machine.mmu.stats()
}

/// A kernel's access, as the library takes it.
pub(crate) fn kernel(kind: AccessKind) -> Call {
    let mode = Privilege::new(0, vmmu::paging::Rflags::empty());
    Call::new(kind, mode)
}

/// Makes the guest on `cpu` write an entry of one of its tables through the window, until the table is unsync and memory itself takes the write.
pub(crate) fn write_unseen(machine: &mut Machine, cpu: usize, at: u64, value: u64) {
    for _ in 0..8 {
        let seen = machine.write(cpu, window(at), value, vmmu_tests::guest::WRITE);
        if matches!(seen, Seen::Memory(_)) {
            return;
        }
    }
    panic!("the table at {at:#x} never becomes unsync");
}

/// Another processor, acting inside a callback.
#[derive(Clone)]
pub(crate) struct Other {
    pub(crate) mmu: Arc<Mmu<Host>>,
    pub(crate) host: Arc<HostState>,
}

impl Other {
    pub(crate) fn of(machine: &Machine) -> Self {
        Self {
            mmu: machine.mmu.clone(),
            host: machine.host.clone(),
        }
    }

    /// Takes a vCPU out of its guest, if it is there.
    pub(crate) fn exit(&self, vcpu: u16) {
        self.host.exit(usize::from(vcpu));
    }

    /// Serves a fault of a vCPU that is outside.
    pub(crate) fn fault(&self, vcpu: u16, va: u64, kind: AccessKind) -> FaultOutcome {
        let handle = self.mmu.vcpu(VcpuId(vcpu)).expect("a vCPU");
        handle
            .handle_fault(Gva::new(va), kernel(kind))
            .expect("a fault that can be served")
    }

    /// Stores a word of guest memory.
    pub(crate) fn store(&self, gpa: u64, value: u64) {
        self.host.memory.store(Hpa::new((RAM << 12) + gpa), value);
    }

    /// Returns the entry that a processor finds last on its way to `va`, and its level.
    pub(crate) fn shadow(&self, root: u64, va: u64) -> (u64, Level) {
        let mut table = root >> 12;
        for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
            let index = va >> (12 + 9 * (u64::from(level.get()) - 1)) & 511;
            let found = self.host.memory.load(Hpa::new((table << 12) + index * 8));
            if level == Level::L1 || found & 1 == 0 || found & 1 << 7 != 0 {
                return (found, level);
            }
            table = (found & 0x000f_ffff_ffff_f000) >> 12;
        }
        unreachable!("level 1 ends the walk");
    }
}

/// What came of an action inside a callback.
///
/// A failure there is kept until the library's call is over: a panic that passes through a debt would abort the process.
#[derive(Clone, Default)]
pub(crate) struct Ran {
    calls: Arc<AtomicU32>,
    failure: Arc<Mutex<Option<Box<dyn Any + Send>>>>,
}

impl Ran {
    /// Counts a call, and returns how many there were before.
    pub(crate) fn count(&self) -> u32 {
        self.calls.fetch_add(1, Ordering::SeqCst)
    }

    /// Runs what may fail.
    pub(crate) fn attempt(&self, act: impl FnOnce()) {
        if let Err(failure) = catch_unwind(AssertUnwindSafe(act)) {
            *self.failure.lock().expect("a lock") = Some(failure);
        }
    }

    /// Takes the hooks away, and checks that they ran and did not fail.
    pub(crate) fn done(&self, machine: &Machine) {
        machine.host.set_hooks(Hooks::default());
        if let Some(failure) = self.failure.lock().expect("a lock").take() {
            resume_unwind(failure);
        }
        let calls = self.calls.load(Ordering::SeqCst);
        assert_ne!(calls, 0, "nothing happened in between");
    }
}

/// Runs `act` at the first kick of `vcpu`; every kick takes its vCPU out of the guest.
pub(crate) fn at_kick(
    machine: &Machine,
    vcpu: u16,
    act: impl Fn(&Other) + Send + Sync + 'static,
) -> Ran {
    let ran = Ran::default();
    let (other, count) = (Other::of(machine), ran.clone());
    on_kick(machine, move |kicked| {
        other.exit(kicked);
        if kicked == vcpu && count.count() == 0 {
            count.attempt(|| act(&other));
        }
    });
    ran
}

/// Runs `hook` at every kick, instead of the exit that a kick causes.
pub(crate) fn on_kick(machine: &Machine, hook: impl Fn(u16) + Send + Sync + 'static) {
    machine.host.set_hooks(Hooks {
        kick: Some(Arc::new(move |kicked: VcpuId| hook(kicked.0))),
        ..Hooks::default()
    });
}

/// Runs `act` once, when the host frame behind `gfn` has been looked up but not yet been told.
pub(crate) fn at_look_up(
    machine: &Machine,
    gfn: u64,
    act: impl Fn(&Other) + Send + Sync + 'static,
) -> Ran {
    let ran = Ran::default();
    let (other, count) = (Other::of(machine), ran.clone());
    let hook = move |frame: BackedFrame| {
        if frame.gfn.get() == gfn && count.count() == 0 {
            count.attempt(|| act(&other));
        }
    };
    machine.host.set_hooks(Hooks {
        looked_up: Some(Arc::new(hook)),
        ..Hooks::default()
    });
    ran
}

/// An ordinary page that the guest has read but not written.
pub(crate) const READ_PAGE: u64 =
    vmmu_tests::guest::P | W | vmmu_tests::guest::U | vmmu_tests::guest::A;
