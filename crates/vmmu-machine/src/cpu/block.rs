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

#[cfg(test)]
mod decoded_blocks {
    use super::{Blocks, Key};
    use crate::cpu::core::Core;
    use crate::memory::Memory;
    use vmmu_cpu::Hpa;
    use vmmu_emu::{DecodeError, Mode};

    fn memory(at: u64, code: &[u8]) -> Memory {
        let memory = Memory::new(3).expect("three frames");
        for (at, byte) in (at..).zip(code) {
            memory.store(Hpa::new(at), *byte);
        }
        memory
    }

    fn blocks() -> Blocks<Core<()>> {
        Blocks::new()
    }

    #[test]
    fn end_with_a_branch_and_are_gone_after_a_store_to_their_frame() {
        // add eax, ecx; jmp back; ud2
        let memory = memory(0x1000, &[0x01, 0xc8, 0xeb, 0xfc, 0x0f, 0x0b]);
        let (at, mut blocks) = (Hpa::new(0x1000), blocks());
        let key = Key::new(at, Mode::Bits64);
        assert!(blocks.get(key, &memory, at).is_none());
        let place = blocks
            .make(key, &memory, at, Mode::Bits64, || {})
            .expect("code");
        assert_eq!(blocks.at(place).ops.len(), 2);
        assert_eq!(blocks.get(key, &memory, at), Some(place));
        assert!(
            blocks
                .get(Key::new(at, Mode::Bits32), &memory, at)
                .is_none()
        );
        memory.wrote(Hpa::new(0x2000));
        assert!(blocks.get(key, &memory, at).is_some());
        memory.wrote(Hpa::new(0x1ff8));
        assert!(blocks.get(key, &memory, at).is_none());
    }

    #[test]
    fn announce_a_frame_before_its_bytes_are_read_and_once() {
        let memory = memory(0x1000, &[0x90, 0xeb, 0xfe]);
        let (at, mut blocks) = (Hpa::new(0x1000), blocks());
        let key = Key::new(at, Mode::Bits64);
        let announced = core::cell::Cell::new(0);
        let announce = || {
            announced.set(announced.get() + 1);
            // Who stores now sees that the frame is decoded from.
            memory.store(at, 0xf4_u8);
            assert!(memory.wrote(at));
        };
        let _ = blocks.make(key, &memory, at, Mode::Bits64, announce);
        assert_eq!(announced.get(), 1);
        assert!(blocks.get(key, &memory, at).is_none());
    }

    #[test]
    fn reach_into_the_next_page_with_one_instruction() {
        // mov eax, 12345678h, two bytes of it in the first page.
        let memory = memory(0x1ffe, &[0xb8, 0x78, 0x56, 0x34, 0x12]);
        let (at, tail) = (Hpa::new(0x1ffe), Hpa::new(0x2000));
        let (key, mut blocks) = (Key::new(at, Mode::Bits64), blocks());
        let cut = blocks.make(key, &memory, at, Mode::Bits64, || {});
        assert_eq!(cut, Err(DecodeError::CutShort));
        let place = blocks
            .make_across(key, &memory, at, tail, Mode::Bits64, || {})
            .expect("code");
        let version = memory.version(tail.frame());
        assert_eq!(blocks.at(place).tail, Some((tail, version)));
        memory.wrote(tail);
        assert_ne!(memory.version(tail.frame()), version);
    }
}
