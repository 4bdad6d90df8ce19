//! Processors, vCPUs and guest memory, tied together as a hypervisor does it.
//!
//! Key types: [`Machine`], [`Setup`], [`Seen`] (what an access of the guest shows), [`Writes`] (how writes to guest tables are served).
//!
//! Invariants:
//! 1. A vCPU enters with the root and the flush that the library names, and nothing else invalidates its processor.
//! 2. A fault comes again at most [`ROUNDS`] times: the guest makes progress.
//! 3. After each operation the library's own audit runs, where it has one.

mod memory;
mod paging;
mod run;

use std::sync::Arc;

use vmmu::addr::Gpa;
use vmmu::host::VcpuId;
use vmmu::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits, Pkru};
use vmmu::{
    AddressSpace, Config, EmulateReason, Engine, Error, Mmu, SlotConfig, SlotId, Strictness, Vcpu,
};
use vmmu_cpu::{Cpu, Hpa, Model, Policy};
use vmmu_spec::{ErrorCode, Time, WriteLog};

use crate::host::{Host, HostState};
use crate::judge::Backing;

/// How often one access may fault before it is called a loop.
pub const ROUNDS: u32 = 40;

/// The processor that guests are shown.
pub const MODEL: CpuModel = CpuModel {
    phys_bits: match PhysBits::new(48) {
        Some(bits) => bits,
        None => PhysBits::MAX,
    },
    features: CpuFeatures::all(),
};

/// How writes that hit a guest table are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writes {
    /// Emulated and reported.
    Emulate,
    /// The table is unprotected and the instruction runs again; emulated only when that comes to nothing twice.
    Unprotect,
}

/// What an access of the guest shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Seen {
    /// It reached this host address.
    Memory(Hpa),
    /// It was emulated at this guest-physical address, which memory backs.
    Emulated(Gpa),
    /// It was left to a device.
    Device(Gpa, EmulateReason),
    /// It raised #PF.
    PageFault(ErrorCode),
    /// It raised #GP.
    GeneralProtection,
    /// A guest table lies where no memory is.
    TableMissing(Gpa),
    /// The library could not serve it.
    Failed(Error),
}

/// A slot as the machine added it.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// What was asked for.
    pub config: SlotConfig,
}

/// How to make a machine.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The library's configuration.
    pub config: Config,
    /// What processors keep.
    pub policy: Policy,
    /// The processors' seed.
    pub seed: u64,
    /// How writes to tables are served.
    pub writes: Writes,
}

impl Setup {
    /// Returns a setup with processors that keep everything, and emulated writes.
    #[must_use]
    pub fn new(engine: Engine, vcpus: u16) -> Self {
        Self {
            config: Config::new(engine, vcpus, 4096, MODEL),
            policy: Policy::KEEP,
            seed: 1,
            writes: Writes::Emulate,
        }
    }
}

/// One processor and the vCPU that runs on it.
#[derive(Debug)]
pub struct Processor {
    /// The processor.
    pub cpu: Cpu,
    /// The guest's registers.
    pub state: PagingState,
    /// Which slots it sees.
    pub space: AddressSpace,
    /// When everything that it has cached was flushed last.
    pub(crate) flushed: Time,
    /// Tables that were edited unseen and reported since that flush: what was cached of them in between is nobody's promise.
    pub(crate) doubtful: std::collections::BTreeSet<u64>,
    /// When single pages were, by page number.
    pub(crate) flushed_pages: std::collections::BTreeMap<u64, Time>,
}

/// When the library's audit runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audits {
    /// After each step and each fault.
    EachStep,
    /// When the test asks for it.
    OnDemand,
}

/// How many accesses were judged, and what happened meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Judged {
    /// All of them.
    pub all: u64,
    /// Those that reached memory.
    pub memory: u64,
    /// Those that no current entry explains: a cache showed what was.
    pub stale: u64,
    /// Those whose tables were edited unseen, so that only safety was judged.
    pub uncertain: u64,
    /// Pages that the library reclaimed meanwhile.
    pub reclaimed: u64,
}

impl core::ops::AddAssign for Judged {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.memory += other.memory;
        self.stale += other.stale;
        self.uncertain += other.uncertain;
        self.reclaimed += other.reclaimed;
    }
}

/// A virtual machine on software processors.
#[derive(Debug)]
pub struct Machine {
    /// The library.
    pub mmu: Arc<Mmu<Host>>,
    /// The embedder.
    pub host: Arc<HostState>,
    /// The processors.
    pub cpus: Vec<Processor>,
    /// Guest memory as the specification sees it.
    pub log: WriteLog<Backing>,
    /// The slots.
    pub slots: Vec<Slot>,
    pub(crate) backing: Backing,
    pub(crate) engine: Engine,
    /// Tables edited behind everybody's back, by gfn: nothing but safety is promised for them (rule R2).
    pub tainted: std::collections::BTreeSet<u64>,
    writes: Writes,
    /// Whether the library's audit runs after each step.
    pub audits: Audits,
    /// How many accesses were judged.
    pub judged: Judged,
}

impl Machine {
    /// Makes a machine without memory.
    ///
    /// # Panics
    /// If the library refuses the configuration.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let vcpus = usize::from(setup.config.vcpus);
        let host = HostState::new(vcpus);
        let mmu = Mmu::new(Host(host.clone()), setup.config.clone());
        let mmu = Arc::new(mmu.expect("a good configuration"));
        host.attach(&mmu);
        let backing = Backing::default();
        let cpus = (0..vcpus).map(|i| Processor {
            cpu: Cpu::new(
                host.memory.clone(),
                Model::STRICT,
                setup.policy,
                setup.seed.wrapping_add(i as u64),
            ),
            state: PagingState {
                cr0: Cr0::PE,
                cr3: Cr3::new(0),
                cr4: Cr4::empty(),
                efer: Efer::empty(),
                pkru: Pkru::new(0),
                pdptes: None,
                cpu: setup.config.cpu,
            },
            space: AddressSpace::Normal,
            flushed: Time::START,
            doubtful: std::collections::BTreeSet::new(),
            flushed_pages: std::collections::BTreeMap::new(),
        });
        Self {
            cpus: cpus.collect(),
            log: WriteLog::new(backing.clone()),
            slots: Vec::new(),
            engine: setup.config.engine,
            tainted: std::collections::BTreeSet::new(),
            writes: setup.writes,
            audits: Audits::EachStep,
            judged: Judged::default(),
            mmu,
            host,
            backing,
        }
    }

    /// Returns a handle of a vCPU.
    ///
    /// # Panics
    /// If there is no such vCPU.
    #[must_use]
    pub fn vcpu(&self, cpu: usize) -> Vcpu<'_, Host> {
        self.mmu
            .vcpu(VcpuId(cpu as u16))
            .expect("a vCPU of the machine")
    }

    /// Runs after each operation.
    pub(crate) fn after(&mut self) {
        self.drain();
        self.check();
    }

    /// Checks what must hold at any time between two calls.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn check(&self) {
        for (i, processor) in self.cpus.iter().enumerate() {
            let violations = processor.cpu.violations();
            assert!(violations.is_empty(), "cpu {i}: {}", violations[0]);
        }
        assert_eq!(
            self.host.memory.strays(),
            0,
            "the library touched memory that is nobody's"
        );
        if self.audits == Audits::EachStep {
            self.audit();
        }
    }

    /// Runs the library's audit.
    ///
    /// # Panics
    /// If it finds anything.
    pub fn audit(&self) {
        // A write through one name of a frame does not show in what the tables behind another name were made from.
        let strictness = if self.tainted.is_empty() && !self.has_aliases() {
            Strictness::Exact
        } else {
            Strictness::Structure
        };
        if let Err(failure) = self.mmu.audit(strictness) {
            panic!("{failure}");
        }
    }
}
