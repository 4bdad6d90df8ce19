//! Slots being filled: instructions encoded at their addresses, and what hides undefined flags.
//!
//! Key type: [`Slot`].

use fastrand::Rng;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use crate::layout::{SLOT, STACK};
use crate::operand;
use crate::program::Kind;

/// A slot's last bytes are a jump over what it does not fill.
const ROOM: usize = SLOT as usize - 2;

/// A slot.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) kind: Kind,
    /// Where it lies, as the program sees it.
    pub(crate) at: u64,
    bytes: Vec<u8>,
    fits: bool,
}

impl<'a> Slot<'a> {
    pub(crate) const fn new(rng: &'a mut Rng, kind: Kind, at: u64) -> Self {
        Self {
            rng,
            kind,
            at,
            bytes: Vec::new(),
            fits: true,
        }
    }

    /// Returns where the following one lies.
    pub(crate) const fn next(&self) -> u64 {
        self.at + SLOT
    }

    /// Returns the width of the code in bits.
    pub(crate) const fn bits(&self) -> u32 {
        self.kind.bits()
    }

    /// Adds an instruction.
    pub(crate) fn add(&mut self, instruction: Instruction) {
        let mut encoder = Encoder::new(self.bits());
        let at = self.at + self.bytes.len() as u64;
        match encoder.encode(&instruction, at) {
            Ok(_) => self.bytes.extend(encoder.take_buffer()),
            Err(_) => self.fits = false,
        }
    }

    /// Returns the code: padded, or none if it does not fit.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        if !self.fits || self.bytes.len() > ROOM {
            return None;
        }
        let rest = ROOM - self.bytes.len();
        self.bytes.extend([0xeb, rest as u8]);
        self.bytes.resize(SLOT as usize, 0xcc);
        Some(self.bytes)
    }

    /// Returns a register of the code's width.
    pub(crate) fn wide(&self, register: Register) -> Register {
        if self.bits() == 64 {
            register.full_register()
        } else {
            register.full_register32()
        }
    }

    /// Returns the form of the code's width.
    pub(crate) const fn by_width(&self, code_64: Code, code_32: Code) -> Code {
        if self.bits() == 64 { code_64 } else { code_32 }
    }

    /// Loads a register.
    pub(crate) fn load(&mut self, to: Register, value: u64) {
        let to = self.wide(to);
        self.add(operand::load(to, value));
    }

    /// Puts the stack pointer into the program's stack.
    pub(crate) fn fresh_stack(&mut self) {
        let top = self.kind.view(STACK) + 0x800 + self.rng.u64(..0xe0) * 8;
        self.load(Register::RSP, top);
    }

    /// Pushes a number through RAX.
    pub(crate) fn push(&mut self, value: u64) {
        self.load(Register::RAX, value);
        self.push_register(Register::RAX);
    }

    /// Pushes a register.
    pub(crate) fn push_register(&mut self, register: Register) {
        let code = self.by_width(Code::Push_r64, Code::Push_r32);
        let made = Instruction::with1(code, self.wide(register));
        self.add(made.expect("a register"));
    }

    /// Adds an instruction without operands.
    pub(crate) fn plain(&mut self, code: Code) {
        self.add(Instruction::with(code));
    }

    /// Returns an absolute memory operand.
    pub(crate) fn memory(&self, at: u64) -> MemoryOperand {
        let size = if self.bits() == 64 { 8 } else { 4 };
        MemoryOperand::with_displ(at, size)
    }

    /// Stores a number of 32 bits.
    pub(crate) fn store(&mut self, at: u64, value: u32) {
        let memory = self.memory(at);
        let made = Instruction::with2(Code::Mov_rm32_imm32, memory, value);
        self.add(made.expect("an address and a number"));
    }

    /// Clears flags that the manuals leave undefined.
    pub(crate) fn hide(&mut self, undefined: u64) {
        if undefined == 0 {
            return;
        }
        self.fresh_stack();
        self.plain(self.by_width(Code::Pushfq, Code::Pushfd));
        let top = self.wide(Register::RSP);
        let memory = MemoryOperand::with_base(top);
        let made = Instruction::with2(Code::And_rm32_imm32, memory, !undefined as u32);
        self.add(made.expect("an address and a number"));
        self.plain(self.by_width(Code::Popfq, Code::Popfd));
    }
}
