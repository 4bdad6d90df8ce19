//! Floating-point arithmetic of SSE, SSE2 and SSE3 (AMD APM vol. 1, sections 4.7 and 4.10).
//!
//! Key trait: [`Operation`], on one pair of lanes. The host's arithmetic is used where neither the result nor the flags can differ: see [`is_plain`].

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::bank::{Bank, Mem, Reg, Source, Xmm};
use super::guard;
use crate::cpu::{Cpu, Stop};
use crate::float::arithmetic::{self, Dyadic};
use crate::float::{ALL, Class, Double, Env, Format, INVALID, Number, Rounding, Single};
use crate::op::{Op, Run};

/// MXCSR's rounding mode, the flag of inexact results and its mask.
const PLAIN_FIELDS: u32 = 3 << 13 | 1 << 12 | 1 << 5;
/// To the nearest, masked, and set already.
const PLAIN: u32 = 1 << 12 | 1 << 5;

/// Says whether a lane may be computed by the host: its operands are zero or normal. Its result must be normal, and not the least such number,
/// which may have been tiny before it was rounded. Then only "inexact" can be raised, which is [`PLAIN`].
#[inline(always)]
fn is_plain<F: Format>(bits: u64) -> bool {
    let magnitude = bits & (u64::MAX >> (65 - 8 * F::BYTES));
    magnitude == 0 || is_plain_result::<F>(magnitude)
}

#[inline(always)]
fn is_plain_result<F: Format>(bits: u64) -> bool {
    let fraction_bits = F::TARGET.precision - 1;
    let biased = bits >> fraction_bits & (F::TARGET.max - F::TARGET.min + 2) as u64;
    biased > 1 && biased < (F::TARGET.max - F::TARGET.min + 2) as u64
}

/// Returns lane `i` of a vector.
#[inline(always)]
pub(super) fn lane<F: Format>(vector: u128, i: usize) -> u64 {
    (vector >> (i * F::BYTES * 8)) as u64 & (u64::MAX >> (64 - 8 * F::BYTES))
}

/// Returns a vector with lane `i` replaced.
#[inline(always)]
pub(super) fn with_lane<F: Format>(vector: u128, i: usize, value: u64) -> u128 {
    let at = i * F::BYTES * 8;
    let mask = u128::from(u64::MAX >> (64 - 8 * F::BYTES));
    vector & !(mask << at) | u128::from(value) << at
}

/// A function of one lane of each operand, and of the immediate.
pub(super) trait Operation {
    fn apply<F: Format>(env: &mut Env, a: u64, b: u64, imm: u8) -> u64;
    /// Returns the result if the host's arithmetic is exact in everything; MXCSR is [`PLAIN`].
    #[inline(always)]
    fn plain<F: Format>(_: u64, _: u64) -> Option<u64> {
        None
    }
}

macro_rules! arithmetic {
    ($($name:ident: $function:expr, $operator:tt;)*) => {$(
        struct $name;
        impl Operation for $name {
            #[inline(always)]
            fn apply<F: Format>(env: &mut Env, a: u64, b: u64, _: u8) -> u64 {
                if F::BYTES == 4 {
                    on_singles(env, a, b, $function)
                } else {
                    on_doubles(env, a, b, $function)
                }
            }
            #[inline(always)]
            fn plain<F: Format>(a: u64, b: u64) -> Option<u64> {
                if !is_plain::<F>(a) || !is_plain::<F>(b) {
                    return None;
                }
                let result = if F::BYTES == 4 {
                    let (a, b) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
                    u64::from((a $operator b).to_bits())
                } else {
                    (f64::from_bits(a) $operator f64::from_bits(b)).to_bits()
                };
                is_plain_result::<F>(result).then_some(result)
            }
        }
    )*};
}
arithmetic! {
    Add: arithmetic::add, +;
    Sub: arithmetic::sub, -;
    Mul: arithmetic::mul, *;
    Div: arithmetic::div, /;
}

/// Computes on numbers of 32 bits. Not generic, so that it is compiled once.
fn on_singles(env: &mut Env, a: u64, b: u64, function: Dyadic) -> u64 {
    Single::pack(&function(
        env,
        Single::unpack(a),
        Single::unpack(b),
        &Single::TARGET,
    ))
}

/// Computes on numbers of 64 bits.
fn on_doubles(env: &mut Env, a: u64, b: u64, function: Dyadic) -> u64 {
    Double::pack(&function(
        env,
        Double::unpack(a),
        Double::unpack(b),
        &Double::TARGET,
    ))
}

struct Sqrt;
impl Operation for Sqrt {
    fn apply<F: Format>(env: &mut Env, _: u64, b: u64, _: u8) -> u64 {
        F::pack(&arithmetic::sqrt(env, F::unpack(b), &F::TARGET))
    }
}

/// Returns the environment of approximations: they raise nothing, denormal numbers are zeros.
const fn approximate() -> Env {
    Env {
        rounding: Rounding::Nearest,
        masks: ALL,
        zero_operands: true,
        zero_results: true,
        ..Env::sse(0)
    }
}

const ONE: Number = Number::finite(false, 0, 1 << 63);

/// Exact to the last bit, where the manuals ask for a relative error below 1.5 * 2^-12.
struct Reciprocal;
impl Operation for Reciprocal {
    fn apply<F: Format>(_: &mut Env, _: u64, b: u64, _: u8) -> u64 {
        let env = &mut approximate();
        F::pack(&arithmetic::div(env, ONE, F::unpack(b), &F::TARGET))
    }
}

/// As [`Reciprocal`].
struct ReciprocalSqrt;
impl Operation for ReciprocalSqrt {
    fn apply<F: Format>(_: &mut Env, _: u64, b: u64, _: u8) -> u64 {
        let env = &mut approximate();
        let root = arithmetic::sqrt(env, F::unpack(b), &F::TARGET);
        F::pack(&arithmetic::div(env, ONE, root, &F::TARGET))
    }
}

/// MIN and MAX: the second operand, unless the first is what is asked for (AMD APM vol. 4, MINPS).
fn select_by<F: Format>(env: &mut Env, a: u64, b: u64, first: fn(u64, u64) -> bool) -> u64 {
    let (x, y) = (env.operand(F::unpack(a)), env.operand(F::unpack(b)));
    // Denormal numbers that count as zeros come out as such.
    let seen = |number: &Number, bits: u64| match number.class {
        Class::Zero => u64::from(number.sign) << (8 * F::BYTES - 1),
        _ => bits,
    };
    let (a, b) = (seen(&x, a), seen(&y, b));
    if x.is_nan() || y.is_nan() {
        env.flags |= INVALID;
        return b;
    }
    env.note_denormal(&x);
    env.note_denormal(&y);
    if first(key::<F>(a), key::<F>(b)) {
        a
    } else {
        b
    }
}

/// Returns a key in the order of the numbers; both zeros have the same.
fn key<F: Format>(bits: u64) -> u64 {
    let sign = 1 << (8 * F::BYTES - 1);
    if bits & sign == 0 {
        sign + bits
    } else {
        sign - (bits & (sign - 1))
    }
}

struct Min;
impl Operation for Min {
    fn apply<F: Format>(env: &mut Env, a: u64, b: u64, _: u8) -> u64 {
        select_by::<F>(env, a, b, |a, b| a < b)
    }
}

struct Max;
impl Operation for Max {
    fn apply<F: Format>(env: &mut Env, a: u64, b: u64, _: u8) -> u64 {
        select_by::<F>(env, a, b, |a, b| a > b)
    }
}

/// Executes an operation on the lowest `LANES` lanes; the first operand's other lanes stay.
pub(super) fn on_lanes<F: Format, const LANES: usize, S: Source, O: Operation, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let b = operand::<F, LANES, S, C>(cpu, op)?;
    let state = cpu.state_mut();
    let a = Xmm::read(state, op.reg);
    if state.fpu.mxcsr & PLAIN_FIELDS == PLAIN {
        let mut lanes = 0..LANES;
        let plain = lanes.try_fold(a, |result, i| {
            let value = O::plain::<F>(lane::<F>(a, i), lane::<F>(b, i))?;
            Some(with_lane::<F>(result, i, value))
        });
        if let Some(result) = plain {
            Xmm::write(state, op.reg, result);
            return Ok(());
        }
    }
    let mut env = Env::sse(state.fpu.mxcsr);
    let result = (0..LANES).fold(a, |result, i| {
        let value = O::apply::<F>(&mut env, lane::<F>(a, i), lane::<F>(b, i), op.imm as u8);
        with_lane::<F>(result, i, value)
    });
    guard::simd_flags(cpu, &env)?;
    Xmm::write(cpu.state_mut(), op.reg, result);
    Ok(())
}

/// Reads the second operand: a scalar in memory need not be aligned.
#[inline(always)]
fn operand<F: Format, const LANES: usize, S: Source, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<u128, Stop> {
    guard::sse(cpu)?;
    match (LANES, F::BYTES) {
        (1, 4) => S::get_low::<4, Xmm, C>(cpu, op),
        (1, _) => S::get_low::<8, Xmm, C>(cpu, op),
        _ => S::get::<Xmm, C>(cpu, op),
    }
}

/// An arrangement of lanes that are combined with each other: the pairs of SSE3.
trait Pairing {
    /// Returns the function of result `i` and where its operands are: lane numbers, the second vector's above the first's.
    fn of(i: usize, lanes: usize) -> (Dyadic, usize, usize);
}

struct Addsub;
impl Pairing for Addsub {
    fn of(i: usize, lanes: usize) -> (Dyadic, usize, usize) {
        let function = if i & 1 == 0 {
            arithmetic::sub
        } else {
            arithmetic::add
        };
        (function, i, lanes + i)
    }
}

struct Hadd;
impl Pairing for Hadd {
    fn of(i: usize, _: usize) -> (Dyadic, usize, usize) {
        (arithmetic::add, 2 * i, 2 * i + 1)
    }
}

struct Hsub;
impl Pairing for Hsub {
    fn of(i: usize, _: usize) -> (Dyadic, usize, usize) {
        (arithmetic::sub, 2 * i, 2 * i + 1)
    }
}

fn on_pairs<F: Format, const LANES: usize, S: Source, P: Pairing, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let b = operand::<F, LANES, S, C>(cpu, op)?;
    let a = Xmm::read(cpu.state(), op.reg);
    let mut env = Env::sse(cpu.state().fpu.mxcsr);
    let number = |i: usize| F::unpack(lane::<F>(if i < LANES { a } else { b }, i % LANES));
    let result = (0..LANES).fold(0, |result, i| {
        let (function, x, y) = P::of(i, LANES);
        let value = function(&mut env, number(x), number(y), &F::TARGET);
        with_lane::<F>(result, i, F::pack(&value))
    });
    guard::simd_flags(cpu, &env)?;
    Xmm::write(cpu.state_mut(), op.reg, result);
    Ok(())
}

/// Chooses an instance by the place of the second operand.
macro_rules! by_place {
    ($instruction:expr, $function:ident, $format:ident, $lanes:literal, $operation:ident, $cpu:ident) => {
        if $instruction.op1_kind() == OpKind::Memory {
            Some($function::<$format, $lanes, Mem, $operation, $cpu> as Run<$cpu>)
        } else {
            Some($function::<$format, $lanes, Reg, $operation, $cpu> as Run<$cpu>)
        }
    };
}
pub(super) use by_place;

macro_rules! by_mnemonic {
    ($instruction:expr, $cpu:ident, $($function:ident: $mnemonic:ident = $format:ident, $lanes:literal, $operation:ident;)*) => {
        match $instruction.mnemonic() {
            $(Mnemonic::$mnemonic => {
                by_place!($instruction, $function, $format, $lanes, $operation, $cpu)
            })*
            _ => None,
        }
    };
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    by_mnemonic! { instruction, C,
        on_lanes: Addss = Single, 1, Add;
        on_lanes: Addsd = Double, 1, Add;
        on_lanes: Addps = Single, 4, Add;
        on_lanes: Addpd = Double, 2, Add;
        on_lanes: Subss = Single, 1, Sub;
        on_lanes: Subsd = Double, 1, Sub;
        on_lanes: Subps = Single, 4, Sub;
        on_lanes: Subpd = Double, 2, Sub;
        on_lanes: Mulss = Single, 1, Mul;
        on_lanes: Mulsd = Double, 1, Mul;
        on_lanes: Mulps = Single, 4, Mul;
        on_lanes: Mulpd = Double, 2, Mul;
        on_lanes: Divss = Single, 1, Div;
        on_lanes: Divsd = Double, 1, Div;
        on_lanes: Divps = Single, 4, Div;
        on_lanes: Divpd = Double, 2, Div;
        on_lanes: Minss = Single, 1, Min;
        on_lanes: Minsd = Double, 1, Min;
        on_lanes: Minps = Single, 4, Min;
        on_lanes: Minpd = Double, 2, Min;
        on_lanes: Maxss = Single, 1, Max;
        on_lanes: Maxsd = Double, 1, Max;
        on_lanes: Maxps = Single, 4, Max;
        on_lanes: Maxpd = Double, 2, Max;
        on_lanes: Sqrtss = Single, 1, Sqrt;
        on_lanes: Sqrtsd = Double, 1, Sqrt;
        on_lanes: Sqrtps = Single, 4, Sqrt;
        on_lanes: Sqrtpd = Double, 2, Sqrt;
        on_lanes: Rcpss = Single, 1, Reciprocal;
        on_lanes: Rcpps = Single, 4, Reciprocal;
        on_lanes: Rsqrtss = Single, 1, ReciprocalSqrt;
        on_lanes: Rsqrtps = Single, 4, ReciprocalSqrt;
        on_pairs: Addsubps = Single, 4, Addsub;
        on_pairs: Addsubpd = Double, 2, Addsub;
        on_pairs: Haddps = Single, 4, Hadd;
        on_pairs: Haddpd = Double, 2, Hadd;
        on_pairs: Hsubps = Single, 4, Hsub;
        on_pairs: Hsubpd = Double, 2, Hsub;
    }
}
