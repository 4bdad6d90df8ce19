//! FBLD and FBSTP: 18 decimal digits and a sign in 10 bytes (AMD APM vol. 1, section 6.3.2).

use iced_x86::{Instruction, Mnemonic};

use super::complete;
use super::load::read_extended;
use super::second::exact;
use super::stack::Pop;
use super::store::write_extended;
use crate::cpu::{Cpu, Stop};
use crate::float::integer::to_integer;
use crate::float::{Env, INVALID, Number};
use crate::fpu::Extended;
use crate::op::{Op, Run};
use crate::vector::guard;

/// Digits that are stored.
const DIGITS: u32 = 18;
/// What is stored of something that is no number, or too large.
const INDEFINITE: Extended = Extended {
    significand: 0xc000_0000_0000_0000,
    sign_exponent: 0xffff,
};

fn fbld<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let digits = read_extended(cpu, op)?;
    let low = (0..16).rev().map(|i| digits.significand >> (4 * i) & 15);
    let high = [1, 0].map(|i| u64::from(digits.sign_exponent) >> (4 * i) & 15);
    let value = high
        .into_iter()
        .chain(low)
        .fold(0, |sum, digit| sum * 10 + digit);
    let mut number = exact(value as i64);
    number.sign = digits.sign_exponent >> 15 != 0;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.raise(0);
    fpu.push(Extended::pack(&number));
    complete(cpu, op, true);
    Ok(())
}

/// Returns the digits of a number.
fn digits(env: &mut Env, number: Number) -> Extended {
    let before = env.flags;
    let value = to_integer(env, number, 64, env.rounding);
    let magnitude = value.unsigned_abs();
    if env.flags & INVALID != 0 || magnitude >= 10u64.pow(DIGITS) {
        env.flags = before | INVALID;
        return INDEFINITE;
    }
    let digit = |i: u32| magnitude / 10u64.pow(i) % 10;
    let high = (digit(17) << 4 | digit(16)) as u16;
    Extended {
        significand: (0..16).fold(0, |sum, i| sum | digit(i) << (4 * i)),
        sign_exponent: u16::from(number.sign) << 15 | high,
    }
}

fn fbstp<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &cpu.state().fpu;
    let mut env = fpu.env();
    let number = fpu.number(0);
    let value = number.map_or(INDEFINITE, |number| digits(&mut env, number));
    let invalid = number.is_none() || env.flags & INVALID != 0;
    let prevented = invalid && env.masks & INVALID == 0;
    write_extended(cpu, op, (!prevented).then_some(value))?;
    let fpu = &mut cpu.state_mut().fpu;
    if number.is_none() {
        fpu.underflow();
    } else {
        fpu.raise(env.flags);
    }
    if !prevented {
        fpu.pop::<Pop>();
    }
    complete(cpu, op, true);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Fbld => Some(fbld),
        Mnemonic::Fbstp => Some(fbstp),
        _ => None,
    }
}
