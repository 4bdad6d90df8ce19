//! Near branches: JMP, CALL, RET, Jcc, LOOPcc, JCXZ.
//!
//! A target outside the code segment, or not canonical, faults at the branch, before anything is pushed or counted (AMD APM vol. 3, "CALL (Near)").

use iced_x86::{Code, CodeSize, Instruction, Mnemonic};

use crate::address::is_canonical;
use crate::condition::holds;
use crate::cpu::{Cpu, Exception, Stop};
use crate::decode::{Form, form};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, read_register, write_register};
use crate::stack::{Stack, Stack64, StackSegment, discard, peek, push};
use crate::state::{Gpr, SegmentName, State};
use crate::word::Word;

/// Returns the instruction pointer that a target gives, if code may be there.
#[inline(always)]
fn checked<W: Word>(state: &State, target: W) -> Result<u64, Stop> {
    let target = target.zero_extend();
    let allowed = if W::BYTES == 8 {
        is_canonical(state, target)
    } else {
        target <= u64::from(state.segment(SegmentName::Cs).limit)
    };
    if allowed {
        Ok(target)
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Returns the target of a relative branch.
#[inline(always)]
fn relative<W: Word, C: Cpu>(state: &State, op: &Op<C>) -> Result<u64, Stop> {
    checked(state, W::truncate(state.rip().wrapping_add(op.imm)))
}

fn jump<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let target = relative::<W, C>(cpu.state(), op)?;
    cpu.state_mut().next = target;
    Ok(())
}

fn jump_on_condition<const CONDITION: u8, W: Word, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    if holds::<CONDITION>(cpu.state().flags) {
        jump::<W, C>(cpu, op)
    } else {
        Ok(())
    }
}

fn jump_to<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let target: W = D::get(cpu, op)?;
    let target = checked(cpu.state(), target)?;
    cpu.state_mut().next = target;
    Ok(())
}

fn call<W: Word, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let target = relative::<W, C>(cpu.state(), op)?;
    enter::<W, S, C>(cpu, target)
}

fn call_to<W: Word, D: Operand, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let target: W = D::get(cpu, op)?;
    let target = checked(cpu.state(), target)?;
    enter::<W, S, C>(cpu, target)
}

#[inline(always)]
fn enter<W: Word, S: Stack, C: Cpu>(cpu: &mut C, target: u64) -> Result<(), Stop> {
    let back = W::truncate(cpu.state().next);
    push::<W, S, C>(cpu, back)?;
    cpu.state_mut().next = target;
    Ok(())
}

/// RET; the immediate is what the caller pushed.
fn ret<W: Word, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let target = peek::<W, S, C>(cpu, 0)?;
    let target = checked(cpu.state(), target)?;
    let state = cpu.state_mut();
    discard::<S>(state, (W::BYTES as u64).wrapping_add(op.imm));
    state.next = target;
    Ok(())
}

/// LOOP, LOOPE, LOOPNE: N is the counter.
fn count_down<W: Word, N: Word, K: While, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let count = read_register::<N>(cpu.state(), Gpr::RCX.number()).zero_extend();
    let count = N::truncate(count.wrapping_sub(1));
    if count != N::default() && K::holds(cpu.state().flags) {
        jump::<W, C>(cpu, op)?;
    }
    write_register(cpu.state_mut(), Gpr::RCX.number(), count);
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
fn jump_if_no_count<W: Word, N: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let count: N = read_register(cpu.state(), Gpr::RCX.number());
    if count == N::default() {
        jump::<W, C>(cpu, op)
    } else {
        Ok(())
    }
}

/// What a LOOP asks besides its counter.
trait While {
    fn holds(flags: Flags) -> bool;
}

struct Always;
impl While for Always {
    fn holds(_: Flags) -> bool {
        true
    }
}

struct Equal;
impl While for Equal {
    fn holds(flags: Flags) -> bool {
        flags.contains(Flags::ZF)
    }
}

struct NotEqual;
impl While for NotEqual {
    fn holds(flags: Flags) -> bool {
        !flags.contains(Flags::ZF)
    }
}

/// Chooses by the size of a branch's target and by the counter.
macro_rules! by_counter {
    ($instruction:expr, $function:ident, ($($kind:ty),*), $cpu:ident) => {
        match $instruction.code() {
            Code::Loop_rel8_16_CX | Code::Loope_rel8_16_CX | Code::Loopne_rel8_16_CX
            | Code::Jcxz_rel8_16 => Some($function::<u16, u16, $($kind,)* $cpu> as Run<$cpu>),
            Code::Loop_rel8_32_CX | Code::Loope_rel8_32_CX | Code::Loopne_rel8_32_CX
            | Code::Jcxz_rel8_32 => Some($function::<u32, u16, $($kind,)* $cpu>),
            Code::Loop_rel8_16_ECX | Code::Loope_rel8_16_ECX | Code::Loopne_rel8_16_ECX
            | Code::Jecxz_rel8_16 => Some($function::<u16, u32, $($kind,)* $cpu>),
            Code::Loop_rel8_32_ECX | Code::Loope_rel8_32_ECX | Code::Loopne_rel8_32_ECX
            | Code::Jecxz_rel8_32 => Some($function::<u32, u32, $($kind,)* $cpu>),
            Code::Loop_rel8_64_ECX | Code::Loope_rel8_64_ECX | Code::Loopne_rel8_64_ECX
            | Code::Jecxz_rel8_64 => Some($function::<u64, u32, $($kind,)* $cpu>),
            Code::Loop_rel8_64_RCX | Code::Loope_rel8_64_RCX | Code::Loopne_rel8_64_RCX
            | Code::Jrcxz_rel8_64 => Some($function::<u64, u64, $($kind,)* $cpu>),
            _ => None,
        }
    };
}

/// Returns the size in bytes of a near branch's target.
fn target_size(instruction: &Instruction) -> usize {
    use iced_x86::OpKind;
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => 0,
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Jmp => select_jump(instruction),
        Mnemonic::Call => select_call(instruction),
        Mnemonic::Ret => match instruction.code() {
            Code::Retnq | Code::Retnq_imm16 => Some(ret::<u64, Stack64, C>),
            Code::Retnd | Code::Retnd_imm16 => Some(ret::<u32, StackSegment, C>),
            Code::Retnw | Code::Retnw_imm16 if instruction.code_size() != CodeSize::Code64 => {
                Some(ret::<u16, StackSegment, C>)
            }
            _ => None,
        },
        Mnemonic::Loop => by_counter!(instruction, count_down, (Always), C),
        Mnemonic::Loope => by_counter!(instruction, count_down, (Equal), C),
        Mnemonic::Loopne => by_counter!(instruction, count_down, (NotEqual), C),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            by_counter!(instruction, jump_if_no_count, (), C)
        }
        _ if instruction.code().is_jcc_short_or_near() => match target_size(instruction) {
            2 => by_condition!(instruction, jump_on_condition, (u16), C),
            4 => by_condition!(instruction, jump_on_condition, (u32), C),
            8 => by_condition!(instruction, jump_on_condition, (u64), C),
            _ => None,
        },
        _ => None,
    }
}

fn select_jump<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    if instruction.is_jmp_short_or_near() {
        return by_wide_size!(target_size(instruction), jump, (), C);
    }
    if !instruction.is_jmp_near_indirect() {
        return None;
    }
    match form(instruction)? {
        (Form::Reg, size) => by_wide_size!(size, jump_to, (R0), C),
        (Form::Mem, size) => by_wide_size!(size, jump_to, (M), C),
        _ => None,
    }
}

fn select_call<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    if instruction.is_call_near() {
        return match target_size(instruction) {
            2 => Some(call::<u16, StackSegment, C>),
            4 => Some(call::<u32, StackSegment, C>),
            8 => Some(call::<u64, Stack64, C>),
            _ => None,
        };
    }
    if !instruction.is_call_near_indirect() {
        return None;
    }
    match form(instruction)? {
        (Form::Reg, 2) => Some(call_to::<u16, R0, StackSegment, C>),
        (Form::Reg, 4) => Some(call_to::<u32, R0, StackSegment, C>),
        (Form::Reg, 8) => Some(call_to::<u64, R0, Stack64, C>),
        (Form::Mem, 2) => Some(call_to::<u16, M, StackSegment, C>),
        (Form::Mem, 4) => Some(call_to::<u32, M, StackSegment, C>),
        (Form::Mem, 8) => Some(call_to::<u64, M, Stack64, C>),
        _ => None,
    }
}
