//! Pushes and pops of general registers, memory and immediates, and LEAVE.

use iced_x86::{CodeSize, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Cpu, Stop};
use crate::decode::{Form, form};
use crate::op::{Op, Run};
use crate::operand::{I, M, Operand, R0};
use crate::stack::{Stack, Stack64, StackSegment, discard, peek, push};
use crate::state::Gpr;
use crate::word::Word;

fn push_operand<W: Word, D: Operand, S: Stack, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let value: W = D::get(cpu, op)?;
    push::<W, S, C>(cpu, value)
}

/// PUSH of a segment register. Processors write 16 bits only, and leave the rest of the slot.
fn push_selector<W: Word, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let selector = cpu.state().segments[usize::from(op.reg).min(5)].selector;
    let pointer = S::pointer(cpu.state()).wrapping_sub(W::BYTES as u64);
    let at = S::linear(cpu.state(), pointer, W::BYTES, crate::Access::Write)?;
    if W::BYTES == 8 {
        cpu.store(at, u64::from(selector), crate::Access::Write)?;
    } else {
        cpu.store(at, selector, crate::Access::Write)?;
    }
    S::set_pointer(cpu.state_mut(), pointer);
    Ok(())
}

/// POP: a destination in memory is addressed with the stack pointer already moved (AMD APM vol. 3, "POP").
fn pop_operand<W: Word, D: Operand, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: W = peek::<W, S, C>(cpu, 0)?;
    let before = cpu.state().get(Gpr::RSP);
    discard::<S>(cpu.state_mut(), W::BYTES as u64);
    D::set(cpu, op, value).inspect_err(|_| cpu.state_mut().set(Gpr::RSP, before))
}

/// LEAVE.
fn leave<W: Word, S: Stack, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let before = cpu.state().get(Gpr::RSP);
    let frame = cpu.state().get(Gpr::RBP);
    S::set_pointer(cpu.state_mut(), frame);
    let value = peek::<W, S, C>(cpu, 0);
    let value = value.inspect_err(|_| cpu.state_mut().set(Gpr::RSP, before))?;
    let state = cpu.state_mut();
    discard::<S>(state, W::BYTES as u64);
    crate::operand::write_register(state, Gpr::RBP.number(), value);
    Ok(())
}

/// Chooses by operand size, and by the code's mode, in which the stack is addressed.
macro_rules! by_stack {
    ($instruction:expr, $size:expr, $function:ident, ($($kind:ty),*), $cpu:ident) => {
        if $instruction.code_size() == CodeSize::Code64 {
            by_wide_size!($size, $function, ($($kind,)* Stack64), $cpu)
        } else {
            by_wide_size!($size, $function, ($($kind,)* StackSegment), $cpu)
        }
    };
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let size = instruction.stack_pointer_increment().unsigned_abs() as usize;
    match (instruction.mnemonic(), form(instruction)) {
        (Mnemonic::Push, Some((Form::Reg, _))) => {
            by_stack!(instruction, size, push_operand, (R0), C)
        }
        (Mnemonic::Push, Some((Form::Mem, _))) => {
            by_stack!(instruction, size, push_operand, (M), C)
        }
        (Mnemonic::Push, _) if instruction.op0_kind() != OpKind::Register => {
            by_stack!(instruction, size, push_operand, (I), C)
        }
        (Mnemonic::Push, _) if is_selector(instruction.op0_register()) => {
            by_stack!(instruction, size, push_selector, (), C)
        }
        (Mnemonic::Pop, Some((Form::Reg, _))) => by_stack!(instruction, size, pop_operand, (R0), C),
        (Mnemonic::Pop, Some((Form::Mem, _))) => by_stack!(instruction, size, pop_operand, (M), C),
        (Mnemonic::Leave, _) => by_stack!(instruction, leave_size(instruction), leave, (), C),
        _ => None,
    }
}

fn is_selector(register: Register) -> bool {
    register.is_segment_register()
}

/// Returns the size in bytes of the frame pointer that LEAVE pops.
fn leave_size(instruction: &Instruction) -> usize {
    use iced_x86::Code;
    match instruction.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    }
}
