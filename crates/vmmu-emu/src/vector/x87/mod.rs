//! The x87 unit: loads and stores, arithmetic, comparisons, constants, transcendental functions (AMD APM vol. 1, chapter 6; vol. 5).
//!
//! An instruction looks at its operands ([`Second`](second::Second)), computes in an [`Env`](crate::float::Env), and hands result and flags to
//! [`Fpu`](crate::fpu::Fpu)'s functions in [`stack`], which know what an exception that is not masked prevents. Then [`complete`] notes the
//! instruction's address, opcode and operand.

mod arithmetic;
mod compare;
mod constant;
mod decimal;
mod load;
mod second;
mod stack;
mod store;
mod transcendental;
mod unary;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::{Op, Run, Seg};
use crate::state::{SegmentName, State};

/// Notes an instruction that is no control instruction, and its operand if it has one in memory (AMD APM vol. 1, section 6.2.5).
#[inline(always)]
fn complete<C: Cpu>(cpu: &mut C, op: &Op<C>, memory: bool) {
    let state = cpu.state_mut();
    let data = memory.then(|| (op.seg, op.offset(state)));
    note(state, op.imm as u16 & 0x7ff, data);
}

fn note(state: &mut State, opcode: u16, data: Option<(Seg, u64)>) {
    let code = state.segment(SegmentName::Cs).selector;
    state.fpu.instruction = (code, state.rip());
    state.fpu.opcode = opcode;
    if let Some((seg, offset)) = data {
        state.fpu.data = (selector(state, seg), offset);
    }
}

fn selector(state: &State, seg: Seg) -> u16 {
    let number = match seg {
        Seg::Flat => SegmentName::Ds as usize,
        Seg::FlatStack => SegmentName::Ss as usize,
        Seg::FlatFs => SegmentName::Fs as usize,
        Seg::FlatGs => SegmentName::Gs as usize,
        other => other as usize - Seg::Es as usize,
    };
    state.segments[number].selector
}

/// Returns the opcode as FXSAVE stores it, for an instruction of this unit: the low bits of its first byte, and its second byte.
pub(crate) fn opcode(instruction: &Instruction, bytes: &[u8]) -> Option<u64> {
    // No prefix is among these bytes.
    let bytes = bytes.get(..instruction.len())?;
    let first = bytes.iter().position(|byte| byte & 0xf8 == 0xd8)?;
    let second = bytes.get(first + 1)?;
    let is_prefix = |byte: &u8| matches!(*byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f);
    let only_prefixes = bytes[..first].iter().all(is_prefix);
    only_prefixes.then(|| u64::from(bytes[first] & 7) << 8 | u64::from(*second))
}

/// Finds the function of an x87 instruction.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    load::select(instruction)
        .or_else(|| store::select(instruction))
        .or_else(|| arithmetic::select(instruction))
        .or_else(|| compare::select(instruction))
        .or_else(|| unary::select(instruction))
        .or_else(|| constant::select(instruction))
        .or_else(|| decimal::select(instruction))
        .or_else(|| transcendental::select(instruction))
}
