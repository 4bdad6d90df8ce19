//! FLD, FILD, FXCH, FCMOVcc, and what moves the stack: FINCSTP, FDECSTP, FFREE, FNOP.

use iced_x86::{Code, Instruction, MemorySize, Mnemonic, OpKind};

use super::complete;
use super::second::{I16, I32, I64, M32, M64, Second};
use super::stack::{Keep, Pop, Pops};
use crate::cpu::{Access, Cpu, Stop};
use crate::flags::Flags;
use crate::float::{INVALID, nan};
use crate::fpu::Extended;
use crate::op::{Op, Run};
use crate::vector::guard;

/// FLD of 32 and 64 bits, FILD.
fn load<S: Second, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let number = S::get(cpu, op)?;
    let fpu = &mut cpu.state_mut().fpu;
    if let Some(mut number) = number {
        let mut env = fpu.env();
        if number.is_nan() {
            number = nan::of_one(&mut env, number);
        }
        env.note_denormal(&number);
        // A denormal operand is loaded even if that exception is not masked; a full stack comes first.
        let room = fpu.get(7).is_none();
        fpu.raise(if room { env.flags } else { 0 });
        if !room || env.unmasked() & INVALID == 0 {
            fpu.push(Extended::pack(&number));
        }
    }
    complete(cpu, op, true);
    Ok(())
}

/// FLD of 80 bits: any pattern is loaded as it is.
fn load_extended<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let value = read_extended(cpu, op)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.raise(0);
    fpu.push(value);
    complete(cpu, op, true);
    Ok(())
}

/// Reads 10 bytes of memory.
pub(super) fn read_extended<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<Extended, Stop> {
    let at = op.linear(cpu, 10, Access::Read)?;
    Ok(Extended {
        significand: cpu.load(at, Access::Read)?,
        sign_exponent: cpu.load(at.wrapping_add(8), Access::Read)?,
    })
}

/// FLD of a register.
fn load_register<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match fpu.get(op.reg & 7) {
        Some(value) => {
            fpu.raise(0);
            fpu.push(value);
        }
        None => {
            if fpu.underflow() {
                fpu.force_push(Extended::INDEFINITE);
            }
        }
    }
    complete(cpu, op, false);
    Ok(())
}

fn fxch<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    let i = op.rm & 7;
    let (a, b) = (fpu.get(0), fpu.get(i));
    let proceed = if a.is_some() && b.is_some() {
        fpu.raise(0);
        true
    } else {
        fpu.underflow()
    };
    if proceed {
        fpu.set(0, b.unwrap_or(Extended::INDEFINITE));
        fpu.set(i, a.unwrap_or(Extended::INDEFINITE));
    }
    complete(cpu, op, false);
    Ok(())
}

/// When FCMOVcc moves.
trait Condition {
    fn holds(flags: Flags) -> bool;
}

macro_rules! conditions {
    ($($name:ident: $flags:expr, $set:literal;)*) => {$(
        struct $name;
        impl Condition for $name {
            fn holds(flags: Flags) -> bool {
                flags.intersects($flags) == $set
            }
        }
    )*};
}
conditions! {
    Below: Flags::CF, true;
    Equal: Flags::ZF, true;
    BelowOrEqual: Flags::CF | Flags::ZF, true;
    Unordered: Flags::PF, true;
    NotBelow: Flags::CF, false;
    NotEqual: Flags::ZF, false;
    Above: Flags::CF | Flags::ZF, false;
    NotUnordered: Flags::PF, false;
}

fn fcmov<K: Condition, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let state = cpu.state_mut();
    let holds = K::holds(state.flags);
    let fpu = &mut state.fpu;
    match (fpu.get(0), fpu.get(op.rm & 7)) {
        (Some(_), Some(value)) if holds => fpu.set(0, value),
        (Some(_), Some(_)) => {}
        _ => fpu.finish_empty::<Keep>(0),
    }
    complete(cpu, op, false);
    Ok(())
}

/// FINCSTP and FDECSTP: tags stay.
fn rotate<const BY: u8, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.raise(0);
    fpu.set_top(fpu.top().wrapping_add(BY));
    complete(cpu, op, false);
    Ok(())
}

/// FFREE, FFREEP.
fn ffree<P: Pops, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.raise(0);
    fpu.free(op.reg & 7);
    fpu.pop::<P>();
    complete(cpu, op, false);
    Ok(())
}

fn fnop<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    complete(cpu, op, false);
    Ok(())
}

/// FNENI, FNDISI, FNSETPM: they did something in older processors.
fn obsolete<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    guard::x87_control(cpu)
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fld if instruction.op0_kind() == OpKind::Register => load_register,
        Mnemonic::Fld | Mnemonic::Fild => match instruction.memory_size() {
            MemorySize::Float32 => load::<M32, C>,
            MemorySize::Float64 => load::<M64, C>,
            MemorySize::Float80 => load_extended,
            MemorySize::Int16 => load::<I16, C>,
            MemorySize::Int32 => load::<I32, C>,
            MemorySize::Int64 => load::<I64, C>,
            _ => return None,
        },
        Mnemonic::Fxch => fxch,
        Mnemonic::Fcmovb => fcmov::<Below, C>,
        Mnemonic::Fcmove => fcmov::<Equal, C>,
        Mnemonic::Fcmovbe => fcmov::<BelowOrEqual, C>,
        Mnemonic::Fcmovu => fcmov::<Unordered, C>,
        Mnemonic::Fcmovnb => fcmov::<NotBelow, C>,
        Mnemonic::Fcmovne => fcmov::<NotEqual, C>,
        Mnemonic::Fcmovnbe => fcmov::<Above, C>,
        Mnemonic::Fcmovnu => fcmov::<NotUnordered, C>,
        Mnemonic::Fincstp => rotate::<1, C>,
        Mnemonic::Fdecstp => rotate::<7, C>,
        Mnemonic::Ffree => ffree::<Keep, C>,
        Mnemonic::Ffreep => ffree::<Pop, C>,
        Mnemonic::Fnop => fnop,
        _ => match instruction.code() {
            Code::Fneni | Code::Fndisi | Code::Fnsetpm => obsolete,
            _ => return None,
        },
    })
}
