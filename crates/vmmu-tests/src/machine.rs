//! Processors, vCPUs and guest memory, tied together as a hypervisor does it.
//!
//! Key types: [`Machine`], [`Setup`], [`Seen`] (what an access of the guest shows), [`Writes`] (how writes to guest tables are served).
//!
//! Invariants:
//! 1. A vCPU enters with the root and the flush that the library names, and nothing else invalidates its processor.
//! 2. A fault comes again at most [`ROUNDS`] times: the guest makes progress.
//! 3. After each operation the library's own audit runs, where it has one.

use std::sync::Arc;

use vmmu::addr::{Gfn, Gpa, Gva};
use vmmu::host::{MemoryToken, VcpuId};
use vmmu::paging::{
    CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, GuestFormat, PagingState, PhysBits, Pkru,
};
use vmmu::{
    AddressSpace, Config, EmulateReason, Engine, Error, FaultOutcome, Mmu, SlotConfig, SlotFlags,
    SlotId, Strictness, TlbFlush, Unprotected, Vcpu,
};
use vmmu_cpu::{self as cpu, Asid, Cpu, Fault, Flush, Hpa, Model, Policy, Registers, Va, World};
use vmmu_spec::{Access, ErrorCode, Kind, Memory, Physical, Time, Width, WriteLog};

use crate::convert;
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

    /// Adds memory: `frames` guest frames from `base` on, backed by the host frames from `first` on.
    ///
    /// # Panics
    /// If the library refuses the slot.
    pub fn add_slot(&mut self, base: u64, frames: u64, first: u64, flags: SlotFlags) -> SlotId {
        self.add_slot_in(AddressSpace::Normal, base, frames, first, flags)
    }

    /// Adds memory to an address space.
    ///
    /// # Panics
    /// If the library refuses the slot.
    pub fn add_slot_in(
        &mut self,
        space: AddressSpace,
        base: u64,
        frames: u64,
        first: u64,
        flags: SlotFlags,
    ) -> SlotId {
        let config = SlotConfig {
            space,
            base: Gfn::new(base),
            frames,
            token: MemoryToken(first),
            flags,
        };
        let id = self.mmu.add_slot(&config).expect("a good slot");
        self.slots.push(Slot { id, config });
        self.backing.add(base..base + frames);
        self.after();
        id
    }

    /// Says whether two slots show the same host memory.
    #[must_use]
    pub fn has_aliases(&self) -> bool {
        self.slots.iter().enumerate().any(|(i, a)| {
            self.slots[..i].iter().any(|b| {
                let (a, b) = (&a.config, &b.config);
                a.token.0 < b.token.0 + b.frames && b.token.0 < a.token.0 + a.frames
            })
        })
    }

    /// Removes a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn remove_slot(&mut self, id: SlotId) {
        self.slots.retain(|slot| slot.id != id);
        self.mmu.remove_slot(id).expect("a slot of the machine");
        self.after();
    }

    /// Changes a slot's flags.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn set_slot_flags(&mut self, id: SlotId, flags: SlotFlags) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == id) {
            slot.config.flags = flags;
        }
        self.mmu
            .set_slot_flags(id, flags)
            .expect("a slot of the machine");
        self.after();
    }

    /// Returns the slot of a guest frame.
    #[must_use]
    pub fn slot_of(&self, space: AddressSpace, gfn: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| {
            slot.config.space == space
                && gfn.wrapping_sub(slot.config.base.get()) < slot.config.frames
        })
    }

    /// Returns the host address of a guest-physical one.
    #[must_use]
    pub fn hpa(&self, space: AddressSpace, gpa: u64) -> Option<Hpa> {
        let gfn = gpa >> 12;
        let slot = self.slot_of(space, gfn)?;
        let frame = gfn - slot.config.base.get();
        let frame = self.host.frame_of(slot.config.token, frame);
        Some(Hpa::new((frame << 12) + (gpa & 0xfff)))
    }

    /// Returns a guest frame's slot's token and its number in the slot.
    fn place(&self, space: AddressSpace, gfn: u64) -> Option<(MemoryToken, u64)> {
        let slot = self.slot_of(space, gfn)?;
        Some((slot.config.token, gfn - slot.config.base.get()))
    }

    /// Returns every guest-physical address that a host address backs now.
    #[must_use]
    pub fn gpas(&self, hpa: Hpa) -> Vec<u64> {
        let frame = hpa.get() >> 12;
        let mut found = Vec::new();
        for slot in &self.slots {
            let token = slot.config.token;
            let near = frame.wrapping_sub(token.0);
            let moved = self.host.moved_to(token, frame);
            let direct = (near < slot.config.frames && self.host.frame_of(token, near) == frame)
                .then_some(near);
            for number in moved.into_iter().chain(direct) {
                if number < slot.config.frames {
                    let gpa = ((slot.config.base.get() + number) << 12) + (hpa.get() & 0xfff);
                    if !found.contains(&gpa) {
                        found.push(gpa);
                    }
                }
            }
        }
        found
    }

    /// Reads a word of guest memory.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn peek(&self, gpa: u64) -> u64 {
        let hpa = self.hpa(AddressSpace::Normal, gpa).expect("guest memory");
        self.host.memory.load(hpa)
    }

    /// Stores a word in guest memory and tells the log, but not the library: for what nobody has translated through yet.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn poke(&mut self, gpa: u64, value: u64) {
        let hpa = self.hpa(AddressSpace::Normal, gpa).expect("guest memory");
        self.host.memory.store(hpa, value);
        self.note(hpa, value);
    }

    /// Stores a word behind everybody's back: what the table says is promised for nobody until [`Machine::report`].
    ///
    /// # Panics
    /// If there is no memory.
    pub fn poke_unseen(&mut self, gpa: u64, value: u64) {
        let hpa = self.hpa(AddressSpace::Normal, gpa).expect("guest memory");
        self.host.memory.store(hpa, value);
        if self.engine != Engine::Shadow {
            // Nested tables do not depend on it.
            self.note(hpa, value);
            return;
        }
        for gpa in self.gpas(hpa) {
            self.tainted.insert(gpa >> 12);
        }
    }

    /// Reports a whole frame as written.
    pub fn report(&mut self, gfn: u64) {
        if let Some(hpa) = self.hpa(AddressSpace::Normal, gfn << 12) {
            for gpa in self.gpas(hpa) {
                self.mmu.guest_wrote(Gpa::new(gpa), 4096);
                if self.tainted.remove(&(gpa >> 12)) {
                    for processor in &mut self.cpus {
                        processor.doubtful.insert(gpa >> 12);
                    }
                }
                self.refresh(gpa);
            }
        }
        self.after();
    }

    /// Brings the log of a frame up to what memory holds.
    fn refresh(&mut self, gpa: u64) {
        for at in (gpa..gpa + 4096).step_by(8) {
            let value = self.peek(at);
            if self.log.read(Physical::new(at), Width::Eight) != Some(value) {
                self.log.write(Physical::new(at), Width::Eight, value);
            }
        }
    }

    /// Stores a word as an emulated instruction or a device does, and reports it.
    pub fn emulated_write(&mut self, gpa: u64, value: u64) {
        self.poke(gpa & !7, value);
        self.mmu.guest_wrote(Gpa::new(gpa & !7), 8);
        self.after();
    }

    /// Puts a store to a host address into the log, for every guest frame that shows it.
    pub(crate) fn note(&mut self, hpa: Hpa, value: u64) {
        for gpa in self.gpas(hpa) {
            self.log.write(Physical::new(gpa), Width::Eight, value);
        }
    }

    /// Moves what the library's walker stored into the log, and returns it.
    pub(crate) fn drain(&mut self) -> Vec<(u64, u64)> {
        let writes = self.host.take_gpte_writes();
        for (gpa, value) in &writes {
            if let Some(hpa) = self.hpa(AddressSpace::Normal, *gpa) {
                self.note(hpa, *value);
            }
        }
        writes
    }

    /// Lets the host take frames back, giving the guest other ones with the same content.
    pub fn take_back(&mut self, gfn: u64, frames: u64) {
        let invalidation = self.mmu.invalidate_begin(Gfn::new(gfn), frames);
        // Frames that others show too have to be taken from those too.
        let mut others = Vec::new();
        for at in gfn..gfn + frames {
            let Some(slot) = self.slot_of(AddressSpace::Normal, at).copied() else {
                continue;
            };
            let hpa = self.hpa(AddressSpace::Normal, at << 12).expect("a slot");
            let mut shown = vec![(slot.config.token, at - slot.config.base.get())];
            for gpa in self.gpas(hpa) {
                if gpa >> 12 != at {
                    others.push(self.mmu.invalidate_begin(Gfn::new(gpa >> 12), 1));
                    shown.extend(self.place(AddressSpace::Normal, gpa >> 12));
                }
            }
            self.host.move_frame(&shown);
        }
        drop(others);
        drop(invalidation);
        self.after();
    }

    /// Sets a processor's registers, as MOV to CR0 or CR4 and WRMSR do.
    ///
    /// # Errors
    /// What the library refuses.
    pub fn try_set_state(&mut self, cpu: usize, state: PagingState) -> Result<(), Error> {
        self.host.exit(cpu);
        let space = self.cpus[cpu].space;
        self.vcpu(cpu).set_paging(&state, space)?;
        self.cpus[cpu].state = state;
        self.flushed(cpu);
        self.after();
        Ok(())
    }

    /// Sets a processor's registers.
    ///
    /// # Panics
    /// If the library refuses them.
    pub fn set_state(&mut self, cpu: usize, state: PagingState) {
        self.try_set_state(cpu, state).expect("a good state");
    }

    /// Switches a processor to an address space, as entering and leaving system-management mode do.
    pub fn set_space(&mut self, cpu: usize, space: AddressSpace) {
        self.cpus[cpu].space = space;
        self.set_state(cpu, self.cpus[cpu].state);
    }

    /// Executes MOV to CR3.
    ///
    /// # Errors
    /// What the library refuses.
    pub fn try_load_cr3(&mut self, cpu: usize, cr3: u64) -> Result<(), Error> {
        self.host.exit(cpu);
        self.vcpu(cpu).load_cr3(Cr3::new(cr3))?;
        self.cpus[cpu].state.cr3 = Cr3::new(cr3);
        self.flushed(cpu);
        self.after();
        Ok(())
    }

    /// Executes MOV to CR3.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn load_cr3(&mut self, cpu: usize, cr3: u64) {
        self.try_load_cr3(cpu, cr3).expect("a root");
    }

    /// Executes a flush of everything: INVPCID, or a change of CR4.PGE.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn flush(&mut self, cpu: usize) {
        self.host.exit(cpu);
        self.vcpu(cpu).invalidate(TlbFlush::All).expect("a flush");
        if self.engine != Engine::Shadow {
            self.cpus[cpu].cpu.flush(Flush::All);
        }
        self.flushed(cpu);
        self.after();
    }

    /// Executes INVLPG.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn invlpg(&mut self, cpu: usize, va: u64) {
        if self.engine == Engine::Shadow {
            self.host.exit(cpu);
            self.vcpu(cpu)
                .invalidate(TlbFlush::Address(Gva::new(va)))
                .expect("a flush");
        } else {
            self.cpus[cpu].cpu.invlpg(Va::new(va));
        }
        self.flushed_page(cpu, va);
        self.after();
    }

    fn flushed(&mut self, cpu: usize) {
        self.cpus[cpu].flushed = self.log.now();
        self.cpus[cpu].flushed_pages.clear();
        self.cpus[cpu].doubtful.clear();
    }

    pub(crate) fn flushed_page(&mut self, cpu: usize, va: u64) {
        let now = self.log.now();
        self.cpus[cpu].flushed_pages.insert(va >> 12, now);
    }

    /// Zaps the tables that stand for a guest frame.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn unprotect(&mut self, cpu: usize, gfn: u64) -> Unprotected {
        self.host.exit(cpu);
        let gpa = Gpa::new(gfn << 12);
        let done = self.vcpu(cpu).unprotect(gpa, gfn, Gva::new(gfn << 12));
        self.after();
        done.expect("the vCPU is free")
    }

    /// Returns what a processor runs with, on a root.
    fn world(&self, cpu: usize, root: vmmu::addr::Hpa) -> World {
        let state = &self.cpus[cpu].state;
        let root = Hpa::new(root.get());
        let guest = cpu::Cr4::from_bits_truncate(state.cr4.bits());
        let (regs, nested) = match self.engine {
            Engine::Npt => (guest_registers(state), Some(cpu::Nested::npt4(root))),
            Engine::Ept => (guest_registers(state), Some(cpu::Nested::ept4(root))),
            _ => {
                let strict = guest & (cpu::Cr4::SMEP | cpu::Cr4::SMAP);
                let mut regs = match state.format() {
                    GuestFormat::Level4 => Registers::long4(root),
                    GuestFormat::Level5 => Registers::long5(root),
                    _ => Registers::pae(root),
                };
                regs.cr4.remove(cpu::Cr4::PGE);
                if state.format() != GuestFormat::Off {
                    regs.cr4 |= strict;
                }
                (regs, None)
            }
        };
        World {
            regs,
            asid: Asid::new(1),
            nested,
        }
    }

    /// Makes sure that a vCPU is in its guest.
    ///
    /// # Errors
    /// What the library refuses.
    ///
    /// # Panics
    /// If the processor refuses the root.
    pub fn enter(&mut self, cpu: usize) -> Result<(), Error> {
        if self.host.is_inside(cpu) {
            return Ok(());
        }
        let entry = self.vcpu(cpu).enter()?;
        self.host.entered(cpu);
        let world = self.world(cpu, entry.root);
        let flush = if entry.flush {
            Flush::All
        } else {
            Flush::Nothing
        };
        self.cpus[cpu]
            .cpu
            .enter(&world, flush)
            .expect("a root that the processor takes");
        Ok(())
    }

    /// Lets the guest make an access, and judges what it shows.
    pub fn access(&mut self, cpu: usize, va: u64, access: Access) -> Seen {
        self.access_storing(cpu, va, access, None)
    }

    /// Lets the guest write a word.
    pub fn write(&mut self, cpu: usize, va: u64, value: u64, access: Access) -> Seen {
        assert_eq!(access.kind(), Kind::Write);
        self.access_storing(cpu, va, access, Some(value))
    }

    fn access_storing(&mut self, cpu: usize, va: u64, access: Access, value: Option<u64>) -> Seen {
        let start = self.log.now();
        let seen = self.drive(cpu, va, access);
        self.drain();
        if self.engine != Engine::Shadow {
            self.absorb(cpu, va, access, start);
        }
        self.judge(cpu, va, access, start, seen);
        match (seen, value) {
            (Seen::Memory(hpa), Some(value)) => {
                self.host.memory.store(hpa, value);
                self.note(hpa, value);
            }
            (Seen::Emulated(gpa), Some(value)) => self.emulated_write(gpa.get(), value),
            (Seen::PageFault(_), _) => self.flushed_page(cpu, va),
            _ => {}
        }
        self.after();
        seen
    }

    /// Runs the access until it is done or refused.
    fn drive(&mut self, cpu: usize, va: u64, access: Access) -> Seen {
        let mut unprotected = 0;
        let hardware = convert::cpu_access(access);
        for _ in 0..ROUNDS {
            if let Err(error) = self.enter(cpu) {
                return Seen::Failed(error);
            }
            let fault = match self.cpus[cpu].cpu.translate(Va::new(va), hardware) {
                Ok(translation) => return Seen::Memory(translation.hpa),
                Err(fault) => fault,
            };
            match self.serve(cpu, va, access, fault, &mut unprotected) {
                Some(seen) => return seen,
                None => self.check(),
            }
        }
        panic!("cpu {cpu}: {access:?} at {va:#x} faults for ever");
    }

    fn serve(
        &mut self,
        cpu: usize,
        va: u64,
        access: Access,
        fault: Fault,
        unprotected: &mut u32,
    ) -> Option<Seen> {
        let outcome = match fault {
            Fault::Page { .. } if self.engine == Engine::Shadow => {
                self.host.exit(cpu);
                let expected = self.expect_updates(cpu, va, access);
                let call = convert::access(access);
                let outcome = self.vcpu(cpu).handle_fault(Gva::new(va), call);
                let stored = self.drain();
                self.judge_updates(expected, &stored, va, access);
                outcome
            }
            Fault::Page { code, .. } => {
                return Some(Seen::PageFault(ErrorCode::from_bits_truncate(code.bits())));
            }
            Fault::Nested { gpa, code } => {
                self.host.exit(cpu);
                let kind = nested_kind(
                    code.contains(cpu::NpfCode::WRITE),
                    code.contains(cpu::NpfCode::FETCH),
                );
                self.vcpu(cpu)
                    .handle_nested_fault(Gpa::new(gpa.get()), kind)
            }
            Fault::EptViolation {
                gpa, qualification, ..
            } => {
                self.host.exit(cpu);
                let kind = nested_kind(
                    qualification.contains(cpu::EptQualification::WRITE),
                    qualification.contains(cpu::EptQualification::FETCH),
                );
                self.vcpu(cpu)
                    .handle_nested_fault(Gpa::new(gpa.get()), kind)
            }
            Fault::NotCanonical(_) => return Some(Seen::GeneralProtection),
            other => panic!("cpu {cpu}: {access:?} at {va:#x}: {other}"),
        };
        match outcome {
            Ok(outcome) => self.obey(cpu, va, outcome, unprotected),
            Err(error) => Some(Seen::Failed(error)),
        }
    }

    fn obey(
        &mut self,
        cpu: usize,
        va: u64,
        outcome: FaultOutcome,
        unprotected: &mut u32,
    ) -> Option<Seen> {
        match outcome {
            FaultOutcome::Resume | FaultOutcome::Retry => None,
            FaultOutcome::InjectPageFault { gva, code } => {
                assert_eq!(gva.get(), va, "CR2");
                let code = ErrorCode::from_bits_truncate(code.bits());
                Some(Seen::PageFault(code))
            }
            FaultOutcome::InjectGeneralProtection => Some(Seen::GeneralProtection),
            FaultOutcome::EmulateMmio { gpa, reason } => Some(Seen::Device(gpa, reason)),
            FaultOutcome::EmulateWrite { gpa, reason } => {
                let table = reason == EmulateReason::GuestTable;
                if table && self.writes == Writes::Unprotect && *unprotected < 2 {
                    let done = self.vcpu(cpu).unprotect(gpa, va, Gva::new(va));
                    let done = done.expect("the vCPU is free");
                    *unprotected += u32::from(done == Unprotected::Again);
                    return None;
                }
                Some(Seen::Emulated(gpa))
            }
            FaultOutcome::TableMissing { gpa } => Some(Seen::TableMissing(gpa)),
            other => panic!("{other:?}"),
        }
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

fn nested_kind(write: bool, fetch: bool) -> vmmu::walk::AccessKind {
    if write {
        vmmu::walk::AccessKind::Write
    } else if fetch {
        vmmu::walk::AccessKind::Fetch
    } else {
        vmmu::walk::AccessKind::Read
    }
}

/// Returns the registers of a guest that runs on them itself.
fn guest_registers(state: &PagingState) -> Registers {
    Registers {
        cr0: cpu::Cr0::from_bits_truncate(state.cr0.bits()),
        cr3: cpu::Cr3::new(state.cr3.get()),
        cr4: cpu::Cr4::from_bits_truncate(state.cr4.bits()),
        efer: cpu::Efer::from_bits_truncate(state.efer.bits()),
        pkru: cpu::Pkru::new(state.pkru.get()),
    }
}
