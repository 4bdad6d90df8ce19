//! The embedder: host traits over a flat memory, as cheap as memory on bare metal.
//!
//! Key type: [`FlatHost`]. Guest frame `n` is host frame [`GUEST`] + `n`, table `n` is host frame [`TABLES`] + `n`.

use core::sync::atomic::{AtomicU64, Ordering};

use vmmu::addr::{Index, Level, Pfn};
use vmmu::gate::{Fenced, Strategy};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};

use crate::memory::Memory;

/// The host frame of guest frame 0.
pub const GUEST: u64 = 0x100_0000;
/// The host frame of table 0.
pub const TABLES: u64 = 0x200_0000;

/// Guest memory and tables as the library sees them, and the gate's strategy.
#[derive(Debug)]
pub struct FlatHost<G = Fenced> {
    /// The memory.
    pub memory: Memory,
    gate: fn() -> G,
}

impl FlatHost {
    /// Makes an embedder with the usual gate.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self::with_gate(memory, Fenced::default)
    }
}

impl<G: Strategy> FlatHost<G> {
    /// Makes an embedder with a gate of choice.
    #[must_use]
    pub fn with_gate(memory: Memory, gate: fn() -> G) -> Self {
        Self { memory, gate }
    }
}

/// Returns the number of a table.
#[inline]
#[must_use]
pub fn table_of(table: Pfn) -> usize {
    (table.get() - TABLES) as usize
}

/// An access to a word, to be counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Load,
    Store,
    Update,
}

/// Notes an access, if accesses are counted.
#[inline(always)]
fn note(access: Access, word: &AtomicU64) {
    #[cfg(feature = "count")]
    {
        use vmmu::count::{Step, line, note};
        let at = line(word);
        note(match access {
            Access::Load => Step::Load(at),
            Access::Store => Step::Store(at),
            Access::Update => Step::Update(at),
        });
    }
    let _ = (access, word);
}

impl<G: Strategy> TableMemory for FlatHost<G> {
    #[inline]
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        let entry = self.memory.entry(table_of(table), slot.get());
        note(Access::Load, entry);
        entry.load(Ordering::Acquire)
    }
    #[inline]
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        let place = self.memory.entry(table_of(table), slot.get());
        note(Access::Store, place);
        place.store(entry, Ordering::Release);
    }
    #[inline]
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        let place = self.memory.entry(table_of(table), slot.get());
        note(Access::Update, place);
        place.swap(entry, Ordering::AcqRel)
    }
    #[inline]
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let place = self.memory.entry(table_of(table), slot.get());
        note(Access::Update, place);
        place.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

impl<G: Strategy> TableAllocator for FlatHost<G> {
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        let table = self.memory.take_table().ok_or(OutOfTables)?;
        Ok(Pfn::new(TABLES + table as u64))
    }
    fn free_table(&self, table: Pfn) {
        self.memory.put_table(table_of(table));
    }
}

impl<G: Strategy> GuestMemory for FlatHost<G> {
    #[inline]
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        let word = self.memory.word(frame.frame, usize::from(offset) / 8);
        note(Access::Load, word);
        Ok(word.load(Ordering::Acquire))
    }
    #[inline]
    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        let word = self.memory.word(frame.frame, usize::from(offset) / 8);
        note(Access::Update, word);
        Ok(word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }
    fn diff_table(
        &self,
        frame: BackedFrame,
        copy: &[u64; 512],
        mask: u64,
    ) -> Result<[u64; 8], GuestMemoryError> {
        let mut differing = [0; 8];
        let words = self.memory.frame(frame.frame).iter().zip(copy);
        for (i, (word, old)) in words.enumerate() {
            let differs = (word.load(Ordering::Acquire) ^ old) & mask != 0;
            differing[i / 64] |= u64::from(differs) << (i % 64);
        }
        Ok(differing)
    }
}

impl<G: Strategy> FrameLookup for FlatHost<G> {
    #[inline]
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        Ok(HostFrame {
            pfn: Pfn::new(frame.token.0 + frame.frame),
            largest: Level::L1,
            writable: true,
        })
    }
}

impl<G: Strategy> Processors for FlatHost<G> {
    type Gate = G;
    fn gate(&self) -> G {
        (self.gate)()
    }
    fn kick(&self, _: VcpuId) {}
    fn relax(&self, round: u32) {
        if round % 256 == 255 {
            std::thread::yield_now();
        }
        core::hint::spin_loop();
    }
}
