//! FABS, FCHS, FSQRT, FRNDINT, FSCALE, FXTRACT, FPREM, FPREM1.

use iced_x86::{Instruction, Mnemonic};

use super::compare::{C0, C1, C2, C3};
use super::complete;
use super::stack::Keep;
use crate::cpu::{Cpu, Stop};
use crate::float::remainder::{Quotient, Remainder, extract, remainder, scale};
use crate::float::{Env, Number, Target, arithmetic, integer};
use crate::fpu::{Extended, Fpu};
use crate::op::{Op, Run};
use crate::vector::guard;

/// FABS and FCHS: the sign bit alone, of any pattern.
fn sign<const CHANGE: bool, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match fpu.get(0) {
        Some(mut value) => {
            let inverted = value.sign_exponent ^ 0x8000;
            value.sign_exponent = if CHANGE {
                inverted
            } else {
                value.sign_exponent & 0x7fff
            };
            fpu.raise(0);
            fpu.set(0, value);
        }
        None => fpu.finish_empty::<Keep>(0),
    }
    complete(cpu, op, false);
    Ok(())
}

/// A function of ST(0).
trait Monadic {
    fn apply(env: &mut Env, a: Number, target: &Target) -> Number;
}
struct Sqrt;
impl Monadic for Sqrt {
    fn apply(env: &mut Env, a: Number, target: &Target) -> Number {
        arithmetic::sqrt(env, a, target)
    }
}
struct Round;
impl Monadic for Round {
    fn apply(env: &mut Env, a: Number, _: &Target) -> Number {
        integer::round_to_integral(env, a)
    }
}

fn unary<O: Monadic, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match fpu.number(0) {
        Some(a) => {
            let mut env = fpu.env();
            let result = O::apply(&mut env, a, &fpu.target());
            fpu.finish::<Keep>(0, &result, &env);
        }
        None => fpu.finish_empty::<Keep>(0),
    }
    complete(cpu, op, false);
    Ok(())
}

fn fscale<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match (fpu.number(0), fpu.number(1)) {
        (Some(a), Some(b)) => {
            let mut env = fpu.env();
            let result = scale(&mut env, a, b);
            fpu.finish::<Keep>(0, &result, &env);
        }
        _ => fpu.finish_empty::<Keep>(0),
    }
    complete(cpu, op, false);
    Ok(())
}

fn fxtract<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match fpu.number(0) {
        Some(a) => take_apart(fpu, a),
        None => {
            if fpu.underflow() {
                fpu.set(0, Extended::INDEFINITE);
                fpu.force_push(Extended::INDEFINITE);
            }
        }
    }
    complete(cpu, op, false);
    Ok(())
}

fn take_apart(fpu: &mut Fpu, a: Number) {
    let mut env = fpu.env();
    let (exponent, significand) = extract(&mut env, a);
    if fpu.get(7).is_some() {
        fpu.overflow_both();
    } else if fpu.may_write(&env) {
        fpu.set(0, Extended::pack(&exponent));
        fpu.force_push(Extended::pack(&significand));
    }
}

/// The rounding of a quotient, as a type.
trait Rule {
    const QUOTIENT: Quotient;
}
struct Truncated;
impl Rule for Truncated {
    const QUOTIENT: Quotient = Quotient::Truncated;
}
struct Nearest;
impl Rule for Nearest {
    const QUOTIENT: Quotient = Quotient::Nearest;
}

fn fprem<R: Rule, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.status &= !C2;
    match (fpu.number(0), fpu.number(1)) {
        (Some(a), Some(b)) => {
            let mut env = fpu.env();
            let result = remainder(&mut env, a, b, R::QUOTIENT);
            if fpu.may_write(&env) {
                finish_remainder(fpu, &result);
            }
        }
        _ => fpu.finish_empty::<Keep>(0),
    }
    complete(cpu, op, false);
    Ok(())
}

/// Writes a remainder; the quotient's bits 2, 1, 0 go to C0, C3, C1.
fn finish_remainder(fpu: &mut Fpu, result: &Remainder) {
    let number = match result {
        Remainder::Complete(number, quotient) => {
            let bit = |from: u64, to: u16| ((quotient >> from & 1) as u16) << to;
            let codes = bit(2, 8) | bit(1, 14) | bit(0, 9);
            fpu.status = fpu.status & !(C0 | C1 | C3) | codes;
            number
        }
        Remainder::Partial(number) => {
            fpu.status = fpu.status & !(C0 | C1 | C3) | C2;
            number
        }
        Remainder::None(number) => number,
    };
    fpu.set(0, Extended::pack(number));
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fabs => sign::<false, C>,
        Mnemonic::Fchs => sign::<true, C>,
        Mnemonic::Fsqrt => unary::<Sqrt, C>,
        Mnemonic::Frndint => unary::<Round, C>,
        Mnemonic::Fscale => fscale,
        Mnemonic::Fxtract => fxtract,
        Mnemonic::Fprem => fprem::<Truncated, C>,
        Mnemonic::Fprem1 => fprem::<Nearest, C>,
        _ => return None,
    })
}
