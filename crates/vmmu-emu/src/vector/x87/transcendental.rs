//! FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1 (AMD APM vol. 5).
//!
//! Results are as exact as 64 bits allow, but for the last bit; processors differ there too. The precision control does not count.

use iced_x86::{Instruction, Mnemonic};

use super::compare::C2;
use super::complete;
use super::stack::{Keep, Pop};
use crate::cpu::{Cpu, Stop};
use crate::float::number::INTEGER;
use crate::float::wide::Wide;
use crate::float::{
    Class, DIVIDE, Env, INEXACT, Number, Target, UNDERFLOW, arithmetic, integer, nan, series,
};
use crate::fpu::{Extended, Fpu};
use crate::op::{Op, Run};
use crate::vector::guard;

const ONE: Number = Number::finite(false, 0, 1 << 63);

/// Angles from 2^63 on are not reduced.
const TOO_LARGE: i32 = 63;

/// What a trigonometric instruction leaves: ST(0), and what is pushed after it.
struct Outcome {
    result: Number,
    pushed: Option<Number>,
}

/// A function of an angle.
trait Trigonometric {
    /// It pushes a second result.
    const PUSHES: bool;
    /// Returns the results for an angle that is finite and not zero.
    fn of(env: &mut Env, sin: Wide, cos: Wide) -> Outcome;
    /// Returns them for a zero.
    fn of_zero(zero: Number) -> Outcome;
}

struct Sin;
impl Trigonometric for Sin {
    const PUSHES: bool = false;
    fn of(env: &mut Env, sin: Wide, _: Wide) -> Outcome {
        let result = sin.round(env);
        Outcome {
            result,
            pushed: None,
        }
    }
    fn of_zero(zero: Number) -> Outcome {
        Outcome {
            result: zero,
            pushed: None,
        }
    }
}

struct Cos;
impl Trigonometric for Cos {
    const PUSHES: bool = false;
    fn of(env: &mut Env, _: Wide, cos: Wide) -> Outcome {
        let result = cos.round(env);
        Outcome {
            result,
            pushed: None,
        }
    }
    fn of_zero(_: Number) -> Outcome {
        Outcome {
            result: ONE,
            pushed: None,
        }
    }
}

struct SinCos;
impl Trigonometric for SinCos {
    const PUSHES: bool = true;
    fn of(env: &mut Env, sin: Wide, cos: Wide) -> Outcome {
        let result = sin.round(env);
        Outcome {
            result,
            pushed: Some(cos.round(env)),
        }
    }
    fn of_zero(zero: Number) -> Outcome {
        Outcome {
            result: zero,
            pushed: Some(ONE),
        }
    }
}

struct Tan;
impl Trigonometric for Tan {
    const PUSHES: bool = true;
    fn of(env: &mut Env, sin: Wide, cos: Wide) -> Outcome {
        let result = sin.div(cos).round(env);
        Outcome {
            result,
            pushed: Some(ONE),
        }
    }
    fn of_zero(zero: Number) -> Outcome {
        Outcome {
            result: zero,
            pushed: Some(ONE),
        }
    }
}

fn trigonometric<T: Trigonometric, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.status &= !C2;
    match fpu.number(0) {
        None => {
            if fpu.underflow() {
                fpu.set(0, Extended::INDEFINITE);
                if T::PUSHES {
                    fpu.force_push(Extended::INDEFINITE);
                }
            }
        }
        Some(_) if T::PUSHES && fpu.get(7).is_some() => fpu.overflow_both(),
        Some(a) if a.is_finite() && a.exponent >= TOO_LARGE => {
            fpu.raise(0);
            fpu.status |= C2;
        }
        Some(a) => of_angle::<T>(fpu, a),
    }
    complete(cpu, op, false);
    Ok(())
}

fn of_angle<T: Trigonometric>(fpu: &mut Fpu, a: Number) {
    let mut env = fpu.env();
    let outcome = match a.class {
        Class::Zero => T::of_zero(a),
        Class::Finite => {
            env.note_denormal(&a);
            let (sin, cos) = series::reduce(&a).sin_cos();
            T::of(&mut env, sin, cos)
        }
        Class::Infinity => twice::<T>(env.invalid()),
        _ => twice::<T>(nan::of_one(&mut env, a)),
    };
    if fpu.may_write(&env) {
        fpu.set(0, Extended::pack(&outcome.result));
        if let Some(pushed) = outcome.pushed {
            fpu.force_push(Extended::pack(&pushed));
        }
    }
}

fn twice<T: Trigonometric>(nan: Number) -> Outcome {
    Outcome {
        result: nan,
        pushed: T::PUSHES.then_some(nan),
    }
}

fn f2xm1<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match fpu.number(0) {
        Some(a) => {
            let mut env = fpu.env();
            let result = exp2_minus_1(&mut env, a);
            fpu.finish::<Keep>(0, &result, &env);
        }
        None => fpu.finish_empty::<Keep>(0),
    }
    complete(cpu, op, false);
    Ok(())
}

/// Returns `2^a - 1`; from -1 to 1, beyond which the manuals promise nothing: the argument stays, as in AMD's processors.
fn exp2_minus_1(env: &mut Env, a: Number) -> Number {
    match a.class {
        Class::Zero => a,
        Class::Infinity if a.sign => Number::finite(true, 0, 1 << 63),
        Class::Infinity => a,
        Class::Finite if a.exponent >= 0 => {
            env.flags |= INEXACT;
            match (a.exponent, a.significand, a.sign) {
                (0, INTEGER, true) => Number::finite(true, -1, INTEGER),
                _ => a,
            }
        }
        Class::Finite => {
            env.note_denormal(&a);
            series::exp2_minus_1(&a).round(env)
        }
        _ => nan::of_one(env, a),
    }
}

/// A function of ST(1) and ST(0), which pops.
type Dyadic = fn(&mut Env, Number, Number) -> Number;

trait Function {
    const APPLY: Dyadic;
}
struct Log;
impl Function for Log {
    const APPLY: Dyadic = y_log2_x;
}
struct LogPlusOne;
impl Function for LogPlusOne {
    const APPLY: Dyadic = y_log2_x_plus_1;
}
struct Angle;
impl Function for Angle {
    const APPLY: Dyadic = angle;
}

fn dyadic<F: Function, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    match (fpu.number(1), fpu.number(0)) {
        (Some(y), Some(x)) => {
            let mut env = fpu.env();
            let result = (F::APPLY)(&mut env, y, x);
            fpu.finish::<Pop>(1, &result, &env);
        }
        _ => fpu.finish_empty::<Pop>(1),
    }
    complete(cpu, op, false);
    Ok(())
}

/// FYL2X.
fn y_log2_x(env: &mut Env, y: Number, x: Number) -> Number {
    if y.is_nan() || x.is_nan() {
        return nan::of_two(env, x, y);
    }
    let is_one = x == ONE;
    // The logarithm's sign, if it has one.
    let negative = !x.sign && x.class == Class::Finite && x.exponent < 0 || x.class == Class::Zero;
    let sign = y.sign != negative;
    match (x.class, y.class) {
        (Class::Finite | Class::Infinity, _) if x.sign => env.invalid(),
        (Class::Zero, Class::Zero) | (Class::Infinity, Class::Zero) => env.invalid(),
        (_, Class::Infinity) if is_one => env.invalid(),
        (Class::Zero, Class::Finite) => {
            env.flags |= DIVIDE;
            Number::infinity(sign)
        }
        _ => {
            env.note_denormal(&x);
            env.note_denormal(&y);
            match (x.class, y.class) {
                (Class::Zero | Class::Infinity, _) | (_, Class::Infinity) => Number::infinity(sign),
                (_, Class::Zero) => Number::zero(sign),
                _ if x.significand == INTEGER => power_of_two(env, y, x),
                _ => series::log2(&x).mul(Wide::of(&y)).round(env),
            }
        }
    }
}

/// Multiplies by the logarithm of a power of two: an integer. The flags say "inexact" all the same, but for 1.
fn power_of_two(env: &mut Env, y: Number, x: Number) -> Number {
    let mut exact = *env;
    let log = integer::from_integer(&mut exact, x.exponent.into(), &Target::EXTENDED);
    let result = arithmetic::mul(env, y, log, &Target::EXTENDED);
    if x.exponent == 0 {
        return result;
    }
    env.flags |= INEXACT;
    if result.is_finite() && result.significand & INTEGER == 0 {
        env.flags |= UNDERFLOW;
    }
    result
}

/// FYL2XP1: from `sqrt(1/2) - 1` to `sqrt(2) - 1`, beyond which the manuals promise nothing.
fn y_log2_x_plus_1(env: &mut Env, y: Number, x: Number) -> Number {
    if y.is_nan() || x.is_nan() {
        return nan::of_two(env, x, y);
    }
    let sign = y.sign != x.sign;
    match (x.class, y.class) {
        (Class::Zero, Class::Infinity) | (Class::Infinity, Class::Zero) => env.invalid(),
        (Class::Infinity, _) if x.sign => env.invalid(),
        // Beyond the limits the argument stays, as in AMD's processors.
        (Class::Finite, Class::Finite) if x.sign && x.exponent >= 0 => {
            env.note_denormal(&y);
            env.flags |= INEXACT;
            x
        }
        _ => {
            env.note_denormal(&x);
            env.note_denormal(&y);
            match (x.class, y.class) {
                (Class::Infinity, _) | (_, Class::Infinity) => Number::infinity(sign),
                (Class::Zero, _) | (_, Class::Zero) => Number::zero(sign),
                _ => series::log2_plus_1(&x).mul(Wide::of(&y)).round(env),
            }
        }
    }
}

/// FPATAN: the angle of the point (x, y) (Intel SDM vol. 2, table 3-30).
fn angle(env: &mut Env, y: Number, x: Number) -> Number {
    if y.is_nan() || x.is_nan() {
        return nan::of_two(env, x, y);
    }
    env.note_denormal(&x);
    env.note_denormal(&y);
    // In quarters of pi.
    let quarters = match (y.class, x.class) {
        (Class::Infinity, Class::Infinity) if x.sign => 3,
        (Class::Infinity, Class::Infinity) => 1,
        (Class::Infinity, _) => 2,
        (Class::Zero, _) | (_, Class::Infinity) if x.sign => 4,
        (Class::Zero, _) | (_, Class::Infinity) => return Number::zero(y.sign),
        (_, Class::Zero) => 2,
        _ => return series::angle(&y, &x).round(env),
    };
    let mut angle = Wide::QUARTER_PI.mul(Wide::of_integer(quarters));
    angle.sign = y.sign;
    angle.round(env)
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fsin => trigonometric::<Sin, C>,
        Mnemonic::Fcos => trigonometric::<Cos, C>,
        Mnemonic::Fsincos => trigonometric::<SinCos, C>,
        Mnemonic::Fptan => trigonometric::<Tan, C>,
        Mnemonic::F2xm1 => f2xm1,
        Mnemonic::Fyl2x => dyadic::<Log, C>,
        Mnemonic::Fyl2xp1 => dyadic::<LogPlusOne, C>,
        Mnemonic::Fpatan => dyadic::<Angle, C>,
        _ => return None,
    })
}
