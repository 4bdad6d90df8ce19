//! Guest memory: which host frame is behind which guest frame.
//!
//! Key type: [`GuestFrames`]. Guest frames lie permuted in host memory, never at their own number, so that an address that was not translated
//! shows at once. [`super::host`] looks them up for the library; loaders and the emulation of instructions access data by guest-physical address.
//!
//! Invariants:
//! 1. Whoever accesses data by guest-physical address holds [`GuestFrames::settle`]; whoever moves a frame holds it exclusively.
//! 2. A frame on the move has no place: [`GuestFrames::frame`] says so, and a reader that found it before looks again after reading.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use vmmu::addr::{Gfn, Gpa, Level};
use vmmu_cpu::{Frame, Hpa};

use crate::load::{GuestRam, NoMemory};
use crate::memory::{FRAME, FrameState, Memory};

/// A frame on the move.
const NOWHERE: u32 = u32::MAX;
/// Where device memory begins below 4 GiB, and RAM goes on above.
const HOLE: Range<u64> = 0xc000_0000..1 << 32;
/// Frames of a block that lies in one piece.
pub(crate) const BLOCK: u64 = 512;

/// A piece of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its first guest frame.
    pub base: Gfn,
    /// How many frames it has.
    pub frames: u64,
    /// The number of its first frame, counted through all pieces: the slot's token.
    pub first: u64,
}

/// Guest memory.
#[derive(Debug)]
pub struct GuestFrames {
    memory: Arc<Memory>,
    pieces: Vec<Piece>,
    places: Box<[AtomicU32]>,
    /// By host frame, the number of the frame that lies there.
    numbers: Box<[AtomicU32]>,
    /// By block of numbers, which is one of guest frames too: it lies in one piece.
    whole: Box<[AtomicBool]>,
    moving: RwLock<()>,
}

/// Returns the pieces of guest RAM of so many bytes.
#[must_use]
pub fn pieces(bytes: u64) -> Vec<Piece> {
    let low = bytes.min(HOLE.start) / FRAME;
    let piece = |base: u64, frames, first| Piece {
        base: Gfn::containing(Gpa::new(base)),
        frames,
        first,
    };
    let mut pieces = vec![piece(0, low, 0)];
    if bytes > HOLE.start {
        pieces.push(piece(HOLE.end, bytes / FRAME - low, low));
    }
    pieces
}

impl GuestFrames {
    /// Makes guest memory of the pieces, whose frames lie where `places` says, in the order of the pieces.
    ///
    /// # Panics
    /// If `places` has another length than the pieces.
    #[must_use]
    pub fn new(memory: Arc<Memory>, pieces: Vec<Piece>, places: &[Frame]) -> Self {
        let frames: u64 = pieces.iter().map(|piece| piece.frames).sum();
        assert_eq!(places.len() as u64, frames, "a place for each frame");
        for place in places {
            memory.hand_out(*place, FrameState::Guest);
        }
        let is_whole = |block: &[Frame]| {
            let first = block[0].get();
            let mut along = block.iter().zip(first..);
            first.is_multiple_of(BLOCK)
                && block.len() as u64 == BLOCK
                && along.all(|(place, wanted)| place.get() == wanted)
        };
        let numbers: Box<[AtomicU32]> = (0..memory.frames())
            .map(|_| AtomicU32::new(NOWHERE))
            .collect();
        for (number, place) in (0..).zip(places) {
            numbers[place.get() as usize].store(number, Ordering::Relaxed);
        }
        let whole = places
            .chunks(BLOCK as usize)
            .map(|block| AtomicBool::new(is_whole(block)));
        Self {
            memory,
            pieces,
            whole: whole.collect(),
            places: places
                .iter()
                .map(|place| AtomicU32::new(place.get() as u32))
                .collect(),
            numbers,
            moving: RwLock::new(()),
        }
    }

    /// Returns the host memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Returns the number of the frame that lies at a place.
    #[inline]
    #[must_use]
    pub fn number_at(&self, place: Frame) -> Option<u64> {
        let number = self
            .numbers
            .get(place.get() as usize)?
            .load(Ordering::Acquire);
        (number != NOWHERE).then_some(u64::from(number))
    }

    /// Returns the pieces.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns the number of frames.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// Says whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns the number of a guest frame, counted through all pieces.
    #[inline]
    #[must_use]
    pub fn number(&self, gfn: Gfn) -> Option<u64> {
        self.pieces.iter().find_map(|piece| {
            let within = gfn.get().wrapping_sub(piece.base.get());
            (within < piece.frames).then_some(piece.first + within)
        })
    }

    /// Returns the guest frame of a number.
    #[must_use]
    pub fn gfn(&self, number: u64) -> Option<Gfn> {
        self.pieces.iter().find_map(|piece| {
            let within = number.wrapping_sub(piece.first);
            (within < piece.frames).then(|| piece.base.wrapping_add(within))
        })
    }

    /// Returns where a frame lies, by its number; `None` if there is none or it is on the move.
    #[inline]
    #[must_use]
    pub fn frame(&self, number: u64) -> Option<Frame> {
        // Acquire: pairs with the Release in `put`; the content is there.
        let place = self.places.get(number as usize)?.load(Ordering::Acquire);
        (place != NOWHERE).then(|| Frame::new(u64::from(place)))
    }

    /// Takes a frame from its place, for the move.
    pub fn lift(&self, number: u64) -> Option<Frame> {
        self.whole
            .get((number / BLOCK) as usize)?
            .store(false, Ordering::Relaxed);
        let place = self
            .places
            .get(number as usize)?
            .swap(NOWHERE, Ordering::AcqRel);
        if let Some(cell) = self.numbers.get(place as usize) {
            cell.store(NOWHERE, Ordering::Release);
        }
        (place != NOWHERE).then(|| Frame::new(u64::from(place)))
    }

    /// Puts a frame to its new place, where its content is.
    pub fn put(&self, number: u64, place: Frame) {
        if let Some(cell) = self.numbers.get(place.get() as usize) {
            cell.store(number as u32, Ordering::Release);
        }
        if let Some(cell) = self.places.get(number as usize) {
            cell.store(place.get() as u32, Ordering::Release);
        }
    }

    /// Keeps frames where they are as long as the value lives.
    pub fn settle(&self) -> RwLockReadGuard<'_, ()> {
        self.moving.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves frames, with nobody accessing data by guest-physical address meanwhile.
    pub fn alone<T>(&self, moves: impl FnOnce() -> T) -> T {
        let _alone = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        moves()
    }

    /// Returns where an address lies in host memory, while frames are settled.
    #[inline]
    #[must_use]
    pub fn hpa(&self, gpa: Gpa) -> Option<Hpa> {
        let frame = self.frame(self.number(Gfn::containing(gpa))?)?;
        Some(frame.hpa().plus(gpa.page_offset()))
    }

    /// Returns the largest block around a frame that lies in one piece, and alike in guest and host memory.
    #[inline]
    #[must_use]
    pub fn largest(&self, number: u64) -> Level {
        // Relaxed: if a frame of the block is lifted meanwhile, the library looks again.
        let block = self.whole.get((number / BLOCK) as usize);
        match block.is_some_and(|whole| whole.load(Ordering::Relaxed)) {
            true => Level::L2,
            false => Level::L1,
        }
    }

    /// Copies guest memory out; `false` if some of it is no RAM.
    #[must_use]
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        let _settled = self.settle();
        parts(gpa, bytes.len()).all(|(at, range)| match self.hpa(at) {
            Some(hpa) => {
                self.memory.read(hpa, &mut bytes[range]);
                true
            }
            None => false,
        })
    }
}

/// Cuts bytes at a guest-physical address at the ends of pages.
fn parts(gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = gpa.wrapping_add(done as u64);
        let part = (4096 - at.page_offset() as usize).min(len - done);
        let range = done..done + part;
        done += part;
        (part != 0).then_some((at, range))
    })
}

/// For loaders, before the guest runs.
impl GuestRam for &GuestFrames {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory> {
        let _settled = self.settle();
        for (at, range) in parts(gpa, bytes.len()) {
            let hpa = self.hpa(at).ok_or(NoMemory(at))?;
            self.memory.write(hpa, &bytes[range]);
            self.memory.wrote(hpa);
        }
        Ok(())
    }

    fn ranges(&self) -> Vec<Range<Gpa>> {
        let end = |piece: &Piece| piece.base.wrapping_add(piece.frames).address();
        self.pieces
            .iter()
            .map(|piece| piece.base.address()..end(piece))
            .collect()
    }
}

/// Returns where guest frames lie, so that no block lies where its number says; the rest of `host` is left over.
///
/// `scatter` says which blocks lie in single frames instead of in one piece.
#[must_use]
pub fn permute(
    host: Range<u64>,
    frames: u64,
    rng: &mut fastrand::Rng,
    scatter: impl Fn(u64) -> bool,
) -> (Vec<Frame>, Vec<Frame>) {
    let mut blocks: Vec<u64> = (host.start.div_ceil(BLOCK)..host.end / BLOCK).collect();
    rng.shuffle(&mut blocks);
    let used = (frames.div_ceil(BLOCK) as usize).min(blocks.len());
    for i in 0..used {
        if blocks[i] == i as u64 {
            // At its own number: the next one's place is another, and that one's place now is not its own.
            let other = (i + 1) % blocks.len();
            blocks.swap(i, other);
        }
    }
    let mut places = Vec::new();
    for (i, block) in blocks[..used].iter().enumerate() {
        let mut within: Vec<u64> = (0..BLOCK).collect();
        if scatter(i as u64) {
            rng.shuffle(&mut within);
        }
        places.extend(
            within
                .iter()
                .map(|offset| Frame::new(block * BLOCK + offset)),
        );
    }
    let rest = blocks[used..]
        .iter()
        .flat_map(|block| block * BLOCK..(block + 1) * BLOCK);
    let mut rest: Vec<Frame> = rest.map(Frame::new).collect();
    rest.extend(places.split_off((frames as usize).min(places.len())));
    (places, rest)
}

#[cfg(test)]
mod guest_frames {
    use super::*;

    fn made(bytes: u64, seed: u64) -> GuestFrames {
        let frames = bytes / FRAME;
        let memory = Arc::new(Memory::new(frames + 4 * BLOCK).expect("memory"));
        let host = BLOCK..memory.frames();
        let (places, _) = permute(host, frames, &mut fastrand::Rng::with_seed(seed), |block| {
            block % 2 == 0
        });
        GuestFrames::new(memory, pieces(bytes), &places)
    }

    #[test]
    fn lie_each_at_a_place_of_its_own_that_is_not_its_number() {
        for seed in 0..20 {
            let guest = made(8 << 20, seed);
            let mut seen = std::collections::HashSet::new();
            for number in 0..guest.len() {
                let frame = guest.frame(number).expect("settled");
                assert_ne!(frame.get() / BLOCK, number / BLOCK, "seed {seed}");
                assert!(seen.insert(frame));
                assert_eq!(guest.memory.state(frame), FrameState::Guest);
            }
        }
    }

    #[test]
    fn are_read_as_written_across_pages() {
        let guest = made(4 << 20, 1);
        let bytes: Vec<u8> = (0..9000).map(|i| i as u8).collect();
        (&guest).write(Gpa::new(0x1ff0), &bytes).expect("RAM");
        let mut back = vec![0; bytes.len()];
        assert!(guest.read(Gpa::new(0x1ff0), &mut back));
        assert_eq!(back, bytes);
        assert!(!guest.read(Gpa::new((4 << 20) - 1), &mut back));
        assert!((&guest).write(Gpa::new((4 << 20) - 1), &bytes).is_err());
    }

    #[test]
    fn leave_the_devices_hole() {
        let all = pieces(5 << 30);
        assert_eq!(all[1].base.address(), Gpa::new(1 << 32));
        assert_eq!(all[0].frames + all[1].frames, (5 << 30) / FRAME);
        assert_eq!(all[1].first, all[0].frames);
    }
}
