//! Decoded instructions, by where they lie in host memory.
//!
//! Key types: [`Block`] (instructions up to a branch or the end of the page), [`Blocks`] (a direct-mapped cache of them).
//!
//! Invariants:
//! 1. A block is used only while its frame's version is the one from before it was read; so is the frame that its last instruction ends in.
//! 2. The frame's version is announced as one of decoded instructions before the bytes are read.

use vmmu_cpu::Hpa;
use vmmu_emu::{After, Cpu, DecodeError, LONGEST, Mode, Op, decode};

use crate::memory::{Memory, Version};

/// The places of the cache.
const PLACES: usize = 1 << 15;
/// The most instructions of a block.
const LONGEST_BLOCK: usize = 48;

/// What identifies a block: where it lies, and how it is decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key(u64);

impl Key {
    /// No block's.
    const NONE: Self = Self(u64::MAX);

    #[inline(always)]
    pub(super) const fn new(at: Hpa, mode: Mode) -> Self {
        Self(at.get() << 2 | mode as u64)
    }

    #[inline(always)]
    const fn place(self) -> usize {
        (self.0 ^ self.0 >> 15 ^ self.0 >> 30) as usize % PLACES
    }
}

/// Instructions that follow each other.
#[derive(Debug)]
pub(super) struct Block<C: Cpu> {
    key: Key,
    version: Version,
    /// The other frame and its version, for an instruction that ends in it.
    pub(super) tail: Option<(Hpa, Version)>,
    pub(super) ops: Box<[Op<C>]>,
}

/// The cache.
#[derive(Debug)]
pub(super) struct Blocks<C: Cpu> {
    places: Vec<Block<C>>,
    /// How many were decoded.
    pub(super) decoded: u64,
}

impl<C: Cpu> Blocks<C> {
    pub(super) fn new() -> Self {
        let empty = || Block {
            key: Key::NONE,
            version: Version::NONE,
            tail: None,
            ops: Box::default(),
        };
        Self {
            places: (0..PLACES).map(|_| empty()).collect(),
            decoded: 0,
        }
    }

    /// Finds a block that is still true, its tail aside.
    #[inline(always)]
    pub(super) fn get(&self, key: Key, memory: &Memory, at: Hpa) -> Option<usize> {
        let place = key.place();
        let block = &self.places[place];
        (block.key == key && block.version == memory.version(at.frame())).then_some(place)
    }

    /// Returns the block at a place.
    #[inline(always)]
    pub(super) fn at(&self, place: usize) -> &Block<C> {
        &self.places[place]
    }

    /// Decodes a block and keeps it, unless its first instruction is none, or goes on beyond the page.
    pub(super) fn make(
        &mut self,
        key: Key,
        memory: &Memory,
        at: Hpa,
        mode: Mode,
        announce: impl Fn(),
    ) -> Result<usize, DecodeError> {
        let (version, news) = memory.decode_from(at.frame());
        if news {
            announce();
        }
        let mut bytes = [0; LONGEST_BLOCK * LONGEST];
        let left = (4096 - (at.get() & 0xfff)) as usize;
        let window = left.min(bytes.len());
        let bytes = &mut bytes[..window];
        memory.read(at, bytes);
        let ops = decode_all(bytes, mode)?;
        Ok(self.keep(Block {
            key,
            version,
            tail: None,
            ops,
        }))
    }

    /// Decodes the one instruction that begins with the last bytes of a page, and ends in the one that begins at `tail`.
    pub(super) fn make_across(
        &mut self,
        key: Key,
        memory: &Memory,
        at: Hpa,
        tail: Hpa,
        mode: Mode,
        announce: impl Fn(),
    ) -> Result<usize, DecodeError> {
        let (version, news) = memory.decode_from(at.frame());
        let (tail_version, tail_news) = memory.decode_from(tail.frame());
        if news || tail_news {
            announce();
        }
        let mut bytes = [0; LONGEST];
        let head = ((4096 - (at.get() & 0xfff)) as usize).min(LONGEST);
        memory.read(at, &mut bytes[..head]);
        memory.read(tail, &mut bytes[head..]);
        let op = decode(&bytes, mode)?;
        Ok(self.keep(Block {
            key,
            version,
            tail: Some((tail, tail_version)),
            ops: Box::new([op]),
        }))
    }

    fn keep(&mut self, block: Block<C>) -> usize {
        self.decoded += 1;
        let place = block.key.place();
        self.places[place] = block;
        place
    }
}

/// Decodes up to a branch, to what is no instruction, or to the end; an error only if nothing can be decoded.
fn decode_all<C: Cpu>(bytes: &[u8], mode: Mode) -> Result<Box<[Op<C>]>, DecodeError> {
    let mut ops = Vec::new();
    let mut rest = bytes;
    while ops.len() < LONGEST_BLOCK {
        match decode::<C>(rest, mode) {
            Ok(op) => {
                ops.push(op);
                rest = &rest[op.length()..];
                if op.after() != After::Next || rest.is_empty() {
                    break;
                }
            }
            Err(error) if ops.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(ops.into_boxed_slice())
}
