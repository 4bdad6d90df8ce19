//! FST, FSTP, FIST, FISTP, FISTTP.

use iced_x86::{Code, Instruction};

use super::complete;
use super::stack::{Keep, Pop, Pops};
use crate::cpu::{Access, Cpu, Stop};
use crate::float::integer::to_integer;
use crate::float::{
    Double, Env, Format, INVALID, Number, OVERFLOW, Rounding, Single, UNDERFLOW, arithmetic, nan,
};
use crate::fpu::Extended;
use crate::op::{Op, Run};
use crate::operand::{M, Operand};
use crate::vector::guard;
use crate::word::Word;

/// What a store makes of ST(0).
trait Conversion {
    type Stored: Word;
    /// Converts; sets the flags.
    fn convert(env: &mut Env, number: Number) -> Self::Stored;
    /// Returns what is stored of an empty register.
    fn indefinite() -> Self::Stored;
}

fn to_format<F: Format>(env: &mut Env, number: Number) -> u64 {
    let converted = if number.is_nan() {
        nan::of_one(env, number)
    } else if number.is_finite() {
        arithmetic::rounded(env, number, &F::TARGET)
    } else {
        number
    };
    F::pack(&converted)
}

impl Conversion for Single {
    type Stored = u32;
    fn convert(env: &mut Env, number: Number) -> u32 {
        to_format::<Self>(env, number) as u32
    }
    fn indefinite() -> u32 {
        Self::pack(&Number::INDEFINITE) as u32
    }
}

impl Conversion for Double {
    type Stored = u64;
    fn convert(env: &mut Env, number: Number) -> u64 {
        to_format::<Self>(env, number)
    }
    fn indefinite() -> u64 {
        Self::pack(&Number::INDEFINITE)
    }
}

/// An integer, rounded as FCW says.
struct Rounded<W>(W);
impl<W: Word> Conversion for Rounded<W> {
    type Stored = W;
    fn convert(env: &mut Env, number: Number) -> W {
        W::truncate(to_integer(env, number, W::BITS, env.rounding) as u64)
    }
    fn indefinite() -> W {
        W::truncate(1 << (W::BITS - 1))
    }
}

/// An integer, rounded towards zero.
struct Truncated<W>(W);
impl<W: Word> Conversion for Truncated<W> {
    type Stored = W;
    fn convert(env: &mut Env, number: Number) -> W {
        W::truncate(to_integer(env, number, W::BITS, Rounding::Zero) as u64)
    }
    fn indefinite() -> W {
        Rounded::<W>::indefinite()
    }
}

/// Stores ST(0); an exception that is not masked prevents it, but for an inexact result.
fn store<K: Conversion, P: Pops, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    const PREVENT: u16 = INVALID | OVERFLOW | UNDERFLOW;
    guard::x87(cpu)?;
    let fpu = &cpu.state().fpu;
    let mut env = fpu.env();
    let Some(number) = fpu.number(0) else {
        return store_empty::<K, P, C>(cpu, op);
    };
    let value = K::convert(&mut env, number);
    let prevented = env.unmasked() & PREVENT != 0;
    if prevented {
        // A fault on the operand comes first.
        let at = op.linear(cpu, K::Stored::BYTES, Access::Write)?;
        cpu.check_write(at, K::Stored::BYTES, Access::Write)?;
    } else {
        M::set(cpu, op, value)?;
    }
    let fpu = &mut cpu.state_mut().fpu;
    if prevented {
        // Nothing was stored, so nothing was inexact.
        fpu.raise(env.flags & PREVENT);
    } else {
        fpu.raise(env.flags);
        fpu.pop::<P>();
    }
    complete(cpu, op, true);
    Ok(())
}

fn store_empty<K: Conversion, P: Pops, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    if cpu.state().fpu.control & INVALID != 0 {
        M::set(cpu, op, K::indefinite())?;
    } else {
        let at = op.linear(cpu, K::Stored::BYTES, Access::Write)?;
        cpu.check_write(at, K::Stored::BYTES, Access::Write)?;
    }
    let fpu = &mut cpu.state_mut().fpu;
    if fpu.underflow() {
        fpu.pop::<P>();
    }
    complete(cpu, op, true);
    Ok(())
}

/// FSTP of 80 bits: any pattern is stored as it is.
fn store_extended<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &cpu.state().fpu;
    let found = fpu.get(0);
    let masked = fpu.control & INVALID != 0;
    write_extended(cpu, op, found.or(masked.then_some(Extended::INDEFINITE)))?;
    let fpu = &mut cpu.state_mut().fpu;
    let pops = if found.is_some() {
        fpu.raise(0);
        true
    } else {
        fpu.underflow()
    };
    if pops {
        fpu.pop::<Pop>();
    }
    complete(cpu, op, true);
    Ok(())
}

/// Writes 10 bytes of memory, or finds out whether they could be written.
pub(super) fn write_extended<C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
    value: Option<Extended>,
) -> Result<(), Stop> {
    let at = op.linear(cpu, 10, Access::Write)?;
    cpu.check_write(at, 10, Access::Write)?;
    let Some(value) = value else {
        return Ok(());
    };
    cpu.store(at, value.significand, Access::Write)?;
    cpu.store(at.wrapping_add(8), value.sign_exponent, Access::Write)
}

/// FST and FSTP of a register.
fn store_register<P: Pops, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    let to = op.reg & 7;
    match fpu.get(0) {
        Some(value) => {
            fpu.raise(0);
            fpu.set(to, value);
            fpu.pop::<P>();
        }
        None => fpu.finish_empty::<P>(to),
    }
    complete(cpu, op, false);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.code() {
        Code::Fst_m32fp => store::<Single, Keep, C>,
        Code::Fstp_m32fp => store::<Single, Pop, C>,
        Code::Fst_m64fp => store::<Double, Keep, C>,
        Code::Fstp_m64fp => store::<Double, Pop, C>,
        Code::Fstp_m80fp => store_extended,
        Code::Fst_sti => store_register::<Keep, C>,
        Code::Fstp_sti | Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 => store_register::<Pop, C>,
        Code::Fist_m16int => store::<Rounded<u16>, Keep, C>,
        Code::Fist_m32int => store::<Rounded<u32>, Keep, C>,
        Code::Fistp_m16int => store::<Rounded<u16>, Pop, C>,
        Code::Fistp_m32int => store::<Rounded<u32>, Pop, C>,
        Code::Fistp_m64int => store::<Rounded<u64>, Pop, C>,
        Code::Fisttp_m16int => store::<Truncated<u16>, Pop, C>,
        Code::Fisttp_m32int => store::<Truncated<u32>, Pop, C>,
        Code::Fisttp_m64int => store::<Truncated<u64>, Pop, C>,
        _ => return None,
    })
}
