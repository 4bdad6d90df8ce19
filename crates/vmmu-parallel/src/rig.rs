//! An MMU with its guest: a fault is an exit, the library's answer, an entry, and the access through the library's tables.
//!
//! Key types: [`Rig`], [`Locking`] (the library's own, or one lock round every call), [`Worker`] (a vCPU in its guest).

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::time::Instant;

use spin::mutex::{SpinMutex, SpinMutexGuard};
use vmmu::addr::{Gfn, Gva, Index, Level, Pfn};
use vmmu::host::{MemoryToken, VcpuId};
use vmmu::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};
use vmmu::walk::Access;
use vmmu::{
    AddressSpace, Config, Engine, FaultOutcome, ForeignWrites, Mmu, SlotConfig, SlotFlags, Vcpu,
};

use crate::Trouble;
use crate::guest::forget_use;
use crate::host::{FlatHost, GUEST, table_of};
use crate::load::{Layout, Load, Size};
use crate::memory::{Apart, Memory, WORDS};

const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// P and R/W.
const WRITABLE: u64 = 3;

/// What keeps the vCPUs apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locking {
    /// The library's own locks.
    Own,
    /// One lock round every call of the library, besides.
    One,
}

/// An MMU with its guest.
#[derive(Debug)]
pub struct Rig {
    mmu: Mmu<FlatHost>,
    layout: Layout,
    one: Apart<SpinMutex<()>>,
}

pub(crate) fn cpu() -> CpuModel {
    CpuModel {
        phys_bits: PhysBits::MAX,
        features: CpuFeatures::PAGES_1G,
    }
}

impl Rig {
    /// Makes an MMU, and the guest's tables for a load.
    ///
    /// # Errors
    /// [`Trouble::Library`].
    pub fn new(load: Load, size: Size) -> Result<Self, Trouble> {
        let memory = Memory::new(size.frames() as usize, size.tables());
        let layout = Layout::new(&memory, load, size);
        let mut config = Config::new(Engine::Shadow, size.workers as u16, size.frames(), cpu());
        // No write is emulated.
        config.foreign_writes = ForeignWrites::ReportedFirst;
        let mmu = Mmu::new(FlatHost::new(memory), config)?;
        mmu.add_slot(&SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(0),
            frames: size.frames(),
            token: MemoryToken(GUEST),
            flags: SlotFlags::empty(),
        })?;
        Ok(Self {
            mmu,
            layout,
            one: Apart(SpinMutex::new(())),
        })
    }

    /// Returns the MMU.
    #[must_use]
    pub fn mmu(&self) -> &Mmu<FlatHost> {
        &self.mmu
    }

    /// Returns what the guest maps.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    #[inline]
    fn lock_whole(&self) -> Whole<'_> {
        #[cfg(feature = "count")]
        vmmu::count::note(vmmu::count::Step::Lock(vmmu::count::line(&self.one)));
        Whole {
            rig: self,
            _guard: self.one.0.lock(),
        }
    }

    /// Puts a worker's vCPU on its root.
    ///
    /// # Errors
    /// [`Trouble::Library`].
    pub fn worker(&self, worker: u64, locking: Locking) -> Result<Worker<'_>, Trouble> {
        let vcpu = self.mmu.vcpu(VcpuId(worker as u16))?;
        vcpu.set_paging(&paging(self.layout.root(worker)), AddressSpace::Normal)?;
        Ok(Worker {
            rig: self,
            vcpu,
            worker,
            locking,
            between: Duration::ZERO,
        })
    }
}

/// Returns the state of a vCPU in long mode whose tables are at `root`.
pub(crate) fn paging(root: Gfn) -> PagingState {
    let mut state = PagingState::reset(cpu());
    state.cr0 = Cr0::PG | Cr0::PE | Cr0::WP | Cr0::ET;
    state.cr4 = Cr4::PAE;
    state.efer = Efer::LME | Efer::LMA | Efer::NXE;
    state.cr3 = Cr3::new(root.get() << 12);
    state
}

/// Walks the library's tables as a processor does for a write; returns the frame.
pub(crate) fn walk(memory: &Memory, root: Pfn, gva: Gva) -> Option<Pfn> {
    let mut table = root;
    for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
        let index: Index = level.index(gva.get());
        let entry = memory.entry(table_of(table), index.get());
        let entry = entry.load(Ordering::Relaxed);
        if entry & WRITABLE != WRITABLE {
            return None;
        }
        table = Pfn::new((entry & FRAME) >> 12);
    }
    Some(table)
}

/// The one lock, held.
struct Whole<'r> {
    rig: &'r Rig,
    _guard: SpinMutexGuard<'r, ()>,
}

impl Drop for Whole<'_> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(feature = "count")]
        vmmu::count::note(vmmu::count::Step::Unlock(vmmu::count::line(&self.rig.one)));
        let _ = self.rig;
    }
}

/// A vCPU that its thread drives.
#[derive(Clone, Copy, Debug)]
pub struct Worker<'r> {
    rig: &'r Rig,
    vcpu: Vcpu<'r, FlatHost>,
    worker: u64,
    locking: Locking,
    between: Duration,
}

impl Worker<'_> {
    /// Touches every page of its own once, so that the library knows them, and has tables for them.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn warm_up(&self) -> Result<(), Trouble> {
        let layout = self.rig.layout();
        self.touch_all(layout.size().pages, |page| {
            layout.own_page(self.worker, page)
        })
    }

    /// Takes the pages that it and `running` workers will touch away from the tables, which stay, and lets the guest forget that it used them: each
    /// faults again. Each of the workers does its part.
    pub fn renew(&self, running: u64) {
        let (mmu, layout) = (self.rig.mmu(), self.rig.layout());
        for area in (self.worker..layout.size().workers).step_by(running as usize) {
            let (first, frames) = layout.taken(area);
            drop(mmu.invalidate_begin(first, frames));
        }
        for page in 0..layout.pages() {
            let (gva, _) = layout.page(self.worker, page);
            forget_use(&mmu.host().memory, layout.root(self.worker), gva);
        }
    }

    /// Lets time pass after each fault: for the world switch and what the guest does.
    #[must_use]
    pub fn pausing(self, between: Duration) -> Self {
        Self { between, ..self }
    }

    fn pause(&self) {
        if self.between != Duration::ZERO {
            let begun = Instant::now();
            while begun.elapsed() < self.between {
                core::hint::spin_loop();
            }
        }
    }

    /// Touches its pages: each faults once. Calls `meet` where the load wants the workers to wait for each other.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn run(&self, meet: impl Fn()) -> Result<(), Trouble> {
        let layout = self.rig.layout();
        let every = layout.load().meets_after(layout.size());
        let every = every.unwrap_or(u64::MAX);
        self.touch_all(layout.pages(), |page| {
            if page % every == every - 1 {
                meet();
            }
            layout.page(self.worker, page)
        })
    }

    /// Touches one of its pages.
    #[cfg(feature = "count")]
    pub(crate) fn touch_page(&self, page: u64) -> Result<(), Trouble> {
        self.touch(self.rig.layout.page(self.worker, page))
    }

    /// Enters the guest, or leaves it, for who makes the accesses one by one.
    #[cfg(feature = "count")]
    pub(crate) fn vcpu(&self) -> Vcpu<'_, FlatHost> {
        self.vcpu
    }

    #[inline]
    fn touch_all(&self, pages: u64, of: impl Fn(u64) -> (Gva, Gfn)) -> Result<(), Trouble> {
        let _ = self.vcpu.enter()?;
        let done = (0..pages).map(of).try_for_each(|page| {
            self.pause();
            self.touch(page)
        });
        self.vcpu.exited();
        done
    }

    /// Touches a page that nothing maps yet.
    #[inline]
    fn touch(&self, (gva, gfn): (Gva, Gfn)) -> Result<(), Trouble> {
        let root = self.fault(gva)?;
        let wanted = GUEST + gfn.get();
        let found = walk(&self.rig.mmu.host().memory, root, gva).map(Pfn::get);
        if found != Some(wanted) {
            return Err(Trouble::WrongFrame { gva, found, wanted });
        }
        // A line for each worker, though the frame may be shared.
        let word = self
            .rig
            .mmu
            .host()
            .memory
            .word(gfn.get(), self.worker as usize * 8 % WORDS);
        word.store(gva.get(), Ordering::Relaxed);
        Ok(())
    }

    /// Leaves the guest with a page fault, and enters it again; returns the root.
    #[inline]
    fn fault(&self, gva: Gva) -> Result<Pfn, Trouble> {
        loop {
            self.vcpu.exited();
            let outcome = match self.locking {
                Locking::Own => self.vcpu.handle_fault(gva, Access::WRITE)?,
                Locking::One => {
                    let _whole = self.rig.lock_whole();
                    self.vcpu.handle_fault(gva, Access::WRITE)?
                }
            };
            let entry = self.vcpu.enter()?;
            match outcome {
                FaultOutcome::Resume => return Ok(Pfn::containing(entry.root)),
                FaultOutcome::Retry => {}
                other => return Err(Trouble::Answer(gva, other)),
            }
        }
    }
}

#[cfg(test)]
mod a_fault {
    use super::{Locking, Rig};
    use crate::load::{Load, Size};
    use vmmu::Event;

    #[test]
    fn happens_once_for_each_page_of_each_load_and_again_after_a_renewal() {
        let size = Size {
            workers: 2,
            pages: 4096,
        };
        for load in Load::ALL {
            let rig = Rig::new(load, size).unwrap();
            let workers = [0, 1].map(|worker| rig.worker(worker, Locking::Own).unwrap());
            workers.iter().for_each(|worker| worker.warm_up().unwrap());
            for _ in 0..3 {
                workers.iter().for_each(|worker| worker.renew(2));
                let before = rig.mmu().stats().get(Event::FaultFixed);
                workers.iter().for_each(|worker| worker.run(|| {}).unwrap());
                let faults = rig.mmu().stats().get(Event::FaultFixed) - before;
                assert_eq!(faults, 2 * rig.layout().pages(), "{load:?}");
                assert_eq!(rig.mmu().stats().get(Event::Recycle), 0, "{load:?}");
            }
        }
    }
}
