//! Instructions as bytes: an opcode with random prefixes and operands, which the decoder judges.
//!
//! Key types: [`Opcode`], [`Encoded`].

use fastrand::Rng;
use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions, Instruction};

use super::values::{once_in, value};
use crate::registers::CodeMode;

/// An opcode and its map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opcode {
    /// The escape bytes: none, 0F, 0F 38 or 0F 3A.
    pub(crate) map: &'static [u8],
    pub(crate) byte: u8,
}

impl Opcode {
    /// Returns all opcodes of a mode that are no prefix.
    pub(crate) fn all(mode: CodeMode) -> impl Iterator<Item = Self> {
        const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        MAPS.into_iter()
            .flat_map(|map| (0..=u8::MAX).map(move |byte| Self { map, byte }))
            .filter(move |opcode| !opcode.map.is_empty() || !is_prefix(mode, opcode.byte))
    }
}

const fn is_prefix(mode: CodeMode, byte: u8) -> bool {
    match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => matches!(mode, CodeMode::Bits64),
        _ => false,
    }
}

/// An instruction: its bytes and what they mean.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) instruction: Instruction,
    offsets: ConstantOffsets,
    mode: CodeMode,
    rip: u64,
}

impl Encoded {
    /// Makes one at random; `None` if the bytes are no instruction.
    pub(crate) fn random(rng: &mut Rng, mode: CodeMode, opcode: Opcode) -> Option<Self> {
        let mut bytes = prefixes(rng, mode);
        bytes.extend_from_slice(opcode.map);
        bytes.push(opcode.byte);
        let mut operands = [0; 16];
        rng.fill(&mut operands);
        bytes.extend_from_slice(&operands);
        bytes.truncate(15);
        let mut encoded = Self {
            bytes,
            instruction: Instruction::default(),
            offsets: ConstantOffsets::default(),
            mode,
            rip: mode.start(),
        };
        encoded.decode();
        let len = encoded.instruction.len();
        encoded.bytes.truncate(len);
        if encoded.instruction.code() == Code::INVALID {
            return None;
        }
        if once_in(rng, 2) {
            encoded.set_immediate(value(rng));
        }
        Some(encoded)
    }

    fn decode(&mut self) {
        let bits = self.mode.bits();
        let mut decoder = Decoder::with_ip(bits, &self.bytes, self.rip, DecoderOptions::NONE);
        self.instruction = decoder.decode();
        self.offsets = decoder.get_constant_offsets(&self.instruction);
    }

    /// Says whether there is a prefix, whatever it means here.
    pub(crate) fn has_prefix(&self, prefix: u8) -> bool {
        let prefixes = self.bytes.iter();
        prefixes
            .take_while(|byte| is_prefix(self.mode, **byte))
            .any(|byte| *byte == prefix)
    }

    /// Returns the address of the next instruction.
    pub(crate) fn next(&self) -> u64 {
        self.rip + self.bytes.len() as u64
    }

    /// Replaces the immediate, a branch's displacement included, by as many of the value's bytes as it has; returns how many.
    pub(crate) fn set_immediate(&mut self, value: u64) -> usize {
        if !self.offsets.has_immediate() {
            return 0;
        }
        let (at, len) = (
            self.offsets.immediate_offset(),
            self.offsets.immediate_size(),
        );
        self.patch(at, len, value);
        len
    }

    /// Replaces the displacement; returns how many bytes it has.
    pub(crate) fn set_displacement(&mut self, value: u64) -> usize {
        if !self.offsets.has_displacement() {
            return 0;
        }
        let (at, len) = (
            self.offsets.displacement_offset(),
            self.offsets.displacement_size(),
        );
        self.patch(at, len, value);
        len
    }

    fn patch(&mut self, at: usize, len: usize, value: u64) {
        let len = len.min(8);
        if let Some(place) = self.bytes.get_mut(at..at + len) {
            place.copy_from_slice(&value.to_le_bytes()[..len]);
        }
        self.decode();
    }
}

/// Returns prefixes: FS is left out, its base is the process's own, and so is GS in compatibility mode, where it has no segment.
fn prefixes(rng: &mut Rng, mode: CodeMode) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (prefix, chance) in [(0x66, 4), (0x67, 8), (0xf0, 8), (0xf2, 8), (0xf3, 8)] {
        if once_in(rng, chance) {
            bytes.push(prefix);
        }
    }
    if once_in(rng, 16) {
        bytes.push([0x26, 0x2e, 0x36, 0x3e][rng.usize(..4)]);
    } else if mode == CodeMode::Bits64 && once_in(rng, 12) {
        bytes.push(0x65);
    }
    if mode == CodeMode::Bits64 && !once_in(rng, 3) {
        bytes.push(0x40 | rng.u8(..16));
    }
    bytes
}
