//! Random instructions whose operands lie where the sandbox has memory.
//!
//! Key types: [`Generator`], [`Case`].
//!
//! A case starts from random bytes behind a chosen opcode; the decoder says what they mean. Then registers that address memory, stacks, strings and
//! branch targets are set so that the instruction touches the data pages and goes to the code pages, most of the time in the middle, sometimes across
//! the end, where it faults.

mod address;
mod encoding;
mod operands;
mod values;

use fastrand::Rng;
use iced_x86::Instruction;

use crate::registers::{CodeMode, Registers};
use crate::trampoline::DATA_LEN;
use encoding::{Encoded, Opcode};

/// An instruction and what it starts from.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its bytes.
    pub code: Vec<u8>,
    /// What they mean.
    pub instruction: Instruction,
    /// The registers before.
    pub registers: Registers,
    /// The data pages before.
    pub data: Box<[u8; DATA_LEN]>,
}

/// A source of cases of one mode.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    mode: CodeMode,
    wanted: fn(&Instruction) -> bool,
    opcodes: Vec<Opcode>,
}

impl Generator {
    /// Makes one of the instructions that `wanted` accepts. It leaves out what a process may not execute, or what would end it.
    #[must_use]
    pub fn new(seed: u64, mode: CodeMode, wanted: fn(&Instruction) -> bool) -> Self {
        let mut generator = Self {
            rng: Rng::with_seed(seed),
            mode,
            wanted,
            opcodes: Vec::new(),
        };
        let rng = &mut generator.rng;
        generator.opcodes = Opcode::all(mode)
            .filter(|opcode| {
                let mut tries = (0..400).filter_map(|_| Encoded::random(rng, mode, *opcode));
                tries.any(|encoded| wanted(&encoded.instruction))
            })
            .collect();
        generator
    }

    /// Returns the next case.
    ///
    /// # Panics
    /// No instruction is wanted.
    pub fn next_case(&mut self) -> Case {
        assert!(!self.opcodes.is_empty(), "some instruction is wanted");
        loop {
            if let Some(case) = self.attempt() {
                return case;
            }
        }
    }

    fn attempt(&mut self) -> Option<Case> {
        let rng = &mut self.rng;
        let opcode = self.opcodes[rng.usize(..self.opcodes.len())];
        let encoded = Encoded::random(rng, self.mode, opcode)?;
        if !(self.wanted)(&encoded.instruction) {
            return None;
        }
        let mut case = Case {
            code: Vec::new(),
            instruction: encoded.instruction,
            registers: self.registers(),
            data: self.data(),
        };
        let encoded = operands::fit(&mut self.rng, encoded, &mut case)?;
        if !(self.wanted)(&encoded.instruction) {
            return None;
        }
        case.instruction = encoded.instruction;
        case.code = encoded.bytes;
        Some(case)
    }

    fn registers(&mut self) -> Registers {
        let mut registers = Registers::new(self.mode);
        registers.rip = self.mode.start();
        registers.flags = self.rng.u64(..) & Registers::FLAGS;
        for gpr in &mut registers.gpr {
            *gpr = values::value(&mut self.rng);
            if self.mode != CodeMode::Bits64 {
                *gpr &= 0xffff_ffff;
            }
        }
        registers
    }

    fn data(&mut self) -> Box<[u8; DATA_LEN]> {
        let mut data = Box::new([0; DATA_LEN]);
        // Often few different bytes, so that strings compare equal.
        if values::once_in(&mut self.rng, 4) {
            data.fill(self.rng.u8(..));
        } else {
            self.rng.fill(&mut data[..]);
        }
        data
    }
}
