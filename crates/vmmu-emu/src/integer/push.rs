//! PUSH and POP of general registers, memory and immediates.

use iced_x86::{CodeSize, Instruction, Mnemonic, OpKind};

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

/// POP: a destination in memory is addressed with the stack pointer already moved (AMD APM vol. 3, "POP").
fn pop_operand<W: Word, D: Operand, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: W = peek::<W, S, C>(cpu, 0)?;
    let before = cpu.state().get(Gpr::RSP);
    discard::<S>(cpu.state_mut(), W::BYTES as u64);
    D::set(cpu, op, value).inspect_err(|_| cpu.state_mut().set(Gpr::RSP, before))
}

/// Chooses by operand size, and by the code's mode, in which the stack is addressed.
macro_rules! by_stack {
    ($instruction:expr, $size:expr, $function:ident, $kind:ty, $cpu:ident) => {
        if $instruction.code_size() == CodeSize::Code64 {
            by_wide_size!($size, $function, ($kind, Stack64), $cpu)
        } else {
            by_wide_size!($size, $function, ($kind, StackSegment), $cpu)
        }
    };
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let size = instruction.stack_pointer_increment().unsigned_abs() as usize;
    match (instruction.mnemonic(), form(instruction)) {
        (Mnemonic::Push, Some((Form::Reg, _))) => by_stack!(instruction, size, push_operand, R0, C),
        (Mnemonic::Push, Some((Form::Mem, _))) => by_stack!(instruction, size, push_operand, M, C),
        (Mnemonic::Push, _) if instruction.op0_kind() != OpKind::Register => {
            by_stack!(instruction, size, push_operand, I, C)
        }
        (Mnemonic::Pop, Some((Form::Reg, _))) => by_stack!(instruction, size, pop_operand, R0, C),
        (Mnemonic::Pop, Some((Form::Mem, _))) => by_stack!(instruction, size, pop_operand, M, C),
        _ => None,
    }
}
