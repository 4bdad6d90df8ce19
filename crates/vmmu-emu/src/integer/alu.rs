//! Arithmetic and logic: ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic};

use crate::arith;
use crate::cpu::{Cpu, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::operand::Operand;
use crate::word::Word;

/// An operation of two operands that sets all arithmetic flags.
trait Binary {
    fn apply<W: Word>(a: W, b: W, flags: Flags) -> (W, Flags);
}

/// An operation of one operand, and the flags that it sets.
trait Unary {
    const SETS: Flags;
    fn apply<W: Word>(a: W) -> (W, Flags);
}

macro_rules! binary {
    ($($name:ident = |$a:ident, $b:ident, $flags:ident| $result:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<W: Word>($a: W, $b: W, $flags: Flags) -> (W, Flags) {
                $result
            }
        }
    )*};
}
binary! {
    Add = |a, b, _flags| arith::add(a, b, false);
    Adc = |a, b, flags| arith::add(a, b, flags.contains(Flags::CF));
    Sub = |a, b, _flags| arith::sub(a, b, false);
    Sbb = |a, b, flags| arith::sub(a, b, flags.contains(Flags::CF));
    And = |a, b, _flags| logic(a.zero_extend() & b.zero_extend());
    Or = |a, b, _flags| logic(a.zero_extend() | b.zero_extend());
    Xor = |a, b, _flags| logic(a.zero_extend() ^ b.zero_extend());
}

/// Completes a bitwise operation: CF and OF are clear, and AF, which is undefined, too.
#[inline(always)]
fn logic<W: Word>(result: u64) -> (W, Flags) {
    let result = W::truncate(result);
    (result, arith::of_result(result))
}

struct Inc;
impl Unary for Inc {
    const SETS: Flags = Flags::ARITHMETIC.difference(Flags::CF);
    #[inline(always)]
    fn apply<W: Word>(a: W) -> (W, Flags) {
        arith::add(a, W::truncate(1), false)
    }
}

struct Dec;
impl Unary for Dec {
    const SETS: Flags = Flags::ARITHMETIC.difference(Flags::CF);
    #[inline(always)]
    fn apply<W: Word>(a: W) -> (W, Flags) {
        arith::sub(a, W::truncate(1), false)
    }
}

struct Neg;
impl Unary for Neg {
    const SETS: Flags = Flags::ARITHMETIC;
    #[inline(always)]
    fn apply<W: Word>(a: W) -> (W, Flags) {
        arith::sub(W::truncate(0), a, false)
    }
}

struct Not;
impl Unary for Not {
    const SETS: Flags = Flags::empty();
    #[inline(always)]
    fn apply<W: Word>(a: W) -> (W, Flags) {
        (W::truncate(!a.zero_extend()), Flags::empty())
    }
}

fn binary<W: Word, D: Operand, S: Operand, B: Binary, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let source: W = S::get(cpu, op)?;
    let flags = D::update::<W, _, C>(cpu, op, |state, old| B::apply(old, source, state.flags))?;
    cpu.state_mut().flags.replace(Flags::ARITHMETIC, flags);
    Ok(())
}

/// CMP and TEST: only flags come of it.
fn compare<W: Word, D: Operand, S: Operand, B: Binary, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let source: W = S::get(cpu, op)?;
    let first: W = D::get(cpu, op)?;
    let state = cpu.state_mut();
    let (_, flags) = B::apply(first, source, state.flags);
    state.flags.replace(Flags::ARITHMETIC, flags);
    Ok(())
}

fn unary<W: Word, D: Operand, U: Unary, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let flags = D::update::<W, _, C>(cpu, op, |_, old| U::apply(old))?;
    cpu.state_mut().flags.replace(U::SETS, flags & U::SETS);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Add => by_form!(instruction, binary, C, Add),
        Mnemonic::Adc => by_form!(instruction, binary, C, Adc),
        Mnemonic::Sub => by_form!(instruction, binary, C, Sub),
        Mnemonic::Sbb => by_form!(instruction, binary, C, Sbb),
        Mnemonic::And => by_form!(instruction, binary, C, And),
        Mnemonic::Or => by_form!(instruction, binary, C, Or),
        Mnemonic::Xor => by_form!(instruction, binary, C, Xor),
        Mnemonic::Cmp => by_form!(instruction, compare, C, Sub),
        Mnemonic::Test => by_form!(instruction, compare, C, And),
        Mnemonic::Inc => by_place!(instruction, unary, C, Inc),
        Mnemonic::Dec => by_place!(instruction, unary, C, Dec),
        Mnemonic::Neg => by_place!(instruction, unary, C, Neg),
        Mnemonic::Not => by_place!(instruction, unary, C, Not),
        _ => None,
    }
}
