//! Moves: MOV, MOVZX, MOVSX, MOVSXD, CMOVcc, SETcc, BSWAP, LEA, MOVBE, MOVNTI, XLAT, and the extensions of the accumulator.

use iced_x86::{Instruction, Mnemonic};

use crate::address;
use crate::condition::holds;
use crate::cpu::{Access, Cpu, Stop};
use crate::decode::{Form, form};
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1, read_register, write_register};
use crate::state::Gpr;
use crate::word::Word;

const RAX: u8 = Gpr::RAX.number();
const RDX: u8 = Gpr::RDX.number();

fn mov<W: Word, D: Operand, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: W = S::get(cpu, op)?;
    D::set(cpu, op, value)
}

/// MOVZX.
fn zero_extend<W: Word, S: Operand, N: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: N = S::get(cpu, op)?;
    R0::set(cpu, op, W::truncate(value.zero_extend()))
}

/// MOVSX and MOVSXD.
fn sign_extend<W: Word, S: Operand, N: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: N = S::get(cpu, op)?;
    R0::set(cpu, op, W::truncate(value.sign_extend()))
}

/// CMOVcc: the source is read, and 32 bits clear the upper half, whether or not the condition holds.
fn cmov<const CONDITION: u8, W: Word, S: Operand, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let mut value: W = S::get(cpu, op)?;
    if !holds::<CONDITION>(cpu.state().flags) {
        value = R0::get(cpu, op)?;
    }
    R0::set(cpu, op, value)
}

fn set_on_condition<const CONDITION: u8, D: Operand, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let value = u8::from(holds::<CONDITION>(cpu.state().flags));
    D::set(cpu, op, value)
}

fn lea<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let offset = op.offset(cpu.state());
    R0::set(cpu, op, W::truncate(offset))
}

/// Returns a value with its bytes in the opposite order.
#[inline(always)]
fn swapped<W: Word>(value: W) -> W {
    W::truncate(value.zero_extend().swap_bytes() >> (64 - W::BITS))
}

/// BSWAP. Of 16 bits the manuals leave the result undefined; processors clear them.
fn bswap<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: W = R0::get(cpu, op)?;
    let value = if W::BYTES == 2 {
        W::default()
    } else {
        swapped(value)
    };
    R0::set(cpu, op, value)
}

fn movbe<W: Word, D: Operand, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: W = S::get(cpu, op)?;
    D::set(cpu, op, swapped(value))
}

/// XLAT: AL, not all of RAX, is the index.
fn xlat<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let al = state.get(Gpr::RAX) & 0xff;
    let offset = op.truncate(state.get(Gpr::RBX).wrapping_add(al));
    let at = address::linear(state, op.seg, offset, 1, Access::Read)?;
    let value: u8 = cpu.load(at, Access::Read)?;
    write_register(cpu.state_mut(), RAX, value);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator's lower half, extended to `W`.
fn extend_accumulator<W: Word, N: Word, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let value: N = read_register(state, RAX);
    write_register(state, RAX, W::truncate(value.sign_extend()));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign, spread over DX.
fn spread_sign<W: Word, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let value: W = read_register(state, RAX);
    let sign = (value.sign_extend() as i64 >> 63) as u64;
    write_register(state, RDX, W::truncate(sign));
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Mov => by_form!(instruction, mov, C),
        Mnemonic::Movnti => by_form!(instruction, mov, C),
        Mnemonic::Movbe => select_movbe(instruction),
        Mnemonic::Movzx => match source_size(instruction) {
            1 => by_source!(instruction, zero_extend, C, u8),
            _ => by_source!(instruction, zero_extend, C, u16),
        },
        Mnemonic::Movsx | Mnemonic::Movsxd => match source_size(instruction) {
            1 => by_source!(instruction, sign_extend, C, u8),
            2 => by_source!(instruction, sign_extend, C, u16),
            _ => by_source!(instruction, sign_extend, C, u32),
        },
        Mnemonic::Lea => by_wide_size!(instruction.op0_register().size(), lea, (), C),
        Mnemonic::Bswap => by_wide_size!(instruction.op0_register().size(), bswap, (), C),
        Mnemonic::Xlatb => Some(xlat::<C>),
        Mnemonic::Cbw => Some(extend_accumulator::<u16, u8, C>),
        Mnemonic::Cwde => Some(extend_accumulator::<u32, u16, C>),
        Mnemonic::Cdqe => Some(extend_accumulator::<u64, u32, C>),
        Mnemonic::Cwd => Some(spread_sign::<u16, C>),
        Mnemonic::Cdq => Some(spread_sign::<u32, C>),
        Mnemonic::Cqo => Some(spread_sign::<u64, C>),
        _ => select_conditional(instruction),
    }
}

/// Returns the size in bytes of the second operand.
fn source_size(instruction: &Instruction) -> usize {
    match form(instruction) {
        Some((Form::RegReg, _)) => instruction.op1_register().size(),
        _ => instruction.memory_size().size(),
    }
}

fn select_movbe<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match form(instruction)? {
        (Form::RegMem, size) => by_wide_size!(size, movbe, (R0, M), C),
        (Form::MemReg, size) => by_wide_size!(size, movbe, (M, R0), C),
        _ => None,
    }
}

/// Finds CMOVcc and SETcc: a condition, and no branch.
fn select_conditional<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    if instruction.code().is_jcc_short_or_near() {
        return None;
    }
    match form(instruction)? {
        (Form::Reg, 1) => by_condition!(instruction, set_on_condition, (R0), C),
        (Form::Mem, 1) => by_condition!(instruction, set_on_condition, (M), C),
        (Form::RegReg, 2) => by_condition!(instruction, cmov, (u16, R1), C),
        (Form::RegReg, 4) => by_condition!(instruction, cmov, (u32, R1), C),
        (Form::RegReg, 8) => by_condition!(instruction, cmov, (u64, R1), C),
        (Form::RegMem, 2) => by_condition!(instruction, cmov, (u16, M), C),
        (Form::RegMem, 4) => by_condition!(instruction, cmov, (u32, M), C),
        (Form::RegMem, 8) => by_condition!(instruction, cmov, (u64, M), C),
        _ => None,
    }
}
