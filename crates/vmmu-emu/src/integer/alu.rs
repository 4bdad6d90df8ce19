//! ADD, ADC, SUB, SBB, CMP and MOV.

use iced_x86::{Instruction, Mnemonic};

use crate::arith;
use crate::cpu::{Cpu, Stop};
use crate::decode::{Form, form};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::operand::{I, M, Operand, R0, R1};
use crate::word::Word;

/// A binary operation that sets all arithmetic flags.
trait Binary {
    fn apply<W: Word>(a: W, b: W, flags: Flags) -> (W, Flags);
}

struct Add;
impl Binary for Add {
    #[inline(always)]
    fn apply<W: Word>(a: W, b: W, _: Flags) -> (W, Flags) {
        arith::add(a, b, false)
    }
}

struct Sub;
impl Binary for Sub {
    #[inline(always)]
    fn apply<W: Word>(a: W, b: W, _: Flags) -> (W, Flags) {
        arith::sub(a, b, false)
    }
}

fn binary<W: Word, D: Operand, S: Operand, B: Binary, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let source: W = S::get(cpu, op)?;
    let flags = D::update::<W, _, C>(cpu, op, |state, old| B::apply(old, source, state.flags))?;
    let state = cpu.state_mut();
    state.flags = state.flags.difference(Flags::ARITHMETIC).union(flags);
    Ok(())
}

fn mov<W: Word, D: Operand, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value: W = S::get(cpu, op)?;
    D::set(cpu, op, value)
}

/// Chooses an instance by the instruction's operands and size.
macro_rules! by_form {
    ($instruction:expr, $function:ident, $cpu:ident $(, $kind:ty)*) => {
        match form($instruction) {
            Some((Form::RegReg, size)) => by_size!(size, $function, (R0, R1 $(, $kind)*), $cpu),
            Some((Form::RegMem, size)) => by_size!(size, $function, (R0, M $(, $kind)*), $cpu),
            Some((Form::MemReg, size)) => by_size!(size, $function, (M, R0 $(, $kind)*), $cpu),
            Some((Form::RegImm, size)) => by_size!(size, $function, (R0, I $(, $kind)*), $cpu),
            Some((Form::MemImm, size)) => by_size!(size, $function, (M, I $(, $kind)*), $cpu),
            _ => None,
        }
    };
}

macro_rules! by_size {
    ($size:expr, $function:ident, ($($kind:ty),*), $cpu:ident) => {
        match $size {
            1 => Some($function::<u8, $($kind,)* $cpu> as Run<$cpu>),
            2 => Some($function::<u16, $($kind,)* $cpu> as Run<$cpu>),
            4 => Some($function::<u32, $($kind,)* $cpu> as Run<$cpu>),
            8 => Some($function::<u64, $($kind,)* $cpu> as Run<$cpu>),
            _ => None,
        }
    };
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Add => by_form!(instruction, binary, C, Add),
        Mnemonic::Sub => by_form!(instruction, binary, C, Sub),
        Mnemonic::Mov => by_form!(instruction, mov, C),
        _ => None,
    }
}
