//! From bytes to an [`Op`]: iced-x86 finds the instruction, a family its function, and the operands are laid out for it.
//!
//! Key types: [`Mode`], [`DecodeError`]; key function: [`decode`].

use iced_x86::{
    CpuidFeature, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register,
};

use crate::cpu::Cpu;
use crate::integer;
use crate::op::{Bits, HIGH_BYTE, Op, Run, Seg};
use crate::state::{Gpr, SegmentName, State};
use crate::{system, vector};

/// The longest instruction in bytes (AMD APM vol. 3, section 1.1).
pub const LONGEST: usize = 15;

/// What decides how bytes are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// 64-bit code.
    Bits64,
    /// Code whose segment says 32 bits.
    Bits32,
    /// Code whose segment says 16 bits, real mode included.
    Bits16,
}

impl Mode {
    /// Returns the mode of a state.
    #[inline]
    #[must_use]
    pub const fn of(state: &State) -> Self {
        if state.is_64_bit() {
            Self::Bits64
        } else if state.segment(SegmentName::Cs).attributes & 1 << 10 != 0 {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }

    /// Returns the number of bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
            Self::Bits16 => 16,
        }
    }
}

/// Why bytes are no [`Op`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// No instruction: #UD.
    Invalid,
    /// The instruction is longer than 15 bytes: #GP.
    TooLong,
    /// The bytes end before the instruction does.
    CutShort,
    /// An instruction of an extension that is beyond the emulator's processor (AVX, virtualisation, ...): #UD where CPUID does not offer it.
    NotOffered,
    /// Another instruction that the emulator does not know.
    Unsupported,
}

/// Where an instruction's first two operands are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    RegReg,
    RegMem,
    MemReg,
    RegImm,
    MemImm,
    Reg,
    Mem,
    Other,
}

/// Returns the form and the first operand's size in bytes; only general registers count as registers.
pub(crate) fn form(instruction: &Instruction) -> Option<(Form, usize)> {
    let kind = |n| {
        if n < instruction.op_count() {
            Some(instruction.op_kind(n))
        } else {
            None
        }
    };
    let registers = (0..instruction.op_count().min(2)).map(|n| instruction.op_register(n));
    if registers
        .into_iter()
        .any(|r| r != Register::None && !r.is_gpr())
    {
        return Some((Form::Other, 0));
    }
    let size = match kind(0)? {
        OpKind::Register => instruction.op0_register().size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => return Some((Form::Other, 0)),
    };
    let form = match (kind(0)?, kind(1)) {
        (OpKind::Register, None) => Form::Reg,
        (OpKind::Memory, None) => Form::Mem,
        (OpKind::Register, Some(OpKind::Register)) => Form::RegReg,
        (OpKind::Register, Some(OpKind::Memory)) => Form::RegMem,
        (OpKind::Memory, Some(OpKind::Register)) => Form::MemReg,
        (OpKind::Register, Some(other)) if is_immediate(other) => Form::RegImm,
        (OpKind::Memory, Some(other)) if is_immediate(other) => Form::MemImm,
        _ => Form::Other,
    };
    Some((form, size))
}

const fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// Decodes the instruction that `bytes` begin with.
///
/// # Errors
/// Why there is none.
pub fn decode<C: Cpu>(bytes: &[u8], mode: Mode) -> Result<Op<C>, DecodeError> {
    // At address 0, so that targets and RIP-relative displacements come out relative to the instruction.
    let mut decoder = Decoder::with_ip(mode.bits(), bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() >= LONGEST => return Err(DecodeError::TooLong),
        DecoderError::NoMoreBytes => return Err(DecodeError::CutShort),
        _ => return Err(DecodeError::Invalid),
    }
    let run = integer::select(&instruction)
        .or_else(|| system::select(&instruction))
        .or_else(|| select_vector::<C>(&instruction))
        .ok_or_else(|| unknown(&instruction))?;
    let mut op = lay_out(&instruction, mode, run);
    if let Some(opcode) = vector::opcode(&instruction, bytes) {
        op.imm = opcode;
    }
    Ok(op)
}

/// Finds the function of an instruction of the floating-point and vector families, where there is to be one.
fn select_vector<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    if C::HAS_VECTORS {
        vector::select(instruction)
    } else {
        None
    }
}

/// Says why there is no function for an instruction.
fn unknown(instruction: &Instruction) -> DecodeError {
    if instruction.cpuid_features().iter().all(is_baseline) {
        DecodeError::Unsupported
    } else {
        DecodeError::NotOffered
    }
}

/// Says whether the emulator's processor has a feature as a whole; of others it may know a few instructions.
fn is_baseline(feature: &CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::CLFSH
            | F::PAUSE
            | F::MULTIBYTENOP
            | F::CPUID
            | F::TSC
            | F::MSR
            | F::FXSR
            | F::SEP
            | F::SYSCALL
            | F::RDTSCP
            | F::RDPMC
            | F::FSGSBASE
            | F::SMAP
    )
}

/// Lays out an instruction's operands.
fn lay_out<C: Cpu>(instruction: &Instruction, mode: Mode, run: Run<C>) -> Op<C> {
    let mut op = Op {
        run,
        imm: 0,
        disp: 0,
        base: Gpr::NONE,
        index: Gpr::NONE,
        scale: 0,
        seg: Seg::Flat,
        reg: Gpr::NONE.number(),
        rm: Gpr::NONE.number(),
        len: instruction.len() as u8,
        bits: prefixes(instruction),
    };
    let mut registers = 0;
    for n in 0..instruction.op_count() {
        match instruction.op_kind(n) {
            OpKind::Register => {
                let number = number(instruction.op_register(n));
                match registers {
                    0 => op.reg = number,
                    1 => op.rm = number,
                    _ => {}
                }
                registers += 1;
            }
            OpKind::Memory => lay_out_memory(instruction, mode, &mut op),
            // The masked stores' destination, at (R/E)DI.
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => {
                let kind = instruction.op_kind(n);
                op.base = Gpr::RDI;
                op.bits.set(Bits::ADDRESS_16, kind == OpKind::MemorySegDI);
                op.bits.set(Bits::ADDRESS_32, kind == OpKind::MemorySegEDI);
                op.seg = segment(instruction.memory_segment(), mode);
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = instruction.near_branch_target();
            }
            OpKind::Immediate8_2nd => op.imm |= u64::from(instruction.immediate8_2nd()) << 32,
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                let offset = match instruction.op_kind(n) {
                    OpKind::FarBranch16 => instruction.far_branch16().into(),
                    _ => instruction.far_branch32(),
                };
                let selector = u64::from(instruction.far_branch_selector());
                op.imm = u64::from(offset) | selector << 32;
            }
            kind if is_immediate(kind) => op.imm = instruction.immediate(n),
            kind => lay_out_string(instruction, kind, mode, &mut op),
        }
    }
    op
}

/// Lays out an operand of a string instruction: only its address size and, if it is the source, its segment are the instruction's own.
fn lay_out_string<C: Cpu>(instruction: &Instruction, kind: OpKind, mode: Mode, op: &mut Op<C>) {
    let (size, is_source) = match kind {
        OpKind::MemorySegSI => (2, true),
        OpKind::MemorySegESI => (4, true),
        OpKind::MemorySegRSI => (8, true),
        OpKind::MemorySegDI => (2, true),
        OpKind::MemorySegEDI => (4, true),
        OpKind::MemorySegRDI => (8, true),
        OpKind::MemoryESDI => (2, false),
        OpKind::MemoryESEDI => (4, false),
        OpKind::MemoryESRDI => (8, false),
        _ => return,
    };
    op.bits.set(Bits::ADDRESS_16, size == 2);
    op.bits.set(Bits::ADDRESS_32, size == 4);
    if is_source {
        op.seg = segment(instruction.memory_segment(), mode);
    } else if mode != Mode::Bits64 && op.seg == Seg::Flat {
        op.seg = Seg::Es;
    }
}

fn prefixes(instruction: &Instruction) -> Bits {
    use iced_x86::FlowControl;
    let mut bits = Bits::empty();
    bits.set(Bits::LOCK, instruction.has_lock_prefix());
    bits.set(Bits::REP, instruction.has_rep_prefix());
    bits.set(Bits::REPNE, instruction.has_repne_prefix());
    bits.set(
        Bits::BRANCH,
        instruction.flow_control() != FlowControl::Next || repeats(instruction),
    );
    bits.set(Bits::ANYTHING, system::changes_anything(instruction));
    bits
}

/// Says whether an instruction may stay where it is, to go on with its next elements.
fn repeats(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

fn lay_out_memory<C: Cpu>(instruction: &Instruction, mode: Mode, op: &mut Op<C>) {
    op.disp = instruction.memory_displacement64();
    let base = instruction.memory_base();
    // iced gives the target of a RIP-relative operand, here relative to the instruction.
    op.base = match base {
        Register::None => Gpr::NONE,
        Register::RIP | Register::EIP => Gpr::RIP,
        other => Gpr(number(other)),
    };
    op.index = match instruction.memory_index() {
        Register::None => Gpr::NONE,
        other => Gpr(number(other)),
    };
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    let size = address_size(instruction, mode);
    op.bits.set(Bits::ADDRESS_16, size == 2);
    op.bits.set(Bits::ADDRESS_32, size == 4);
    op.seg = segment(instruction.memory_segment(), mode);
}

/// Returns how the segment takes part; iced has applied defaults and prefixes.
const fn segment(register: Register, mode: Mode) -> Seg {
    match (register, mode) {
        (Register::FS, Mode::Bits64) => Seg::FlatFs,
        (Register::GS, Mode::Bits64) => Seg::FlatGs,
        (Register::SS, Mode::Bits64) => Seg::FlatStack,
        (_, Mode::Bits64) => Seg::Flat,
        (Register::ES, _) => Seg::Es,
        (Register::CS, _) => Seg::Cs,
        (Register::SS, _) => Seg::Ss,
        (Register::FS, _) => Seg::Fs,
        (Register::GS, _) => Seg::Gs,
        (_, _) => Seg::Ds,
    }
}

/// Returns the size of a memory operand's address in bytes.
fn address_size(instruction: &Instruction, mode: Mode) -> u8 {
    for register in [instruction.memory_base(), instruction.memory_index()] {
        if register != Register::None {
            return register.size().min(8) as u8;
        }
    }
    match instruction.memory_displ_size() {
        2 => 2,
        4 if mode != Mode::Bits64 => 4,
        4 => 4,
        _ => 8,
    }
}

/// Returns a register's number as [`Op`] has it.
pub(crate) fn number(register: Register) -> u8 {
    match register {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        Register::None => Gpr::NONE.number(),
        other if other.is_gpr() => other.full_register().number() as u8,
        other => other.number() as u8,
    }
}
