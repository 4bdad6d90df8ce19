//! Host-physical memory: atomic 64-bit words in 4 KiB frames, created on first use.
//!
//! Key type: [`PhysMemory`], shared by every processor and by the hypervisor under test through
//! `&self`. Its frame pool (alloc, free, poison, who was freed when) is in [`pool`].
//!
//! Invariants:
//! 1. A word that was never stored to reads as 0, and reading creates nothing.
//! 2. Outside of memory, loads give all ones and stores vanish, as on a bus where nobody answers;
//!    each is counted as a stray access, and so is every access to a freed frame.
//! 3. A frame's status (plain, allocated, freed) and the moment of its last free sit in one word,
//!    so that one load tells whether something cached earlier may still be used.

pub(crate) mod pool;

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use crate::addr::{Frame, Hpa};
use crate::physical::{Physical, half, with_half};
use pool::{Moment, Pool, Status, Unusable};

/// Frames in one lazily created piece of memory (256 KiB).
const CHUNK_FRAMES: u64 = 64;
/// 64-bit words in a frame.
const FRAME_WORDS: u64 = 512;

/// A piece of memory: words, and one status word per frame.
#[derive(Debug)]
struct Chunk {
    words: Box<[AtomicU64]>,
    status: Box<[AtomicU64]>,
}

impl Chunk {
    fn new() -> Self {
        let zeroed = |n: u64| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: zeroed(CHUNK_FRAMES * FRAME_WORDS),
            status: zeroed(CHUNK_FRAMES),
        }
    }
}

/// Host-physical memory with a pool of frames to allocate from.
#[derive(Debug)]
pub struct PhysMemory {
    chunks: Box<[OnceLock<Chunk>]>,
    frames: u64,
    pool: Pool,
    strays: AtomicU64,
}

impl PhysMemory {
    /// Makes a memory of `frames` frames, all plain: nothing can be allocated or freed.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        Self::with_pool(frames, Frame::new(0)..Frame::new(0))
    }

    /// Makes a memory of `frames` frames, of which those in `pool` are handed out by
    /// [`PhysMemory::alloc`] and the others are plain (guest RAM, say). Frame 0 is never handed
    /// out, so that an address of zero always means a mistake.
    #[must_use]
    pub fn with_pool(frames: u64, pool: core::ops::Range<Frame>) -> Self {
        let chunks = (0..frames.div_ceil(CHUNK_FRAMES))
            .map(|_| OnceLock::new())
            .collect();
        let end = pool.end.min(Frame::new(frames));
        let pool = Pool::new(pool.start.max(Frame::new(1))..end);
        Self {
            chunks,
            frames,
            pool,
            strays: AtomicU64::new(0),
        }
    }

    /// Returns the number of frames.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Says whether `hpa` is inside of memory.
    #[must_use]
    pub fn contains(&self, hpa: Hpa) -> bool {
        hpa.frame().get() < self.frames
    }

    /// Returns how many accesses went outside of memory or to a freed frame. The processors do
    /// not count here (they report a [`crate::Violation`]): these are the hypervisor's own.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    /// Reads the 64-bit word at `hpa` (aligned down to 8).
    #[must_use]
    pub fn load(&self, hpa: Hpa) -> u64 {
        self.note_stray(hpa);
        self.peek(hpa)
    }

    /// Reads like [`PhysMemory::load`], without counting strays: for dumps and checks.
    #[must_use]
    pub fn peek(&self, hpa: Hpa) -> u64 {
        if !self.contains(hpa) {
            return u64::MAX;
        }
        // Acquire pairs with the Release of every store: a table's content is seen by whoever
        // sees the entry that links it, as on x86.
        self.existing(hpa)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Writes the 64-bit word at `hpa` (aligned down to 8).
    pub fn store(&self, hpa: Hpa, value: u64) {
        self.note_stray(hpa);
        if let Some(word) = self.word(hpa) {
            word.store(value, Ordering::Release);
        }
    }

    /// Exchanges the 64-bit word at `hpa` and returns what it was.
    pub fn swap(&self, hpa: Hpa, value: u64) -> u64 {
        self.note_stray(hpa);
        self.word(hpa)
            .map_or(u64::MAX, |word| word.swap(value, Ordering::SeqCst))
    }

    /// Stores `new` at `hpa` if the word there is `current`.
    ///
    /// # Errors
    /// The word found, when it was another.
    pub fn compare_exchange(&self, hpa: Hpa, current: u64, new: u64) -> Result<u64, u64> {
        self.note_stray(hpa);
        let word = self.word(hpa).ok_or(u64::MAX)?;
        word.compare_exchange(current, new, Ordering::SeqCst, Ordering::Acquire)
    }

    /// Reads the 32-bit half-word at `hpa` (aligned down to 4).
    #[must_use]
    pub fn load32(&self, hpa: Hpa) -> u32 {
        half(self.load(hpa), hpa)
    }

    /// Writes the 32-bit half-word at `hpa` (aligned down to 4).
    pub fn store32(&self, hpa: Hpa, value: u32) {
        self.swap32(hpa, value);
    }

    /// Exchanges the 32-bit half-word at `hpa` and returns what it was.
    pub fn swap32(&self, hpa: Hpa, value: u32) -> u32 {
        loop {
            let old = self.load(hpa);
            if self
                .compare_exchange(hpa, old, with_half(old, hpa, value))
                .is_ok()
                || !self.contains(hpa)
            {
                return half(old, hpa);
            }
        }
    }

    /// Stores `new` in the 32-bit half-word at `hpa` if it is `current`.
    ///
    /// # Errors
    /// The half-word found, when it was another.
    pub fn compare_exchange32(&self, hpa: Hpa, current: u32, new: u32) -> Result<u32, u32> {
        loop {
            let old = self.load(hpa);
            if half(old, hpa) != current || !self.contains(hpa) {
                return Err(half(old, hpa));
            }
            // The other half may change at any time; only this one decides.
            if self
                .compare_exchange(hpa, old, with_half(old, hpa, new))
                .is_ok()
            {
                return Ok(current);
            }
        }
    }

    /// Copies `bytes` to `hpa` on. Each word changes by one compare-exchange, so bytes beside
    /// them that others write are kept.
    pub fn write_bytes(&self, hpa: Hpa, bytes: &[u8]) {
        for (at, byte) in (hpa.get()..).zip(bytes) {
            let (word, shift) = (Hpa::new(at & !7), (at & 7) * 8);
            loop {
                let old = self.load(word);
                let new = (old & !(0xff << shift)) | (u64::from(*byte) << shift);
                if self.compare_exchange(word, old, new).is_ok() || !self.contains(word) {
                    break;
                }
            }
        }
    }

    /// Fills `bytes` from `hpa` on.
    pub fn read_bytes(&self, hpa: Hpa, bytes: &mut [u8]) {
        for (at, byte) in (hpa.get()..).zip(bytes) {
            *byte = self.load(Hpa::new(at & !7)).to_le_bytes()[(at & 7) as usize];
        }
    }

    /// Stores `value` in each of the frame's 512 words.
    pub fn fill(&self, frame: Frame, value: u64) {
        for index in 0..FRAME_WORDS {
            self.store(frame.hpa().plus(index * 8), value);
        }
    }

    /// Fills a frame whatever its status, for the pool.
    fn fill_unchecked(&self, frame: Frame, value: u64) {
        for index in 0..FRAME_WORDS {
            if let Some(word) = self.word(frame.hpa().plus(index * 8)) {
                word.store(value, Ordering::Release);
            }
        }
    }

    /// Returns the status word's cell of a frame, creating its memory if asked.
    fn status_cell(&self, frame: Frame) -> Option<&AtomicU64> {
        let chunk = self
            .chunks
            .get((frame.get() / CHUNK_FRAMES) as usize)?
            .get_or_init(Chunk::new);
        chunk.status.get((frame.get() % CHUNK_FRAMES) as usize)
    }

    /// Returns the status of a frame inside of memory.
    #[inline]
    fn raw_status(&self, frame: Frame) -> Status {
        self.chunks
            .get((frame.get() / CHUNK_FRAMES) as usize)
            .and_then(OnceLock::get)
            .and_then(|chunk| chunk.status.get((frame.get() % CHUNK_FRAMES) as usize))
            .map_or(Status::PLAIN, |cell| {
                Status::from_raw(cell.load(Ordering::Acquire))
            })
    }

    #[inline]
    fn chunk_index(hpa: Hpa) -> (usize, usize) {
        let word = hpa.get() / 8;
        let per_chunk = CHUNK_FRAMES * FRAME_WORDS;
        ((word / per_chunk) as usize, (word % per_chunk) as usize)
    }

    fn existing(&self, hpa: Hpa) -> Option<&AtomicU64> {
        let (chunk, word) = Self::chunk_index(hpa);
        self.chunks.get(chunk)?.get()?.words.get(word)
    }

    fn word(&self, hpa: Hpa) -> Option<&AtomicU64> {
        if !self.contains(hpa) {
            return None;
        }
        let (chunk, word) = Self::chunk_index(hpa);
        self.chunks
            .get(chunk)?
            .get_or_init(Chunk::new)
            .words
            .get(word)
    }

    fn note_stray(&self, hpa: Hpa) {
        if self.usable(hpa.frame(), Moment::LATEST).is_err() {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Physical for PhysMemory {
    #[inline]
    fn contains(&self, hpa: Hpa) -> bool {
        Self::contains(self, hpa)
    }

    #[inline]
    fn moment(&self) -> Moment {
        Self::moment(self)
    }

    #[inline]
    fn usable(&self, frame: Frame, since: Moment) -> Result<(), Unusable> {
        Self::usable(self, frame, since)
    }

    #[inline]
    fn walk_load(&self, hpa: Hpa, since: Moment) -> Result<u64, Unusable> {
        if !self.contains(hpa) {
            return Err(Unusable::Outside);
        }
        let (chunk, word) = Self::chunk_index(hpa);
        let Some(chunk) = self.chunks.get(chunk).and_then(OnceLock::get) else {
            return Ok(0);
        };
        // Acquire as in `peek`. The word first: were the frame freed between the two loads, the
        // poison would pass for an entry, the other way round.
        let value = chunk
            .words
            .get(word)
            .map_or(0, |word| word.load(Ordering::Acquire));
        let frame = word / FRAME_WORDS as usize;
        let status = chunk
            .status
            .get(frame)
            .map_or(0, |cell| cell.load(Ordering::Acquire));
        Status::from_raw(status).usable(since).map(|()| value)
    }

    fn compare_exchange(&self, hpa: Hpa, current: u64, new: u64) -> Result<u64, u64> {
        Self::compare_exchange(self, hpa, current, new)
    }

    fn compare_exchange32(&self, hpa: Hpa, current: u32, new: u32) -> Result<u32, u32> {
        Self::compare_exchange32(self, hpa, current, new)
    }
}

#[cfg(test)]
mod keeps_words {
    use super::{Hpa, PhysMemory};

    #[test]
    fn halves_change_alone_and_strays_are_counted() {
        let mem = PhysMemory::new(8);
        mem.store(Hpa::new(0x1000), 0x1111_2222_3333_4444);
        assert_eq!(mem.load32(Hpa::new(0x1004)), 0x1111_2222);
        mem.store32(Hpa::new(0x1000), 7);
        assert_eq!(
            mem.compare_exchange32(Hpa::new(0x1004), 1, 2),
            Err(0x1111_2222)
        );
        assert_eq!(
            mem.compare_exchange32(Hpa::new(0x1004), 0x1111_2222, 9),
            Ok(0x1111_2222)
        );
        assert_eq!(mem.load(Hpa::new(0x1000)), 0x9_0000_0007);
        assert_eq!(mem.strays(), 0);
        assert_eq!(mem.load(Hpa::new(0x8000)), u64::MAX);
        mem.store(Hpa::new(0x8000), 1);
        assert_eq!(mem.swap32(Hpa::new(0x8000), 1), u32::MAX);
        assert!(mem.strays() >= 3);
    }

    #[test]
    fn bytes_are_little_endian_across_words() {
        let mem = PhysMemory::new(1);
        mem.write_bytes(Hpa::new(6), &[1, 2, 3]);
        assert_eq!(mem.load(Hpa::new(0)), 0x0201_0000_0000_0000);
        let mut back = [0; 3];
        mem.read_bytes(Hpa::new(6), &mut back);
        assert_eq!(back, [1, 2, 3]);
    }
}
