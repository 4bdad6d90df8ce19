//! One processor with its hypervisor: what an access, MOV to CR3 or INVLPG of the guest makes the library do.
//!
//! Key type: [`Machine`]. There is no TLB: each access walks the tables that the library made, sets A and D in them, and faults where
//! they refuse.

use core::sync::atomic::Ordering;

use vmmu::addr::{Gfn, Gpa, Gva, Hpa, Index, Level, Pfn};
use vmmu::host::{MemoryToken, TableMemory, VcpuId};
use vmmu::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};
use vmmu::walk::{Access, AccessKind};
use vmmu::{
    AddressSpace, Config, Engine, Error, Event, FaultOutcome, ForeignWrites, Mmu, SlotConfig,
    SlotFlags, Stats, TlbFlush, Vcpu,
};

use crate::host::FlatHost;
use crate::meter::{Meter, Reading};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Exits that one access may take before the benchmark gives up.
const PATIENCE: u32 = 64;

/// Why an operation could not be played.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The library failed.
    #[error("the library: {0}")]
    Library(#[from] Error),
    /// An answer that the benchmark has no use for.
    #[error("unexpected answer to an access to {0}: {1:?}")]
    Answer(Gva, FaultOutcome),
    /// An access faults for ever.
    #[error("an access to {0} makes no progress")]
    Stuck(Gva),
}

/// What an access came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Accessed {
    /// The access was made, at this guest-physical address.
    Done(Gpa),
    /// The hypervisor emulates the write to this address, and reports it.
    Emulate(Gpa),
    /// The guest got a page fault.
    Faulted,
}

/// A processor, its guest's memory, and the library.
#[derive(Debug)]
pub struct Machine<'m> {
    mmu: &'m Mmu<FlatHost>,
    vcpu: Vcpu<'m, FlatHost>,
    root: Hpa,
    meter: Meter,
    before: Stats,
}

/// Makes the library's part of a machine.
///
/// # Errors
/// [`Error`], from the library.
pub fn new_mmu(engine: Engine, largest: Level) -> Result<Mmu<FlatHost>, Error> {
    let cpu = cpu();
    let mut config = Config::new(engine, 1, FlatHost::FRAMES, cpu);
    config.unsync_level = Level::L4;
    // One processor: an emulated write is reported before it goes on.
    config.foreign_writes = ForeignWrites::ReportedFirst;
    let mmu = Mmu::new(FlatHost::new(largest), config)?;
    mmu.add_slot(&SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(0),
        frames: FlatHost::FRAMES,
        token: MemoryToken(FlatHost::MEMORY),
        flags: SlotFlags::empty(),
    })?;
    Ok(mmu)
}

fn cpu() -> CpuModel {
    CpuModel {
        phys_bits: PhysBits::MAX,
        features: CpuFeatures::PAGES_1G,
    }
}

impl<'m> Machine<'m> {
    /// Makes a processor in long mode, its tables at `cr3`.
    ///
    /// # Errors
    /// [`Trouble::Library`].
    pub fn new(mmu: &'m Mmu<FlatHost>, cr3: Gpa) -> Result<Self, Trouble> {
        let vcpu = mmu.vcpu(VcpuId(0))?;
        let mut state = PagingState::reset(cpu());
        state.cr0 = Cr0::PG | Cr0::PE | Cr0::WP | Cr0::ET;
        state.cr4 = Cr4::PAE;
        state.efer = Efer::LME | Efer::LMA | Efer::NXE;
        state.cr3 = Cr3::new(cr3.get());
        vcpu.set_paging(&state, AddressSpace::Normal)?;
        let root = vcpu.enter()?.root;
        Ok(Self {
            mmu,
            vcpu,
            root,
            meter: Meter::default(),
            before: mmu.stats(),
        })
    }

    /// Starts measuring.
    pub fn start(&mut self) {
        self.before = self.mmu.stats();
        self.meter.start();
    }

    /// Stops measuring.
    pub fn stop(&mut self) -> Reading {
        self.meter.stop()
    }

    /// Returns what the library did since measuring started.
    pub fn events(&self) -> Vec<(Event, u64)> {
        let after = self.mmu.stats();
        after
            .iter()
            .map(|(event, n)| (event, n - self.before.get(event)))
            .filter(|(_, n)| *n != 0)
            .collect()
    }

    /// Runs an empty measured region.
    pub fn nothing(&mut self) {
        self.meter.run(|| ());
    }

    /// Reads guest memory as the guest does, or as a device does.
    pub fn peek(&self, gpa: Gpa) -> u64 {
        self.mmu.host().word(gpa).load(Ordering::Acquire)
    }

    /// Stores in guest memory, unseen.
    pub fn poke(&self, gpa: Gpa, value: u64) {
        self.mmu.host().word(gpa).store(value, Ordering::Release);
    }

    /// MOV to CR3.
    ///
    /// # Errors
    /// [`Trouble::Library`].
    pub fn load_cr3(&mut self, cr3: Gpa) -> Result<(), Trouble> {
        let vcpu = self.vcpu;
        let entered = self.meter.run(|| {
            vcpu.exited();
            vcpu.load_cr3(Cr3::new(cr3.get()))?;
            vcpu.enter()
        });
        self.entered(entered)
    }

    /// INVLPG.
    ///
    /// # Errors
    /// [`Trouble::Library`].
    pub fn invlpg(&mut self, gva: Gva) -> Result<(), Trouble> {
        let vcpu = self.vcpu;
        let entered = self.meter.run(|| {
            vcpu.exited();
            vcpu.invalidate(TlbFlush::Address(gva))?;
            vcpu.enter()
        });
        self.entered(entered)
    }

    /// Stores in guest memory what the library asked to emulate, reports it and goes on.
    ///
    /// # Errors
    /// [`Trouble::Library`].
    pub fn emulate(&mut self, gpa: Gpa, value: u64) -> Result<(), Trouble> {
        self.poke(gpa, value);
        let (mmu, vcpu) = (self.mmu, self.vcpu);
        let entered = self.meter.run(|| {
            mmu.guest_wrote(gpa, 8);
            vcpu.enter()
        });
        self.entered(entered)
    }

    fn entered(&mut self, entered: Result<vmmu::Entry, Error>) -> Result<(), Trouble> {
        self.root = entered?.root;
        self.mmu.host().launder();
        Ok(())
    }

    /// Makes an access of the guest's kernel.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn access(&mut self, gva: Gva, kind: AccessKind) -> Result<Accessed, Trouble> {
        let access = match kind {
            AccessKind::Read => Access::READ,
            AccessKind::Write => Access::WRITE,
            AccessKind::Fetch => Access::FETCH,
        };
        for _ in 0..PATIENCE {
            if let Some(gpa) = self.walk(gva.get(), kind) {
                return Ok(Accessed::Done(gpa));
            }
            let vcpu = self.vcpu;
            let answered = self.meter.run(|| {
                vcpu.exited();
                let outcome = vcpu.handle_fault(gva, access)?;
                let entry = match outcome {
                    FaultOutcome::EmulateWrite { .. } => None,
                    _ => Some(vcpu.enter()?),
                };
                Ok::<_, Error>((outcome, entry))
            });
            let (outcome, entry) = answered?;
            if let Some(entry) = entry {
                self.entered(Ok(entry))?;
            }
            match outcome {
                FaultOutcome::Resume | FaultOutcome::Retry => {}
                FaultOutcome::InjectPageFault { .. } => return Ok(Accessed::Faulted),
                FaultOutcome::EmulateWrite { gpa, .. } => return Ok(Accessed::Emulate(gpa)),
                other => return Err(Trouble::Answer(gva, other)),
            }
        }
        Err(Trouble::Stuck(gva))
    }

    /// Makes an access below nested tables, to a guest-physical address.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn access_nested(&mut self, gpa: Gpa, kind: AccessKind) -> Result<(), Trouble> {
        for _ in 0..PATIENCE {
            if self.walk(gpa.get(), kind).is_some() {
                return Ok(());
            }
            let vcpu = self.vcpu;
            let answered = self.meter.run(|| {
                vcpu.exited();
                let outcome = vcpu.handle_nested_fault(gpa, kind)?;
                Ok::<_, Error>((outcome, vcpu.enter()?))
            });
            let (outcome, entry) = answered?;
            self.entered(Ok(entry))?;
            if outcome != FaultOutcome::Resume {
                return Err(Trouble::Answer(Gva::new(gpa.get()), outcome));
            }
        }
        Err(Trouble::Stuck(Gva::new(gpa.get())))
    }

    /// Walks the library's tables as a processor does; the guest-physical address behind the frame reached, or `None` for a fault.
    fn walk(&self, address: u64, kind: AccessKind) -> Option<Gpa> {
        let mut table = Pfn::containing(self.root);
        for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
            let index = level.index(address);
            let entry = self.look(table, index, kind)?;
            if level > Level::L1 && entry & LARGE == 0 {
                table = Pfn::new((entry & FRAME) >> 12);
                continue;
            }
            if kind == AccessKind::Write && entry & DIRTY == 0 {
                self.set(table, index, DIRTY);
            }
            let inside = address & (level.bytes() - 1);
            return Some(Gpa::new(
                (entry & FRAME & !(level.bytes() - 1)) + inside - (FlatHost::MEMORY << 12),
            ));
        }
        None
    }

    fn look(&self, table: Pfn, index: Index, kind: AccessKind) -> Option<u64> {
        let entry = self.mmu.host().load(table, index);
        let refused = entry & PRESENT == 0
            || (kind == AccessKind::Write && entry & WRITABLE == 0)
            || (kind == AccessKind::Fetch && entry & NO_EXECUTE != 0);
        if refused {
            return None;
        }
        if entry & ACCESSED == 0 {
            self.set(table, index, ACCESSED);
        }
        Some(entry)
    }

    fn set(&self, table: Pfn, index: Index, bits: u64) {
        let entry = self.mmu.host().load(table, index);
        // One processor, and the library is not running: nobody can have come between.
        self.mmu.host().store(table, index, entry | bits);
    }
}
