//! The host's memory: one flat region, and what each of its frames is used for.
//!
//! Key types: [`Memory`], [`FrameState`]. A host-physical address is an offset into the region. Processors walk it ([`Physical`]), the
//! hypervisor half hands frames out ([`crate::vmm`]), both access data in it.
//!
//! | state | holds | who may reach it |
//! |---|---|---|
//! | free | poison, or what it held before the machine started | nobody |
//! | table | entries that the library wrote | processors, as a table |
//! | guest | the guest's data | processors and the hypervisor, as data and as guest tables |
//! | taken | poison: it was a guest's | nobody |
//!
//! Invariants:
//! 1. Every access is one atomic access of its size if it is aligned: nothing else touches the region, and no reference into it is kept.
//! 2. A frame is marked before it is poisoned, and poisoned before it is handed out again.
//! 3. A frame's version changes after each store to it that comes after somebody decoded instructions from it.

use core::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};
use vmmu_cpu::{Frame, Hpa, Moment, POISON, Physical, Unusable};
use vmmu_emu::Word;

/// The bytes of a frame.
pub const FRAME: u64 = 4096;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameState {
    /// Nothing.
    Free,
    /// A table that processors walk.
    Table,
    /// Guest memory.
    Guest,
    /// Nothing any more: it was taken back from the guest.
    Taken,
}

/// The host has no memory for the machine.
#[derive(Debug, thiserror::Error)]
#[error("no {bytes} bytes of memory for the machine: {reason}")]
pub struct NoMemory {
    bytes: u64,
    reason: String,
}

/// Host memory.
#[derive(Debug)]
pub struct Memory {
    region: MmapRegion<()>,
    /// By frame: the moment of the last free << 2 | state.
    states: Box<[AtomicU64]>,
    /// By frame: bit 0 says that instructions were decoded from it, the rest counts the stores after that.
    versions: Box<[AtomicU32]>,
    moment: AtomicU64,
}

/// A frame's version, as far as decoded instructions are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version(u32);

impl Version {
    /// No frame's.
    pub const NONE: Self = Self(0);
}

impl Memory {
    /// Makes memory of so many frames, all free.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(frames: u64) -> Result<Self, NoMemory> {
        let bytes = frames * FRAME;
        let failed = |reason: String| NoMemory { bytes, reason };
        let size = usize::try_from(bytes).map_err(|error| failed(error.to_string()))?;
        let region = MmapRegion::new(size).map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            region,
            states: (0..frames).map(|_| AtomicU64::new(0)).collect(),
            versions: (0..frames).map(|_| AtomicU32::new(0)).collect(),
            moment: AtomicU64::new(0),
        })
    }

    /// Returns the number of frames.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.states.len() as u64
    }

    #[inline(always)]
    fn slice(&self) -> VolatileSlice<'_, ()> {
        self.region.as_volatile_slice()
    }

    /// Returns a frame's state.
    #[must_use]
    pub fn state(&self, frame: Frame) -> FrameState {
        let word = self.states.get(frame.get() as usize);
        match word.map_or(0, |word| word.load(Acquire)) & 3 {
            1 => FrameState::Table,
            2 => FrameState::Guest,
            3 => FrameState::Taken,
            _ => FrameState::Free,
        }
    }

    /// Hands a frame out, with its content.
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn hand_out(&self, frame: Frame, state: FrameState) {
        let word = &self.states[frame.get() as usize];
        word.store(word.load(Relaxed) & !3 | state as u64, Release);
    }

    /// Takes a frame back: from now on nobody may reach it, and it is poisoned.
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn take_back(&self, frame: Frame, state: FrameState) {
        let moment = self.moment.fetch_add(1, AcqRel) + 1;
        self.states[frame.get() as usize].store(moment << 2 | state as u64, Release);
        self.fill(frame, POISON);
    }

    /// Stores a word everywhere in a frame.
    pub fn fill(&self, frame: Frame, word: u64) {
        let base = frame.get() * FRAME;
        for at in (base..base + FRAME).step_by(8) {
            self.store(Hpa::new(at), word);
        }
        self.wrote(Hpa::new(base));
    }

    /// Copies a frame; whoever calls keeps others from writing to either.
    pub fn copy(&self, from: Frame, to: Frame) {
        let (from, to) = (from.get() * FRAME, to.get() * FRAME);
        for at in (0..FRAME).step_by(8) {
            let word: u64 = self.load(Hpa::new(from + at));
            self.store(Hpa::new(to + at), word);
        }
        self.wrote(Hpa::new(to));
    }
}

/// Data.
impl Memory {
    /// Loads a value, which must not cross a frame: in one access if it is aligned. What lies outside of memory reads as zero.
    #[inline(always)]
    #[must_use]
    pub fn load<W: Word>(&self, at: Hpa) -> W {
        let (slice, offset) = (self.slice(), at.get() as usize);
        // Acquire: loads are not reordered with each other (AMD APM vol. 2, section 7.2). The stores' partner is Release.
        let loaded = match W::BYTES {
            1 => slice
                .get_atomic_ref::<AtomicU8>(offset)
                .map(|cell| u64::from(cell.load(Acquire))),
            2 => slice
                .get_atomic_ref::<AtomicU16>(offset)
                .map(|cell| u64::from(cell.load(Acquire))),
            4 => slice
                .get_atomic_ref::<AtomicU32>(offset)
                .map(|cell| u64::from(cell.load(Acquire))),
            _ => slice
                .get_atomic_ref::<AtomicU64>(offset)
                .map(|cell| cell.load(Acquire)),
        };
        match loaded {
            Ok(value) => W::truncate(value),
            Err(_) => self.load_unaligned(at),
        }
    }

    #[cold]
    fn load_unaligned<W: Word>(&self, at: Hpa) -> W {
        let offset = at.get() as usize % 8;
        let word = |from: u64| {
            let cell = self
                .slice()
                .get_atomic_ref::<AtomicU64>(from as usize)
                .ok()
                .map(|c| c.load(Acquire));
            cell.unwrap_or(0)
        };
        let base = at.get() - offset as u64;
        let low = word(base) >> (offset * 8);
        if offset + W::BYTES <= 8 {
            return W::truncate(low);
        }
        W::truncate(low | word(base + 8) << (64 - offset * 8))
    }

    /// Stores a value, which must not cross a frame: in one access if it is aligned. [`Memory::wrote`] is to follow.
    #[inline(always)]
    pub fn store<W: Word>(&self, at: Hpa, value: W) {
        let (slice, offset, value) = (self.slice(), at.get() as usize, value.zero_extend());
        // Release: stores are not reordered with what comes before them.
        let stored = match W::BYTES {
            1 => slice
                .get_atomic_ref::<AtomicU8>(offset)
                .map(|cell| cell.store(value as u8, Release)),
            2 => slice
                .get_atomic_ref::<AtomicU16>(offset)
                .map(|cell| cell.store(value as u16, Release)),
            4 => slice
                .get_atomic_ref::<AtomicU32>(offset)
                .map(|cell| cell.store(value as u32, Release)),
            _ => slice
                .get_atomic_ref::<AtomicU64>(offset)
                .map(|cell| cell.store(value, Release)),
        };
        if stored.is_err() {
            self.write(at, &value.to_le_bytes()[..W::BYTES]);
        }
    }

    /// Stores `new` if `current` is there, and returns what was: atomically if it is aligned, or lies within an aligned word.
    pub fn exchange_if<W: Word>(&self, at: Hpa, current: W, new: W) -> W {
        let (slice, offset) = (self.slice(), at.get() as usize);
        let (old, value) = (current.zero_extend(), new.zero_extend());
        macro_rules! exchange {
            ($atomic:ty, $int:ty) => {
                slice.get_atomic_ref::<$atomic>(offset).map(|cell| {
                    let done = cell.compare_exchange(old as $int, value as $int, SeqCst, SeqCst);
                    u64::from(done.unwrap_or_else(|found| found))
                })
            };
        }
        let found = match W::BYTES {
            1 => exchange!(AtomicU8, u8),
            2 => exchange!(AtomicU16, u16),
            4 => exchange!(AtomicU32, u32),
            _ => exchange!(AtomicU64, u64),
        };
        found.map_or_else(|_| self.exchange_unaligned(at, current, new), W::truncate)
    }

    #[cold]
    fn exchange_unaligned<W: Word>(&self, at: Hpa, current: W, new: W) -> W {
        let shift = at.get() % 8 * 8;
        if shift as usize / 8 + W::BYTES > 8 {
            // Across two words: a processor locks the bus, which nobody relies on.
            let found: W = self.load(at);
            if found == current {
                self.store(at, new);
            }
            return found;
        }
        let base = Hpa::new(at.get() & !7);
        let mask = u64::MAX >> (64 - W::BITS) << shift;
        loop {
            let word: u64 = self.load(base);
            let found = W::truncate(word >> shift);
            if found != current {
                return found;
            }
            let with = word & !mask | new.zero_extend() << shift;
            if self.exchange_if(base, word, with) == word {
                return found;
            }
        }
    }

    /// Exchanges the aligned word at `at`, and returns what was there; 0 outside of memory.
    pub fn exchange(&self, at: Hpa, word: u64) -> u64 {
        let slice = self.slice();
        let cell = slice.get_atomic_ref::<AtomicU64>(at.get() as usize);
        cell.map_or(0, |cell| cell.swap(word, AcqRel))
    }

    /// Reads bytes, which must not cross a frame; zeros outside of memory.
    pub fn read(&self, at: Hpa, bytes: &mut [u8]) {
        if self.slice().read_slice(bytes, at.get() as usize).is_err() {
            bytes.fill(0);
        }
    }

    /// Writes bytes, which must not cross a frame; nothing outside of memory. [`Memory::wrote`] is to follow.
    pub fn write(&self, at: Hpa, bytes: &[u8]) {
        // Outside of memory there is nothing to write to.
        let _ = self.slice().write_slice(bytes, at.get() as usize);
    }
}

/// Instructions in memory.
impl Memory {
    /// Notes that the frame at `at` was written, and tells whether anybody may have decoded instructions from it.
    #[inline(always)]
    pub fn wrote(&self, at: Hpa) -> bool {
        let Some(version) = self.versions.get((at.get() / FRAME) as usize) else {
            return false;
        };
        version.load(Relaxed) & 1 != 0 && Self::outdate(version)
    }

    /// Moves a version on, from decoded to not decoded, if nobody did so after the store that calls for it.
    #[cold]
    fn outdate(version: &AtomicU32) -> bool {
        let mut seen = version.load(Acquire);
        while seen & 1 != 0 {
            match version.compare_exchange(seen, seen.wrapping_add(1), AcqRel, Acquire) {
                Ok(_) => break,
                Err(found) => seen = found,
            }
        }
        true
    }

    /// Returns a frame's version; [`Memory::decode_from`] made it one of decoded instructions if it is to be compared.
    #[inline(always)]
    #[must_use]
    pub fn version(&self, frame: Frame) -> Version {
        let version = self.versions.get(frame.get() as usize);
        Version(version.map_or(0, |version| version.load(Acquire)))
    }

    /// Announces that instructions are decoded from a frame, before they are read; returns its version, and whether that is news.
    pub fn decode_from(&self, frame: Frame) -> (Version, bool) {
        let Some(version) = self.versions.get(frame.get() as usize) else {
            return (Version::NONE, false);
        };
        let old = version.fetch_or(1, SeqCst);
        (Version(old | 1), old & 1 == 0)
    }
}

impl Physical for Memory {
    #[inline]
    fn contains(&self, hpa: Hpa) -> bool {
        hpa.get() < self.frames() * FRAME
    }

    #[inline]
    fn moment(&self) -> Moment {
        Moment::new(self.moment.load(Acquire))
    }

    #[inline]
    fn usable(&self, frame: Frame, since: Moment) -> Result<(), Unusable> {
        let word = self
            .states
            .get(frame.get() as usize)
            .ok_or(Unusable::Outside)?
            .load(Acquire);
        match word & 3 {
            0 | 3 => Err(Unusable::Free),
            _ if word >> 2 > since.get() => Err(Unusable::Reused),
            _ => Ok(()),
        }
    }

    #[inline]
    fn walk_load(&self, hpa: Hpa, since: Moment) -> Result<u64, Unusable> {
        // The word before the state: were the frame freed in between, poison would pass for an entry.
        let word = self.load(hpa);
        self.usable(hpa.frame(), since).map(|()| word)
    }

    #[inline]
    fn compare_exchange(&self, hpa: Hpa, current: u64, new: u64) -> Result<u64, u64> {
        let found = self.exchange_if(hpa, current, new);
        if found == current {
            Ok(current)
        } else {
            Err(found)
        }
    }

    #[inline]
    fn walk_load32(&self, hpa: Hpa, since: Moment) -> Result<u32, Unusable> {
        let word = self.load(hpa);
        self.usable(hpa.frame(), since).map(|()| word)
    }

    #[inline]
    fn compare_exchange32(&self, hpa: Hpa, current: u32, new: u32) -> Result<u32, u32> {
        let found = self.exchange_if(hpa, current, new);
        if found == current {
            Ok(current)
        } else {
            Err(found)
        }
    }
}

#[cfg(test)]
mod data {
    use super::{FrameState, Memory};
    use vmmu_cpu::{Frame, Hpa, POISON, Physical, Unusable};

    #[test]
    fn of_any_size_and_place_reads_as_it_was_written() {
        let memory = Memory::new(2).expect("two frames");
        for at in 0..24 {
            let hpa = Hpa::new(0x100 + at);
            memory.store(hpa, 0x1122_3344_5566_7788_u64);
            assert_eq!(memory.load::<u64>(hpa), 0x1122_3344_5566_7788);
            memory.store(hpa, 0x99aa_bbcc_u32);
            assert_eq!(memory.load::<u32>(hpa), 0x99aa_bbcc);
            assert_eq!(memory.load::<u8>(Hpa::new(0x104 + at)), 0x44);
            assert_eq!(memory.exchange_if(hpa, 0xbbcc_u16, 0x1234), 0xbbcc);
            assert_eq!(memory.load::<u32>(hpa), 0x99aa_1234);
            assert_eq!(memory.exchange_if(hpa, 5_u16, 6), 0x1234);
        }
        assert_eq!(memory.load::<u64>(Hpa::new(0x2000)), 0);
        memory.store(Hpa::new(0x2000), 1_u64);
    }

    #[test]
    fn of_a_frame_taken_back_is_poison_and_out_of_reach() {
        let memory = Memory::new(2).expect("two frames");
        let (frame, now) = (Frame::new(1), memory.moment());
        assert_eq!(memory.usable(frame, now), Err(Unusable::Free));
        memory.hand_out(frame, FrameState::Guest);
        assert_eq!(memory.walk_load(Hpa::new(0x1000), now), Ok(0));
        memory.take_back(frame, FrameState::Taken);
        assert_eq!(memory.usable(frame, memory.moment()), Err(Unusable::Free));
        assert_eq!(memory.load::<u64>(Hpa::new(0x1ff8)), POISON);
        memory.hand_out(frame, FrameState::Table);
        assert_eq!(memory.usable(frame, now), Err(Unusable::Reused));
        assert_eq!(memory.usable(frame, memory.moment()), Ok(()));
    }

    #[test]
    fn of_decoded_instructions_changes_the_version() {
        let memory = Memory::new(2).expect("two frames");
        assert!(!memory.wrote(Hpa::new(0x1008)));
        let (version, news) = memory.decode_from(Frame::new(1));
        assert!(news);
        assert_eq!(memory.version(Frame::new(1)), version);
        assert!(memory.wrote(Hpa::new(0x1008)));
        assert_ne!(memory.version(Frame::new(1)), version);
        assert_ne!(memory.decode_from(Frame::new(1)).0, version);
    }
}
