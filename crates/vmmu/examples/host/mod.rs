//! The smallest embedder: a few frames of host memory, all of them the process's own. The examples share it.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use vmmu::addr::{Index, Level, Pfn};
use vmmu::gate::Fenced;
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};
use vmmu::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};

/// Frames of guest RAM; guest frame n is host frame n.
pub(crate) const GUEST_FRAMES: u64 = 32;
const FRAMES: u64 = 64;

/// Host memory.
pub(crate) struct Machine {
    words: Vec<AtomicU64>,
    next_table: AtomicU64,
}

impl Machine {
    /// Makes it, with the guest's own tables: frames 1 to 4 map the page at `0x5000` to guest frame 9, writable.
    pub(crate) fn new() -> Self {
        let machine = Self {
            words: (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect(),
            next_table: AtomicU64::new(GUEST_FRAMES),
        };
        for (frame, index, entry) in [
            (1, 0, 0x2003),
            (2, 0, 0x3003),
            (3, 0, 0x4003),
            (4, 5, 0x9003),
        ] {
            machine.word(frame, index).store(entry, SeqCst);
        }
        machine
    }

    /// Returns a word of memory.
    pub(crate) fn word(&self, frame: u64, index: usize) -> &AtomicU64 {
        &self.words[frame as usize * 512 + index]
    }
}

impl TableMemory for Machine {
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        self.word(table.get(), slot.get()).load(SeqCst)
    }
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        self.word(table.get(), slot.get()).store(entry, SeqCst);
    }
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        self.word(table.get(), slot.get()).swap(entry, SeqCst)
    }
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let word = self.word(table.get(), slot.get());
        word.compare_exchange(current, new, SeqCst, SeqCst)
    }
}

impl TableAllocator for Machine {
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        match self.next_table.fetch_add(1, SeqCst) {
            next if next < FRAMES => Ok(Pfn::new(next)),
            _ => Err(OutOfTables),
        }
    }
    fn free_table(&self, _: Pfn) {}
}

impl GuestMemory for Machine {
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        Ok(self.word(frame.frame, usize::from(offset) / 8).load(SeqCst))
    }
    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        let word = self.word(frame.frame, usize::from(offset) / 8);
        Ok(word.compare_exchange(current, new, SeqCst, SeqCst))
    }
}

impl FrameLookup for Machine {
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        Ok(HostFrame {
            pfn: Pfn::new(frame.frame),
            largest: Level::L1,
            writable: true,
        })
    }
}

impl Processors for Machine {
    type Gate = Fenced;
    fn kick(&self, _: VcpuId) {}
}

/// The processor that the guest is shown.
pub(crate) fn cpu() -> CpuModel {
    CpuModel {
        phys_bits: PhysBits::MAX,
        features: CpuFeatures::empty(),
    }
}

/// The registers of a guest in 64-bit mode that uses the tables at frame 1.
pub(crate) fn long_mode() -> PagingState {
    let mut state = PagingState::reset(cpu());
    state.cr0 |= Cr0::PG | Cr0::PE | Cr0::WP;
    state.cr4 |= Cr4::PAE;
    state.efer |= Efer::LME | Efer::LMA;
    state.cr3 = Cr3::new(0x1000);
    state
}
