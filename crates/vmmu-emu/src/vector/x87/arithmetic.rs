//! FADD, FSUB, FMUL, FDIV, their reversed, popping and integer forms.

use iced_x86::{Instruction, Mnemonic};

use super::complete;
use super::second::{Second, by_second};
use super::stack::{Keep, Pop, Pops};
use crate::cpu::{Cpu, Stop};
use crate::float::Number;
use crate::float::arithmetic::{self, Dyadic};
use crate::fpu::Fpu;
use crate::op::{Op, Run};
use crate::vector::guard;

/// An operation on the destination and the second operand.
trait Operation {
    const FUNCTION: Dyadic;
}

macro_rules! operations {
    ($($name:ident: $function:ident;)*) => {$(
        struct $name;
        impl Operation for $name {
            const FUNCTION: Dyadic = arithmetic::$function;
        }
    )*};
}
operations! {
    Add: add;
    Sub: sub;
    SubReversed: sub_reversed;
    Mul: mul;
    Div: div;
    DivReversed: div_reversed;
}

fn binary<S: Second, P: Pops, O: Operation, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let b = S::get(cpu, op)?;
    let fpu = &mut cpu.state_mut().fpu;
    let to = if S::MEMORY { 0 } else { op.reg & 7 };
    if operate(fpu, to, b, O::FUNCTION) {
        fpu.pop::<P>();
    }
    complete(cpu, op, S::MEMORY);
    Ok(())
}

/// Computes ST(to) with a second operand; says whether to pop. Not generic, so that it is compiled once.
fn operate(fpu: &mut Fpu, to: u8, b: Option<Number>, function: Dyadic) -> bool {
    let (Some(a), Some(b)) = (fpu.number(to), b) else {
        return fpu.write_empty(to);
    };
    let mut env = fpu.env();
    let result = function(&mut env, a, b, &fpu.target());
    fpu.write(to, &result, &env)
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Fadd | Mnemonic::Fiadd => by_second!(instruction, binary, C, Keep, Add),
        Mnemonic::Fsub | Mnemonic::Fisub => by_second!(instruction, binary, C, Keep, Sub),
        Mnemonic::Fsubr | Mnemonic::Fisubr => by_second!(instruction, binary, C, Keep, SubReversed),
        Mnemonic::Fmul | Mnemonic::Fimul => by_second!(instruction, binary, C, Keep, Mul),
        Mnemonic::Fdiv | Mnemonic::Fidiv => by_second!(instruction, binary, C, Keep, Div),
        Mnemonic::Fdivr | Mnemonic::Fidivr => by_second!(instruction, binary, C, Keep, DivReversed),
        Mnemonic::Faddp => by_second!(instruction, binary, C, Pop, Add),
        Mnemonic::Fsubp => by_second!(instruction, binary, C, Pop, Sub),
        Mnemonic::Fsubrp => by_second!(instruction, binary, C, Pop, SubReversed),
        Mnemonic::Fmulp => by_second!(instruction, binary, C, Pop, Mul),
        Mnemonic::Fdivp => by_second!(instruction, binary, C, Pop, Div),
        Mnemonic::Fdivrp => by_second!(instruction, binary, C, Pop, DivReversed),
        _ => None,
    }
}
