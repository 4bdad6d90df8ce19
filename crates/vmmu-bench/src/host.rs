//! The cheapest embedder that there can be: guest memory and tables are two flat arrays of words.
//!
//! Key type: [`FlatHost`]. Guest frame `n` is host frame `n` + [`FlatHost::MEMORY`], tables come from [`FlatHost::TABLES`] on.
//!
//! Invariants:
//! 1. Freed tables wait in `dirty` until [`FlatHost::launder`] has zeroed them, outside the measured region: zeroing is the embedder's part.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::sync::PoisonError;

use vmmu::addr::{Gpa, Index, Level, Pfn};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};

const WORDS: usize = 512;
/// Frames of guest memory: 64 MiB.
const GUEST_FRAMES: usize = 0x4000;
const TABLE_FRAMES: usize = 0x400;

#[derive(Debug, Default)]
struct Tables {
    free: Vec<Pfn>,
    dirty: Vec<Pfn>,
}

/// Guest memory and tables.
#[derive(Debug)]
pub struct FlatHost {
    memory: Box<[AtomicU64]>,
    tables: Box<[AtomicU64]>,
    list: Mutex<Tables>,
    largest: Level,
}

impl FlatHost {
    /// The host frame of guest frame 0.
    pub const MEMORY: u64 = 0x10_0000;
    /// The host frame of the first table.
    pub const TABLES: u64 = 0x20_0000;
    /// The frames of guest memory.
    pub const FRAMES: u64 = GUEST_FRAMES as u64;

    /// Makes zeroed memory, contiguous in blocks of `largest`.
    pub fn new(largest: Level) -> Self {
        let words = |frames: usize| (0..frames * WORDS).map(|_| AtomicU64::new(0)).collect();
        let free = (0..TABLE_FRAMES as u64)
            .rev()
            .map(|n| Pfn::new(Self::TABLES + n))
            .collect();
        Self {
            memory: words(GUEST_FRAMES),
            tables: words(TABLE_FRAMES),
            list: Mutex::new(Tables {
                free,
                dirty: Vec::with_capacity(TABLE_FRAMES),
            }),
            largest,
        }
    }

    /// Zeroes the tables that were freed.
    pub fn launder(&self) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(table) = list.dirty.pop() {
            for slot in 0..WORDS {
                self.table(table, Index::truncate(slot))
                    .store(0, Ordering::Relaxed);
            }
            list.free.push(table);
        }
    }

    /// Returns the word of guest memory at `gpa`.
    #[inline]
    pub fn word(&self, gpa: Gpa) -> &AtomicU64 {
        &self.memory[gpa.get() as usize / 8 % (GUEST_FRAMES * WORDS)]
    }

    #[inline]
    fn table(&self, table: Pfn, slot: Index) -> &AtomicU64 {
        let at = (table.get() - Self::TABLES) as usize * WORDS + slot.get();
        &self.tables[at % (TABLE_FRAMES * WORDS)]
    }

    #[inline]
    fn entry(&self, frame: BackedFrame, offset: u16) -> &AtomicU64 {
        let at = frame.frame as usize * WORDS + usize::from(offset / 8);
        &self.memory[at % (GUEST_FRAMES * WORDS)]
    }
}

impl TableMemory for FlatHost {
    #[inline]
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        self.table(table, slot).load(Ordering::Acquire)
    }
    #[inline]
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        self.table(table, slot).store(entry, Ordering::Release);
    }
    #[inline]
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        self.table(table, slot).swap(entry, Ordering::AcqRel)
    }
    #[inline]
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

impl TableAllocator for FlatHost {
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.free.pop().ok_or(OutOfTables)
    }
    fn free_table(&self, table: Pfn) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.dirty.push(table);
    }
}

impl GuestMemory for FlatHost {
    #[inline]
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        Ok(self.entry(frame, offset).load(Ordering::Acquire))
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
        Ok(self.entry(frame, offset).compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        ))
    }
    fn diff_table(
        &self,
        frame: BackedFrame,
        copy: &[u64; 512],
        mask: u64,
    ) -> Result<[u64; 8], GuestMemoryError> {
        let first = frame.frame as usize * WORDS;
        let table = self
            .memory
            .get(first..first + WORDS)
            .ok_or(GuestMemoryError::OutOfRange)?;
        let mut differing = [0; 8];
        for (bits, (words, old)) in differing
            .iter_mut()
            .zip(table.chunks_exact(64).zip(copy.chunks_exact(64)))
        {
            // Eight at a time: nearly always all are alike.
            for (n, (words, old)) in words.chunks_exact(8).zip(old.chunks_exact(8)).enumerate() {
                let pairs = || words.iter().zip(old);
                let any = pairs().fold(0, |any, (word, old)| {
                    any | (word.load(Ordering::Acquire) ^ old)
                });
                if any & mask == 0 {
                    continue;
                }
                for (i, (word, old)) in pairs().enumerate() {
                    if (word.load(Ordering::Acquire) ^ old) & mask != 0 {
                        *bits |= 1 << (n * 8 + i);
                    }
                }
            }
        }
        Ok(differing)
    }
}

impl FrameLookup for FlatHost {
    #[inline]
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        Ok(HostFrame {
            pfn: Pfn::new(frame.token.0 + frame.frame),
            largest: self.largest,
            writable: true,
        })
    }
}

impl Processors for FlatHost {
    type Gate = vmmu::gate::Fenced;
    fn kick(&self, _: VcpuId) {}
}
