//! A small embedder for the crate's own tests: tables and guest RAM as arrays of atomics, fit for loom.
//!
//! Key types: [`TestHost`], [`Guest`] (writes long-mode tables into the RAM), [`World`] (an MMU with a guest of two vCPUs).
//!
//! Host frames below [`RAM`] are tables, guest frame `g` is host frame `RAM + g`: nowhere the same number, so that a translation left out shows.
//! A frame of memory has [`TABLE_SLOTS`] words, which loom shrinks.

use crate::addr::{Gfn, Gva, Index, Level, Pfn, TABLE_SLOTS};
use crate::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    MemoryToken, Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};
use crate::page::{Page, PageId, Record};
use crate::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};
use crate::spte::Spte;
use crate::sync::{AtomicU64, Ordering};
use crate::walk::Access;
use crate::{AddressSpace, Config, Engine, FaultOutcome, Mmu, SlotConfig, SlotFlags, SlotId, Vcpu};
use alloc::vec::Vec;

/// The first host frame of guest RAM; a multiple of 2 MiB, so that large leaves are possible.
pub(crate) const RAM: u64 = 1 << 18;
/// What a freed table is filled with: present and pointing nowhere.
const POISON: u64 = 0xdead_0000_0fff_f001;
/// Tells in the map of host frames that there is none.
const HOLE: u64 = u64::MAX;

/// The embedder.
#[derive(Debug)]
pub(crate) struct TestHost {
    tables: Vec<AtomicU64>,
    ram: Vec<AtomicU64>,
    /// By table frame: 1 if it is allocated.
    taken: Vec<AtomicU64>,
    /// By guest frame: the host frame, shifted left by one, and whether it is writable in bit 0.
    map: Vec<AtomicU64>,
    /// The largest block that look-ups allow.
    largest: AtomicU64,
    /// A guest frame that is not resident until it is looked up, as number + 1.
    pub(crate) absent: AtomicU64,
    /// Allocations that succeed from now on.
    pub(crate) credit: AtomicU64,
}

impl TestHost {
    /// Makes a host with so many frames for tables and of RAM.
    pub(crate) fn new(tables: usize, ram: usize) -> Self {
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            tables: words(tables * TABLE_SLOTS),
            ram: words(ram * TABLE_SLOTS),
            taken: words(tables),
            map: (0..ram as u64)
                .map(|g| AtomicU64::new((RAM + g) << 1 | 1))
                .collect(),
            largest: AtomicU64::new(1),
            absent: AtomicU64::new(0),
            credit: AtomicU64::new(u64::MAX),
        }
    }

    fn table(&self, table: Pfn, slot: Index) -> &AtomicU64 {
        &self.tables[table.get() as usize * TABLE_SLOTS + slot.get()]
    }

    fn gpte(&self, frame: BackedFrame, offset: u16) -> Result<&AtomicU64, GuestMemoryError> {
        let index = usize::from(offset) / 8 % TABLE_SLOTS;
        if self.absent.load(Ordering::SeqCst) == frame.gfn.get() + 1 {
            return Err(GuestMemoryError::NotResident);
        }
        self.ram
            .get((frame.token.0 + frame.frame) as usize * TABLE_SLOTS + index)
            .ok_or(GuestMemoryError::OutOfRange)
    }

    /// Returns a word of guest RAM.
    pub(crate) fn word(&self, gfn: Gfn, index: usize) -> &AtomicU64 {
        &self.ram[gfn.get() as usize * TABLE_SLOTS + index % TABLE_SLOTS]
    }

    /// Lets look-ups answer with blocks of up to `level`.
    pub(crate) fn allow(&self, level: Level) {
        self.largest.store(u64::from(level.get()), Ordering::SeqCst);
    }

    /// Changes what backs a guest frame.
    pub(crate) fn back(&self, gfn: Gfn, backing: Option<(Pfn, bool)>) {
        let packed = backing.map_or(HOLE, |(pfn, writable)| pfn.get() << 1 | u64::from(writable));
        self.map[gfn.get() as usize].store(packed, Ordering::SeqCst);
    }
}

impl TableMemory for TestHost {
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        self.table(table, slot).load(Ordering::Acquire)
    }
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        self.table(table, slot).store(entry, Ordering::Release);
    }
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        self.table(table, slot).swap(entry, Ordering::AcqRel)
    }
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        self.table(table, slot)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

impl TableAllocator for TestHost {
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        self.credit
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |c| c.checked_sub(1))
            .map_err(|_| OutOfTables)?;
        let free = |t: &AtomicU64| {
            t.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let table = self.taken.iter().position(free).ok_or(OutOfTables)?;
        for word in &self.tables[table * TABLE_SLOTS..][..TABLE_SLOTS] {
            word.store(0, Ordering::Release);
        }
        Ok(Pfn::new(table as u64))
    }

    fn free_table(&self, table: Pfn) {
        let at = table.get() as usize;
        for word in &self.tables[at * TABLE_SLOTS..][..TABLE_SLOTS] {
            word.store(POISON, Ordering::Release);
        }
        assert_eq!(
            self.taken[at].swap(0, Ordering::AcqRel),
            1,
            "a table is freed once"
        );
    }
}

impl GuestMemory for TestHost {
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        Ok(self.gpte(frame, offset)?.load(Ordering::Acquire))
    }

    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        Ok(self.gpte(frame, offset)?.compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        ))
    }
}

impl FrameLookup for TestHost {
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        let at = (frame.token.0 + frame.frame) as usize;
        let was_absent = frame.gfn.get() + 1;
        let _ = self
            .absent
            .compare_exchange(was_absent, 0, Ordering::SeqCst, Ordering::SeqCst);
        match self.map.get(at).map(|m| m.load(Ordering::Acquire)) {
            None | Some(HOLE) => Err(LookupError::Hole),
            Some(packed) => Ok(HostFrame {
                pfn: Pfn::new(packed >> 1),
                largest: Level::new(self.largest.load(Ordering::Relaxed) as u8)
                    .unwrap_or(Level::L1),
                writable: packed & 1 != 0,
            }),
        }
    }
}

impl Processors for TestHost {
    type Gate = crate::gate::Fenced;
    fn kick(&self, _: VcpuId) {}
    fn relax(&self, _: u32) {
        #[cfg(loom)]
        loom::thread::yield_now();
    }
}

/// The processor that the tests' guests believe to have.
pub(crate) const CPU: CpuModel = CpuModel {
    phys_bits: PhysBits::MAX,
    features: CpuFeatures::PAGES_1G,
};

/// Makes an MMU over a [`TestHost`] and one slot that holds all of its RAM. `adjust` may change the configuration.
pub(crate) fn machine(
    engine: Engine,
    (tables, ram): (usize, usize),
    adjust: impl FnOnce(&mut Config),
) -> (Mmu<TestHost>, SlotId) {
    let mut config = Config::new(engine, 2, ram as u64, CPU);
    config.stripes = if cfg!(loom) { 2 } else { 16 };
    config.max_pages = if cfg!(loom) { 16 } else { 2048 };
    config.prefetch = 0;
    adjust(&mut config);
    let mmu = Mmu::new(TestHost::new(tables, ram), config).expect("the configuration is sound");
    let slot = mmu
        .add_slot(&SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(0),
            frames: ram as u64,
            token: MemoryToken(0),
            flags: SlotFlags::empty(),
        })
        .expect("the first slot fits");
    (mmu, slot)
}

/// Returns the state of a long-mode guest with 4-level tables at `cr3`.
pub(crate) fn long_mode(cr3: Gfn) -> PagingState {
    let mut state = PagingState::reset(CPU);
    state.cr0 |= Cr0::PG | Cr0::PE | Cr0::WP;
    state.cr4 |= Cr4::PAE;
    state.efer |= Efer::LME | Efer::LMA | Efer::NXE;
    state.cr3 = Cr3::new(cr3.address().get());
    state
}

/// P, R/W and U/S.
pub(crate) const PWU: u64 = 7;
/// A and D.
pub(crate) const AD: u64 = 0x60;

/// Makes long-mode tables in guest RAM: those of the guest frames from `root` on.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) root: Gfn,
    next: u64,
}

impl Guest {
    pub(crate) fn new(root: Gfn) -> Self {
        Self {
            root,
            next: root.get() + 1,
        }
    }

    /// Writes the entries that lead to a leaf of `level` for `gva`, and the leaf. Existing tables are used. Returns the last table's frame.
    pub(crate) fn map(
        &mut self,
        host: &TestHost,
        gva: u64,
        (gfn, level): (Gfn, Level),
        bits: u64,
    ) -> Gfn {
        let mut table = self.root;
        for above in [Level::L4, Level::L3, Level::L2] {
            if above == level {
                break;
            }
            let word = host.word(table, above.index(gva).get());
            let entry = word.load(Ordering::SeqCst);
            table = if entry & 1 != 0 {
                Gfn::new((entry & 0x000f_ffff_ffff_f000) >> 12)
            } else {
                self.next += 1;
                let new = Gfn::new(self.next - 1);
                word.store(new.address().get() | PWU, Ordering::SeqCst);
                new
            };
        }
        let large = if level > Level::L1 { 1 << 7 } else { 0 };
        host.word(table, level.index(gva).get())
            .store(gfn.address().get() | large | bits, Ordering::SeqCst);
        table
    }
}

/// An MMU over 8 MiB of guest RAM, and a guest with two vCPUs in long mode.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) mmu: Mmu<TestHost>,
    pub(crate) ram: SlotId,
}

impl World {
    /// The frames of RAM.
    pub(crate) const FRAMES: usize = 2048;
    /// The guest's root table.
    pub(crate) const ROOT: Gfn = Gfn::new(100);

    /// Makes the MMU. `adjust` may change the configuration.
    pub(crate) fn new(engine: Engine, adjust: impl FnOnce(&mut Config)) -> Self {
        Self::sized(engine, (64, Self::FRAMES), adjust)
    }

    /// Makes the MMU with room for so many tables, and so many frames of RAM.
    pub(crate) fn sized(
        engine: Engine,
        (tables, frames): (usize, usize),
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let (mmu, ram) = machine(engine, (tables, frames), adjust);
        Self { mmu, ram }
    }

    /// Makes the MMU and lets the guest touch so much of its memory that the bound on bookkeeping has room for thousands of further mappings.
    pub(crate) fn roomy(flags: SlotFlags) -> (Self, Guest) {
        const BLOCKS: u64 = 400;
        let world = Self::sized(Engine::Shadow, (64, 32 << 10), |_| {});
        world
            .mmu
            .set_slot_flags(world.ram, flags)
            .expect("there is memory for a log");
        let mut guest = Guest::new(Self::ROOT);
        // One frame of each 64.
        let places = (0..BLOCKS).map(|i| ((1 << 30) + (i << 12), Gfn::new(1024 + 64 * i)));
        for (gva, gfn) in places.clone() {
            guest.map(world.mmu.host(), gva, (gfn, Level::L1), PWU | AD);
        }
        world.set_root();
        for (gva, _) in places {
            assert_eq!(world.touch(gva, Access::READ), FaultOutcome::Resume);
        }
        (world, guest)
    }

    /// Returns vCPU `id`.
    pub(crate) fn vcpu(&self, id: u16) -> Vcpu<'_, TestHost> {
        self.mmu.vcpu(VcpuId(id)).expect("the guest has two")
    }

    /// Puts vCPU 0 into long mode.
    pub(crate) fn set_root(&self) {
        self.vcpu(0)
            .set_paging(&long_mode(Self::ROOT), AddressSpace::Normal)
            .expect("there is memory for a root");
    }

    /// Lets vCPU 0 fault.
    pub(crate) fn touch(&self, gva: u64, access: Access) -> FaultOutcome {
        self.vcpu(0)
            .handle_fault(Gva::new(gva), access)
            .expect("there is memory")
    }

    /// Lets vCPU 0 load CR3 again.
    pub(crate) fn reload(&self) {
        self.vcpu(0)
            .load_cr3(Cr3::new(Self::ROOT.address().get()))
            .expect("the root is there");
    }

    pub(crate) fn page(&self, id: PageId) -> &Page {
        self.mmu.pool.get(id)
    }

    /// Follows the shadow tables of vCPU 0 to the slot for `gva` in the page of `level`.
    pub(crate) fn slot(&self, gva: u64, level: Level) -> (PageId, Index) {
        let local = self.vcpu(0).shared.local.claim().expect("no call runs");
        let mut id = local.roots.referenced().expect("a root is loaded");
        loop {
            let at = self.page(id).role().level();
            let index = at.index(gva);
            if at == level {
                return (id, index);
            }
            let Record::Link(child) = self.page(id).record(index) else {
                panic!("{gva:#x} has no page of {level:?}");
            };
            id = child;
        }
    }

    /// Returns the SPTE in a slot.
    pub(crate) fn spte(&self, (id, slot): (PageId, Index)) -> Spte {
        Spte::new(self.mmu.host.load(self.page(id).table(), slot))
    }

    /// Overwrites the SPTE in a slot, against every rule.
    pub(crate) fn poke(&self, (id, slot): (PageId, Index), spte: Spte) {
        self.mmu.host.store(self.page(id).table(), slot, spte.raw());
    }
}
