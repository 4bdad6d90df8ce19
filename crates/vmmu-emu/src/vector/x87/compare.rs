//! FCOM, FUCOM, FICOM, FTST, FCOMI, FUCOMI and their popping forms, FXAM.

use core::cmp::Ordering;

use iced_x86::{Instruction, Mnemonic};

use super::complete;
use super::second::{Second, by_second};
use super::stack::{Keep, Pop, PopTwice, Pops};
use crate::cpu::{Cpu, Stop};
use crate::flags::Flags;
use crate::float::compare::{Nans, compare};
use crate::float::{Class, Number};
use crate::fpu::Fpu;
use crate::op::{Op, Run};
use crate::state::State;
use crate::vector::compare::{Ordered, Strictness, Unordered, flags_of};
use crate::vector::guard;

/// The condition codes.
pub(super) const C0: u16 = 1 << 8;
pub(super) const C1: u16 = 1 << 9;
pub(super) const C2: u16 = 1 << 10;
pub(super) const C3: u16 = 1 << 14;

/// Where the outcome goes.
trait Outcome {
    /// Takes over the outcome; C1 is for flags.
    fn set(state: &mut State, order: Option<Ordering>);
    /// Does what precedes a comparison.
    fn prepare(fpu: &mut Fpu);
}
/// To the condition codes, even if the comparison is invalid and that is not masked.
struct Codes;
impl Outcome for Codes {
    fn set(state: &mut State, order: Option<Ordering>) {
        let codes = match order {
            None => C3 | C2 | C0,
            Some(Ordering::Less) => C0,
            Some(Ordering::Equal) => C3,
            Some(Ordering::Greater) => 0,
        };
        state.fpu.set_codes(codes);
    }
    fn prepare(fpu: &mut Fpu) {
        fpu.status &= !C1;
    }
}
/// To RFLAGS; C1 stays as it was.
struct General;
impl Outcome for General {
    fn set(state: &mut State, order: Option<Ordering>) {
        let others = state.flags.difference(Flags::ARITHMETIC);
        state.flags = others.union(flags_of(order));
    }
    fn prepare(_: &mut Fpu) {}
}

impl Fpu {
    /// Replaces C0, C2 and C3; C1 is for flags.
    fn set_codes(&mut self, codes: u16) {
        self.status = self.status & !(C0 | C2 | C3) | codes;
    }
}

/// Compares ST(0), removing `P` registers.
fn against<P: Pops, K: Strictness, O: Outcome>(state: &mut State, b: Option<Number>) {
    O::prepare(&mut state.fpu);
    let (order, pops) = order(&mut state.fpu, b, K::NANS);
    O::set(state, order);
    if pops {
        state.fpu.pop::<P>();
    }
}

/// Compares ST(0); says whether to pop. Not generic, so that it is compiled once.
fn order(fpu: &mut Fpu, b: Option<Number>, nans: Nans) -> (Option<Ordering>, bool) {
    let (Some(a), Some(b)) = (fpu.number(0), b) else {
        return (None, fpu.underflow());
    };
    let mut env = fpu.env();
    let order = compare(&mut env, a, b, nans);
    fpu.add(env.flags);
    (order, env.unmasked() == 0)
}

fn fcom<S: Second, P: Pops, K: Strictness, O: Outcome, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let b = S::get(cpu, op)?;
    against::<P, K, O>(cpu.state_mut(), b);
    complete(cpu, op, S::MEMORY);
    Ok(())
}

/// FCOMPP, FUCOMPP.
fn fcompp<K: Strictness, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let state = cpu.state_mut();
    let b = state.fpu.number(1);
    against::<PopTwice, K, Codes>(state, b);
    complete(cpu, op, false);
    Ok(())
}

fn ftst<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    against::<Keep, Ordered, Codes>(cpu.state_mut(), Some(Number::zero(false)));
    complete(cpu, op, false);
    Ok(())
}

fn fxam<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    let register = fpu.st(0);
    let codes = match fpu.get(0).map(|register| register.unpack()) {
        None => C3 | C0,
        Some(number) if number.denormal => C3 | C2,
        Some(number) => match number.class {
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => C0,
            Class::Finite => C2,
            Class::Infinity => C2 | C0,
            Class::Zero => C3,
        },
    };
    let sign = if register.sign_exponent >> 15 != 0 {
        C1
    } else {
        0
    };
    fpu.status = fpu.status & !C1 | sign;
    fpu.set_codes(codes);
    complete(cpu, op, false);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Fcom | Mnemonic::Ficom => by_second!(instruction, fcom, C, Keep, Ordered, Codes),
        Mnemonic::Fcomp | Mnemonic::Ficomp => by_second!(instruction, fcom, C, Pop, Ordered, Codes),
        Mnemonic::Fucom => by_second!(instruction, fcom, C, Keep, Unordered, Codes),
        Mnemonic::Fucomp => by_second!(instruction, fcom, C, Pop, Unordered, Codes),
        Mnemonic::Fcomi => by_second!(instruction, fcom, C, Keep, Ordered, General),
        Mnemonic::Fcomip => by_second!(instruction, fcom, C, Pop, Ordered, General),
        Mnemonic::Fucomi => by_second!(instruction, fcom, C, Keep, Unordered, General),
        Mnemonic::Fucomip => by_second!(instruction, fcom, C, Pop, Unordered, General),
        Mnemonic::Fcompp => Some(fcompp::<Ordered, C>),
        Mnemonic::Fucompp => Some(fcompp::<Unordered, C>),
        Mnemonic::Ftst => Some(ftst),
        Mnemonic::Fxam => Some(fxam),
        _ => None,
    }
}
