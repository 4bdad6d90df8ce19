//! Conversions of SSE and SSE2 between integers and the floating-point formats (AMD APM vol. 1, section 4.7.2).

use iced_x86::{Code, Instruction, OpKind};

use super::bank::{Bank, Mem, Mmx, Reg, Source, Xmm};
use super::float::{lane, with_lane};
use super::guard;
use super::lane::Lane;
use crate::cpu::{Cpu, Stop};
use crate::float::integer::{from_integer, to_integer};
use crate::float::number::Number;
use crate::float::{Double, Env, Format, Rounding, Single, arithmetic, nan};
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1};
use crate::word::Word;

/// How a conversion to an integer rounds.
trait Mode {
    fn rounding(env: &Env) -> Rounding;
}
/// As MXCSR says.
struct Current;
impl Mode for Current {
    fn rounding(env: &Env) -> Rounding {
        env.rounding
    }
}
/// Towards zero.
struct Truncate;
impl Mode for Truncate {
    fn rounding(_: &Env) -> Rounding {
        Rounding::Zero
    }
}

/// CVTSI2SS, CVTSI2SD.
fn from_general<F: Format, W: Word, S: Operand, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let value: W = S::get(cpu, op)?;
    let mut env = Env::sse(cpu.state().fpu.mxcsr);
    let number = from_integer(&mut env, value.sign_extend() as i64, &F::TARGET);
    guard::simd_flags(cpu, &env)?;
    let state = cpu.state_mut();
    let result = with_lane::<F>(Xmm::read(state, op.reg), 0, F::pack(&number));
    Xmm::write(state, op.reg, result);
    Ok(())
}

/// CVTSS2SI, CVTTSS2SI, CVTSD2SI, CVTTSD2SI.
fn to_general<F: Format, W: Word, S: Source, K: Mode, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let bits = if F::BYTES == 4 {
        S::get_low::<4, Xmm, C>(cpu, op)?
    } else {
        S::get_low::<8, Xmm, C>(cpu, op)?
    };
    let mut env = Env::sse(cpu.state().fpu.mxcsr);
    let rounding = K::rounding(&env);
    let value = to_integer(&mut env, F::unpack(lane::<F>(bits, 0)), W::BITS, rounding);
    guard::simd_flags(cpu, &env)?;
    R0::set(cpu, op, W::truncate(value as u64))
}

/// A conversion of vectors.
trait Conversion {
    /// Bytes of the source; 16 must be aligned in memory.
    const BYTES: usize;
    /// Converts; `old` is the destination.
    fn apply(env: &mut Env, old: u128, from: u128) -> u128;
}

/// Converts between formats.
fn reformat<F: Format, T: Format>(env: &mut Env, bits: u64) -> u64 {
    let number = env.operand(F::unpack(bits));
    let converted = if number.is_nan() {
        nan::of_one(env, number)
    } else if number.is_finite() {
        env.note_denormal(&number);
        arithmetic::rounded(env, number, &T::TARGET)
    } else {
        number
    };
    T::pack(&converted)
}

fn integer_lane<F: Format>(env: &mut Env, from: u128, i: usize) -> u64 {
    let value = u32::of(from, i) as i32;
    let number: Number = from_integer(env, i64::from(value), &F::TARGET);
    F::pack(&number)
}

fn to_lane<F: Format, K: Mode>(env: &mut Env, from: u128, i: usize) -> u32 {
    let rounding = K::rounding(env);
    to_integer(env, F::unpack(lane::<F>(from, i)), 32, rounding) as u32
}

/// Returns `lanes` lanes of 32 bits, zeros above.
fn words(lanes: usize, mut f: impl FnMut(usize) -> u32) -> u128 {
    u32::collect(|i| if i < lanes { f(i) } else { 0 })
}

const LOW_64: u128 = u64::MAX as u128;

macro_rules! conversions {
    ($($name:ident: $bytes:literal, |$env:ident, $old:ident, $from:ident| $result:expr;)*) => {$(
        struct $name;
        impl Conversion for $name {
            const BYTES: usize = $bytes;
            fn apply($env: &mut Env, $old: u128, $from: u128) -> u128 {
                $result
            }
        }
    )*};
}
conversions! {
    Dq2ps: 16, |env, _old, from| words(4, |i| integer_lane::<Single>(env, from, i) as u32);
    Ps2dq: 16, |env, _old, from| words(4, |i| to_lane::<Single, Current>(env, from, i));
    Tps2dq: 16, |env, _old, from| words(4, |i| to_lane::<Single, Truncate>(env, from, i));
    Dq2pd: 8, |env, _old, from| u64::collect(|i| integer_lane::<Double>(env, from, i));
    Pd2dq: 16, |env, _old, from| words(2, |i| to_lane::<Double, Current>(env, from, i));
    Tpd2dq: 16, |env, _old, from| words(2, |i| to_lane::<Double, Truncate>(env, from, i));
    Ps2pd: 8, |env, _old, from| {
        u64::collect(|i| reformat::<Single, Double>(env, lane::<Single>(from, i)))
    };
    Pd2ps: 16, |env, _old, from| {
        words(2, |i| reformat::<Double, Single>(env, lane::<Double>(from, i)) as u32)
    };
    Ss2sd: 4, |env, old, from| {
        with_lane::<Double>(old, 0, reformat::<Single, Double>(env, lane::<Single>(from, 0)))
    };
    Sd2ss: 8, |env, old, from| {
        with_lane::<Single>(old, 0, reformat::<Double, Single>(env, lane::<Double>(from, 0)))
    };
    Pi2ps: 8, |env, old, from| {
        old & !LOW_64 | words(2, |i| integer_lane::<Single>(env, from, i) as u32)
    };
    Ps2pi: 8, |env, _old, from| words(2, |i| to_lane::<Single, Current>(env, from, i));
    Tps2pi: 8, |env, _old, from| words(2, |i| to_lane::<Single, Truncate>(env, from, i));
}

/// Converts from bank `F` to bank `D`.
fn convert<D: Bank, F: Bank, S: Source, O: Conversion, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    guard::sse(cpu)?;
    F::guard(cpu)?;
    D::guard(cpu)?;
    let from = match O::BYTES {
        4 => S::get_low::<4, F, C>(cpu, op)?,
        8 => S::get_low::<8, F, C>(cpu, op)?,
        _ => S::get::<F, C>(cpu, op)?,
    };
    let mut env = Env::sse(cpu.state().fpu.mxcsr);
    let result = O::apply(&mut env, D::read(cpu.state(), op.reg), from);
    // Even if it raises an exception, the x87 registers have become MMX registers.
    F::used(cpu.state_mut());
    D::used(cpu.state_mut());
    guard::simd_flags(cpu, &env)?;
    D::write(cpu.state_mut(), op.reg, result);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    select_vector(instruction)
        .or_else(|| select_from_general(instruction))
        .or_else(|| select_to_general(instruction))
}

fn select_vector<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    macro_rules! by_place {
        ($to:ident, $from:ident, $operation:ident) => {
            if instruction.op1_kind() == OpKind::Memory {
                convert::<$to, $from, Mem, $operation, C>
            } else {
                convert::<$to, $from, Reg, $operation, C>
            }
        };
    }
    let is_memory = instruction.op1_kind() == OpKind::Memory;
    Some(match instruction.code() {
        Code::Cvtdq2ps_xmm_xmmm128 => by_place!(Xmm, Xmm, Dq2ps),
        Code::Cvtps2dq_xmm_xmmm128 => by_place!(Xmm, Xmm, Ps2dq),
        Code::Cvttps2dq_xmm_xmmm128 => by_place!(Xmm, Xmm, Tps2dq),
        Code::Cvtdq2pd_xmm_xmmm64 => by_place!(Xmm, Xmm, Dq2pd),
        Code::Cvtpd2dq_xmm_xmmm128 => by_place!(Xmm, Xmm, Pd2dq),
        Code::Cvttpd2dq_xmm_xmmm128 => by_place!(Xmm, Xmm, Tpd2dq),
        Code::Cvtps2pd_xmm_xmmm64 => by_place!(Xmm, Xmm, Ps2pd),
        Code::Cvtpd2ps_xmm_xmmm128 => by_place!(Xmm, Xmm, Pd2ps),
        Code::Cvtss2sd_xmm_xmmm32 => by_place!(Xmm, Xmm, Ss2sd),
        Code::Cvtsd2ss_xmm_xmmm64 => by_place!(Xmm, Xmm, Sd2ss),
        // From memory no MMX register takes part.
        Code::Cvtpi2ps_xmm_mmm64 if is_memory => convert::<Xmm, Xmm, Mem, Pi2ps, C>,
        Code::Cvtpi2ps_xmm_mmm64 => convert::<Xmm, Mmx, Reg, Pi2ps, C>,
        Code::Cvtpi2pd_xmm_mmm64 if is_memory => convert::<Xmm, Xmm, Mem, Dq2pd, C>,
        Code::Cvtpi2pd_xmm_mmm64 => convert::<Xmm, Mmx, Reg, Dq2pd, C>,
        Code::Cvtps2pi_mm_xmmm64 => by_place!(Mmx, Xmm, Ps2pi),
        Code::Cvttps2pi_mm_xmmm64 => by_place!(Mmx, Xmm, Tps2pi),
        Code::Cvtpd2pi_mm_xmmm128 => by_place!(Mmx, Xmm, Pd2dq),
        Code::Cvttpd2pi_mm_xmmm128 => by_place!(Mmx, Xmm, Tpd2dq),
        _ => return None,
    })
}

fn select_from_general<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let is_memory = instruction.op1_kind() == OpKind::Memory;
    Some(match (instruction.code(), is_memory) {
        (Code::Cvtsi2ss_xmm_rm32, false) => from_general::<Single, u32, R1, C>,
        (Code::Cvtsi2ss_xmm_rm32, true) => from_general::<Single, u32, M, C>,
        (Code::Cvtsi2ss_xmm_rm64, false) => from_general::<Single, u64, R1, C>,
        (Code::Cvtsi2ss_xmm_rm64, true) => from_general::<Single, u64, M, C>,
        (Code::Cvtsi2sd_xmm_rm32, false) => from_general::<Double, u32, R1, C>,
        (Code::Cvtsi2sd_xmm_rm32, true) => from_general::<Double, u32, M, C>,
        (Code::Cvtsi2sd_xmm_rm64, false) => from_general::<Double, u64, R1, C>,
        (Code::Cvtsi2sd_xmm_rm64, true) => from_general::<Double, u64, M, C>,
        _ => return None,
    })
}

fn select_to_general<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    macro_rules! by_place {
        ($format:ident, $word:ty, $mode:ident) => {
            if instruction.op1_kind() == OpKind::Memory {
                to_general::<$format, $word, Mem, $mode, C>
            } else {
                to_general::<$format, $word, Reg, $mode, C>
            }
        };
    }
    Some(match instruction.code() {
        Code::Cvtss2si_r32_xmmm32 => by_place!(Single, u32, Current),
        Code::Cvtss2si_r64_xmmm32 => by_place!(Single, u64, Current),
        Code::Cvttss2si_r32_xmmm32 => by_place!(Single, u32, Truncate),
        Code::Cvttss2si_r64_xmmm32 => by_place!(Single, u64, Truncate),
        Code::Cvtsd2si_r32_xmmm64 => by_place!(Double, u32, Current),
        Code::Cvtsd2si_r64_xmmm64 => by_place!(Double, u64, Current),
        Code::Cvttsd2si_r32_xmmm64 => by_place!(Double, u32, Truncate),
        Code::Cvttsd2si_r64_xmmm64 => by_place!(Double, u64, Truncate),
        _ => return None,
    })
}
