//! A small machine around the judge: the library, software processors, and no instructions.
//!
//! Key types: [`Rig`], [`Seen`], [`Faults`] (what it does wrong on purpose).
//!
//! Guest memory is one slot from frame 0 on. Whatever stores to guest memory tells the judge just after: nothing else runs meanwhile.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use vmmu::addr::{Gfn, Gpa, Gva};
use vmmu::host::{MemoryToken, VcpuId};
use vmmu::paging::{Cr3, PagingState};
use vmmu::walk::PageFaultCode;
use vmmu::{
    AddressSpace, Config, Engine, FaultOutcome, Mmu, SlotConfig, SlotFlags, SlotId, TlbFlush,
};
use vmmu_cpu::{
    self as cpu, Access, Asid, Cpu, Event, Fault, Flush, Frame, Hpa, Model, PhysMemory, Policy,
    Registers, Va, World,
};
use vmmu_machine::check::{
    Caught, Emulated, Ground, GuestFault, Home, Judge, Load, Mismatch, Observer, Refused, Used,
};
use vmmu_tests::convert;
use vmmu_tests::guest::{A, D, NX, P, PAGE, TABLE, W, WINDOW_TABLES, entry, long4, slot, window};
use vmmu_tests::host::{Host, HostState};
use vmmu_tests::machine::MODEL;

/// The first host frame of guest memory.
pub(crate) const HOST: u64 = 0x4000;
/// How many frames it has.
pub(crate) const FRAMES: u64 = 1024;
/// The root of the first tree; its tables follow.
pub(crate) const ROOT: u64 = 16;

/// Guest memory for the judge.
#[derive(Debug)]
pub(crate) struct Land {
    host: Arc<HostState>,
    pub(crate) read_only: AtomicBool,
}

impl Ground for Land {
    fn guest_frames(&self) -> u64 {
        FRAMES
    }
    fn home(&self, gfn: Gfn) -> Option<Home> {
        (gfn.get() < FRAMES).then(|| Home {
            frame: Frame::new(self.host.frame_of(MemoryToken(HOST), gfn.get())),
            writable: !self.read_only.load(Ordering::SeqCst),
        })
    }
    fn guest_of(&self, frame: Frame) -> Option<Gfn> {
        let near = frame.get().wrapping_sub(HOST);
        let own = near < FRAMES && self.host.frame_of(MemoryToken(HOST), near) == frame.get();
        let moved = || self.host.moved_to(MemoryToken(HOST), frame.get());
        let found = if own {
            Some(near)
        } else {
            moved().first().copied()
        };
        found.map(Gfn::new)
    }
    fn word(&self, at: Hpa) -> u64 {
        self.host.memory.peek(at)
    }
}

/// What the rig does wrong.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Faults {
    /// Entries into the guest flush nothing.
    pub(crate) keep_tlb: bool,
    /// Frames are moved without telling the library.
    pub(crate) move_silently: bool,
    /// This bit is flipped in each error code.
    pub(crate) flip_code: u32,
}

/// What an access showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// Host memory.
    Memory(Hpa),
    /// The hypervisor did it.
    Emulated(Gpa),
    /// A fault.
    Fault(GuestFault),
}

struct Vcpu {
    cpu: Cpu<PhysMemory>,
    state: PagingState,
}

/// The machine.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) host: Arc<HostState>,
    pub(crate) land: Arc<Land>,
    pub(crate) mmu: Arc<Mmu<Host>>,
    pub(crate) judge: Judge<Land>,
    pub(crate) faults: Faults,
    slot: SlotId,
    vcpus: Vec<Vcpu>,
}

impl Rig {
    /// Makes a machine whose first tree maps frames 100 to 107 from address 0 on.
    pub(crate) fn new(engine: Engine, vcpus: u16, policy: Policy) -> Self {
        let host = HostState::new(usize::from(vcpus));
        let mut config = Config::new(engine, vcpus, 4096, MODEL);
        config.prefetch = 0;
        let mmu = Arc::new(Mmu::new(Host(host.clone()), config).expect("a good configuration"));
        host.attach(&mmu);
        let config = SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(0),
            frames: FRAMES,
            token: MemoryToken(HOST),
            flags: SlotFlags::empty(),
        };
        let slot_id = mmu.add_slot(&config).expect("a good slot");
        let land = Arc::new(Land {
            host: host.clone(),
            read_only: AtomicBool::new(false),
        });
        let vcpu = |i: u16| {
            let mut cpu = Cpu::new(host.memory.clone(), Model::STRICT, policy, u64::from(i));
            cpu.record_last_events(64);
            Vcpu {
                cpu,
                state: long4(ROOT),
            }
        };
        let mut rig = Self {
            engine,
            judge: Judge::new(land.clone(), vcpus),
            land,
            faults: Faults::default(),
            slot: slot_id,
            vcpus: (0..vcpus).map(vcpu).collect(),
            mmu,
            host,
        };
        for level in 0..3 {
            rig.poke(slot(ROOT + level, 0), entry(ROOT + level + 1, TABLE));
        }
        for i in 0..8 {
            rig.poke(slot(ROOT + 3, i), entry(100 + i, PAGE));
        }
        rig.map_window(ROOT);
        for i in 0..vcpus {
            rig.load(VcpuId(i), long4(ROOT), Load::Machine);
        }
        rig
    }

    fn hpa(&self, gpa: u64) -> Hpa {
        let home = self.land.home(Gfn::new(gpa >> 12)).expect("guest memory");
        home.frame.hpa().plus(gpa & 0xfff)
    }

    /// Stores a word in guest memory as the guest does where the table is unsync: the judge is told, the library is not.
    pub(crate) fn poke(&self, gpa: u64, value: u64) {
        let at = self.hpa(gpa);
        self.judge
            .store(at, 8, || self.host.memory.store(at, value));
    }

    /// Stores a word in guest memory as an emulated instruction does.
    pub(crate) fn write(&self, gpa: u64, value: u64) {
        self.poke(gpa, value);
        self.mmu.guest_wrote(Gpa::new(gpa), 8);
        self.tell_stores();
    }

    /// Maps the window through which the kernel reaches frames 0 to 511.
    pub(crate) fn map_window(&self, root: u64) {
        let first = WINDOW_TABLES;
        self.write(slot(root, 256), entry(first, TABLE));
        self.write(slot(first, 0), entry(first + 1, TABLE));
        self.write(slot(first + 1, 0), entry(first + 2, TABLE));
        for gfn in 0..512 {
            self.write(slot(first + 2, gfn), entry(gfn, P | W | A | D | NX));
        }
    }

    /// Stores a word in guest memory by an instruction of the guest's kernel.
    pub(crate) fn guest_store(
        &mut self,
        vcpu: VcpuId,
        gpa: u64,
        value: u64,
    ) -> Result<(), Arc<Mismatch>> {
        match self.access(vcpu, window(gpa), Access::WRITE)? {
            Seen::Memory(_) => self.poke(gpa, value),
            Seen::Emulated(_) => self.write(gpa, value),
            Seen::Fault(fault) => panic!("{fault:?} in the window"),
        }
        Ok(())
    }

    /// Tells the judge what the library stored.
    fn tell_stores(&self) {
        for (gpa, _) in self.host.take_gpte_writes() {
            self.judge.store(self.hpa(gpa), 8, || ());
        }
    }

    fn handle(&self, vcpu: VcpuId) -> vmmu::Vcpu<'_, Host> {
        self.mmu.vcpu(vcpu).expect("a vCPU of the machine")
    }

    fn exit(&self, vcpu: VcpuId) {
        self.host.exit(usize::from(vcpu.0));
        self.judge.exited(vcpu);
    }

    /// Loads registers.
    pub(crate) fn load(&mut self, vcpu: VcpuId, state: PagingState, load: Load) {
        self.exit(vcpu);
        let served = self.handle(vcpu).set_paging(&state, AddressSpace::Normal);
        served.expect("a good state");
        self.tell_stores();
        let processor = &mut self.vcpus[usize::from(vcpu.0)];
        processor.state = state;
        processor.cpu.flush(Flush::All);
        self.judge.registers(vcpu, &state, load);
    }

    /// Executes MOV to CR3.
    pub(crate) fn mov_cr3(&mut self, vcpu: VcpuId, root: u64) {
        let cr3 = Cr3::new(root << 12);
        let index = usize::from(vcpu.0);
        self.vcpus[index].state.cr3 = cr3;
        if self.engine == Engine::Shadow {
            self.exit(vcpu);
            let served = self.handle(vcpu).load_cr3(cr3);
            served.expect("a good root");
            self.tell_stores();
        } else {
            let loaded = self.vcpus[index].cpu.mov_cr3(cr3.get());
            loaded.expect("no PDPTEs");
        }
        self.judge.root_loaded(vcpu, cr3);
    }

    /// Executes INVLPG.
    pub(crate) fn invlpg(&mut self, vcpu: VcpuId, va: u64) {
        let what = TlbFlush::Address(Gva::new(va));
        if self.engine == Engine::Shadow {
            self.exit(vcpu);
            self.handle(vcpu).invalidate(what).expect("a flush");
            self.tell_stores();
        } else if !self.faults.keep_tlb {
            self.vcpus[usize::from(vcpu.0)].cpu.invlpg(Va::new(va));
        }
        self.judge.flushed(vcpu, what);
    }

    /// Takes a guest frame back and gives the guest another one.
    pub(crate) fn take_back(&mut self, gfn: u64) {
        if self.faults.move_silently {
            self.host.move_frame(&[(MemoryToken(HOST), gfn)]);
        } else {
            let invalidation = self.mmu.invalidate_begin(Gfn::new(gfn), 1);
            self.host.move_frame(&[(MemoryToken(HOST), gfn)]);
            drop(invalidation);
        }
        self.judge.remapped(Gfn::new(gfn), 1);
    }

    /// Makes guest memory read-only.
    pub(crate) fn set_read_only(&mut self) {
        self.land.read_only.store(true, Ordering::SeqCst);
        self.mmu
            .set_slot_flags(self.slot, SlotFlags::READ_ONLY)
            .expect("the slot");
        self.judge.remapped(Gfn::new(0), FRAMES);
    }

    fn world(&self, vcpu: VcpuId, root: vmmu::addr::Hpa) -> World {
        let state = &self.vcpus[usize::from(vcpu.0)].state;
        let root = Hpa::new(root.get());
        let (regs, nested) = if self.engine == Engine::Shadow {
            let mut regs = Registers::long4(root);
            regs.cr4.remove(cpu::Cr4::PGE);
            (regs, None)
        } else {
            let regs = Registers {
                cr0: cpu::Cr0::from_bits_truncate(state.cr0.bits()),
                cr3: cpu::Cr3::new(state.cr3.get()),
                cr4: cpu::Cr4::from_bits_truncate(state.cr4.bits()),
                efer: cpu::Efer::from_bits_truncate(state.efer.bits()),
                pkru: cpu::Pkru::new(state.pkru.get()),
            };
            (regs, Some(cpu::Nested::npt4(root)))
        };
        World {
            regs,
            asid: Asid::new(1),
            nested,
        }
    }

    fn enter(&mut self, vcpu: VcpuId) {
        let index = usize::from(vcpu.0);
        if self.host.is_inside(index) {
            return;
        }
        let entry = self.handle(vcpu).enter().expect("an entry");
        self.host.entered(index);
        self.judge.entered(vcpu);
        let world = self.world(vcpu, entry.root);
        let flush = if entry.flush && !self.faults.keep_tlb {
            Flush::All
        } else {
            Flush::Nothing
        };
        self.vcpus[index].cpu.enter(&world, flush).expect("a root");
        let epoch = self.judge.epoch(vcpu);
        self.judge.renewed(vcpu, epoch);
    }

    /// Makes an access; `Err` is what the judge caught.
    pub(crate) fn access(
        &mut self,
        vcpu: VcpuId,
        va: u64,
        access: Access,
    ) -> Result<Seen, Arc<Mismatch>> {
        self.drive(vcpu, va, access)
            .map_err(|Caught| self.judge.mismatch().expect("it has the report"))
    }

    fn drive(&mut self, vcpu: VcpuId, va: u64, access: Access) -> Result<Seen, Caught> {
        for _ in 0..40 {
            self.enter(vcpu);
            let epoch = self.judge.epoch(vcpu);
            self.judge.renewed(vcpu, epoch);
            let start = self.judge.now();
            let cpu = &mut self.vcpus[usize::from(vcpu.0)].cpu;
            let found = cpu.translate(Va::new(va), access);
            self.tell_marks(vcpu);
            let cpu = &self.vcpus[usize::from(vcpu.0)].cpu;
            let fault = match &found {
                Ok(translation) => {
                    let used = Used {
                        va: Va::new(va),
                        access,
                        translation,
                        start,
                        rip: 0x1000,
                    };
                    self.judge.used(vcpu, cpu, &used)?;
                    return Ok(Seen::Memory(translation.hpa));
                }
                Err(Fault::Violation(_)) => {
                    return Err(self.judge.violated(vcpu, cpu, found.expect_err("a fault")));
                }
                Err(fault) => *fault,
            };
            if let Some(seen) = self.serve(vcpu, va, access, fault)? {
                return Ok(seen);
            }
        }
        panic!("{access:?} at {va:#x} faults for ever");
    }

    /// Tells the judge which accessed and dirty bits the processor set.
    fn tell_marks(&mut self, vcpu: VcpuId) {
        for event in self.vcpus[usize::from(vcpu.0)].cpu.take_events() {
            if let Event::Marked { hpa, .. } = event {
                self.judge.store(hpa, 8, || ());
            }
        }
    }

    fn serve(
        &mut self,
        vcpu: VcpuId,
        va: u64,
        access: Access,
        fault: Fault,
    ) -> Result<Option<Seen>, Caught> {
        let start = self.judge.now();
        let spec = spec_access(access);
        let outcome = match fault {
            Fault::Page { .. } if self.engine == Engine::Shadow => {
                self.exit(vcpu);
                let call = convert::access(spec);
                self.handle(vcpu).handle_fault(Gva::new(va), call)
            }
            Fault::Nested { gpa, code } => {
                self.exit(vcpu);
                let kind = if code.contains(cpu::NpfCode::WRITE) {
                    vmmu::walk::AccessKind::Write
                } else if code.contains(cpu::NpfCode::FETCH) {
                    vmmu::walk::AccessKind::Fetch
                } else {
                    vmmu::walk::AccessKind::Read
                };
                self.handle(vcpu)
                    .handle_nested_fault(Gpa::new(gpa.get()), kind)
            }
            Fault::Page { code, .. } => {
                let code = PageFaultCode::from_bits_truncate(code.bits());
                return self.refuse(vcpu, va, access, GuestFault::Page(code), start);
            }
            Fault::NotCanonical(_) => {
                return self.refuse(vcpu, va, access, GuestFault::NotCanonical, start);
            }
            other => panic!("{other}"),
        };
        self.tell_stores();
        match outcome.expect("memory for all") {
            FaultOutcome::Resume | FaultOutcome::Retry => Ok(None),
            FaultOutcome::InjectPageFault { code, .. } => {
                let code = PageFaultCode::from_bits_truncate(code.bits() ^ self.faults.flip_code);
                self.refuse(vcpu, va, access, GuestFault::Page(code), start)
            }
            FaultOutcome::InjectGeneralProtection => {
                self.refuse(vcpu, va, access, GuestFault::NotCanonical, start)
            }
            FaultOutcome::EmulateMmio { gpa, reason }
            | FaultOutcome::EmulateWrite { gpa, reason } => {
                let emulated = Emulated {
                    va: Gva::new(va),
                    access,
                    gpa,
                    reason: Some(reason),
                    start,
                    rip: 0x1000,
                };
                self.judge.emulated(vcpu, &emulated)?;
                Ok(Some(Seen::Emulated(gpa)))
            }
            other => panic!("{other:?}"),
        }
    }

    fn refuse(
        &self,
        vcpu: VcpuId,
        va: u64,
        access: Access,
        fault: GuestFault,
        start: vmmu_spec::Time,
    ) -> Result<Option<Seen>, Caught> {
        let refused = Refused {
            va: Va::new(va),
            access,
            fault,
            start,
            rip: 0x1000,
        };
        self.judge.refused(vcpu, &refused)?;
        Ok(Some(Seen::Fault(fault)))
    }

    /// Tells the judge of a flush that nobody serves.
    pub(crate) fn judge_flush(&self, vcpu: VcpuId) {
        self.judge.flushed(vcpu, TlbFlush::All);
    }

    /// Returns where the shadow entry that maps an address lies.
    pub(crate) fn shadow_leaf(&self, vcpu: VcpuId, va: u64) -> Hpa {
        let mut table = self.vcpus[usize::from(vcpu.0)].cpu.registers().cr3.get();
        for level in [4, 3, 2] {
            let at = (table & 0xf_ffff_ffff_f000) + (va >> (12 + 9 * (level - 1)) & 511) * 8;
            table = self.host.memory.peek(Hpa::new(at));
            assert_ne!(table & 1, 0, "level {level} is not present");
        }
        Hpa::new((table & 0xf_ffff_ffff_f000) + (va >> 12 & 511) * 8)
    }

    /// Drops what a processor has cached, without telling anybody.
    pub(crate) fn drop_tlb(&mut self, vcpu: VcpuId) {
        self.vcpus[usize::from(vcpu.0)].cpu.flush(Flush::All);
    }
}

/// Returns an access of the processor as the specification's.
pub(crate) fn spec_access(access: Access) -> vmmu_spec::Access {
    vmmu_spec::Access::ALL
        .into_iter()
        .find(|spec| convert::cpu_access(*spec) == access)
        .expect("the two have the same accesses")
}
