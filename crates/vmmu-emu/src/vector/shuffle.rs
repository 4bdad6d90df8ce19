//! Instructions that move lanes about: packs, unpacks, shuffles, shifts, insertions, sign masks (AMD APM vol. 1, section 4.6).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::bank::{Bank, Binary, Mem, Mmx, Source, Xmm, binary, by_bank, by_immediate};
use super::lane::Lane;
use crate::cpu::{Cpu, Stop};
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1};

macro_rules! operations {
    ($($name:ident: $bank:ident, |$a:ident, $b:ident| $result:expr;)*) => {$(
        struct $name;
        // Not generic, so that they are compiled here, once, and not with each embedder.
        impl $name {
            fn xmm(a: u128, b: u128) -> u128 {
                Self::of::<Xmm>(a, b)
            }
            fn mmx(a: u128, b: u128) -> u128 {
                Self::of::<Mmx>(a, b)
            }
            #[inline(always)]
            fn of<$bank: Bank>($a: u128, $b: u128) -> u128 {
                $result
            }
        }
        impl Binary for $name {
            #[inline(always)]
            fn apply<B: Bank>(a: u128, b: u128) -> u128 {
                if B::BYTES == Xmm::BYTES {
                    Self::xmm(a, b)
                } else {
                    Self::mmx(a, b)
                }
            }
        }
    )*};
}

operations! {
    Punpcklbw: B, |a, b| u8::collect(|i| u8::of(if i & 1 == 0 { a } else { b }, i / 2));
    Punpcklwd: B, |a, b| u16::collect(|i| u16::of(if i & 1 == 0 { a } else { b }, i / 2));
    Punpckldq: B, |a, b| u32::collect(|i| u32::of(if i & 1 == 0 { a } else { b }, i / 2));
    Punpcklqdq: B, |a, b| a as u64 as u128 | b << 64;
    Punpckhbw: B, |a, b| Punpcklbw::of::<B>(upper::<B>(a), upper::<B>(b));
    Punpckhwd: B, |a, b| Punpcklwd::of::<B>(upper::<B>(a), upper::<B>(b));
    Punpckhdq: B, |a, b| Punpckldq::of::<B>(upper::<B>(a), upper::<B>(b));
    Punpckhqdq: B, |a, b| a >> 64 | b >> 64 << 64;
    Packsswb: B, |a, b| halves::<B>(narrow::<8, 0x80>(a), narrow::<8, 0x80>(b));
    Packuswb: B, |a, b| halves::<B>(narrow::<8, 0>(a), narrow::<8, 0>(b));
    Packssdw: B, |a, b| halves::<B>(narrow::<16, 0x8000>(a), narrow::<16, 0x8000>(b));
    Psllw: B, |a, b| shift(b, 16, |n| u16::zip(a, 0, |a, _| a << n), 0);
    Pslld: B, |a, b| shift(b, 32, |n| u32::zip(a, 0, |a, _| a << n), 0);
    Psllq: B, |a, b| shift(b, 64, |n| u64::zip(a, 0, |a, _| a << n), 0);
    Psrlw: B, |a, b| shift(b, 16, |n| u16::zip(a, 0, |a, _| a >> n), 0);
    Psrld: B, |a, b| shift(b, 32, |n| u32::zip(a, 0, |a, _| a >> n), 0);
    Psrlq: B, |a, b| shift(b, 64, |n| u64::zip(a, 0, |a, _| a >> n), 0);
    Psraw: B, |a, b| {
        let n = (b as u64).min(15) as u32;
        u16::zip(a, 0, |a, _| (a as i16 >> n) as u16)
    };
    Psrad: B, |a, b| {
        let n = (b as u64).min(31) as u32;
        u32::zip(a, 0, |a, _| (a as i32 >> n) as u32)
    };
    Pslldq: B, |a, b| if b < 16 { a << (8 * b as u32) } else { 0 };
    Psrldq: B, |a, b| if b < 16 { a >> (8 * b as u32) } else { 0 };
    Movshdup: B, |_a, b| u32::collect(|i| u32::of(b, i | 1));
    Movsldup: B, |_a, b| u32::collect(|i| u32::of(b, i & !1));
    Pshufb: B, |a, b| u8::collect(|i| {
        let from = u8::of(b, i);
        let lane = u8::of(a, from as usize & (B::BYTES - 1));
        if from & 0x80 == 0 { lane } else { 0 }
    });
}

/// Returns the upper half of a register.
#[inline(always)]
fn upper<B: Bank>(a: u128) -> u128 {
    a >> (4 * B::BYTES as u32)
}

/// Puts two halves of a register together.
#[inline(always)]
fn halves<B: Bank>(low: u128, high: u128) -> u128 {
    let bits = 4 * B::BYTES as u32;
    low & ((1 << bits) - 1) | high << bits
}

/// Narrows lanes of twice `BITS` to `BITS`, saturating; `BELOW` is how far the range reaches below zero.
#[inline(always)]
fn narrow<const BITS: u32, const BELOW: i32>(a: u128) -> u128 {
    let top = (1 << BITS) - 1 - BELOW;
    let lanes = 64 / BITS;
    (0..lanes).fold(0, |sum, i| {
        let wide = (a >> (i * 2 * BITS)) as u32;
        let value = ((wide << (32 - 2 * BITS)) as i32) >> (32 - 2 * BITS);
        let narrow = value.clamp(-BELOW, top) as u32 & ((1 << BITS) - 1);
        sum | u128::from(narrow) << (i * BITS)
    })
}

/// Shifts by the low 64 bits of a count; `beyond` is the result from `bits` on.
#[inline(always)]
fn shift(count: u128, bits: u64, by: impl Fn(u32) -> u128, beyond: u128) -> u128 {
    let count = count as u64;
    if count < bits {
        by(count as u32)
    } else {
        beyond
    }
}

/// A function of two vectors and an immediate.
trait Shuffle {
    fn apply<B: Bank>(a: u128, b: u128, imm: u8) -> u128;
}

macro_rules! shuffles {
    ($($name:ident: $bank:ident, |$a:ident, $b:ident, $imm:ident| $result:expr;)*) => {$(
        struct $name;
        impl $name {
            fn xmm(a: u128, b: u128, imm: u8) -> u128 {
                Self::of::<Xmm>(a, b, imm)
            }
            fn mmx(a: u128, b: u128, imm: u8) -> u128 {
                Self::of::<Mmx>(a, b, imm)
            }
            #[inline(always)]
            fn of<$bank: Bank>($a: u128, $b: u128, $imm: u8) -> u128 {
                $result
            }
        }
        impl Shuffle for $name {
            #[inline(always)]
            fn apply<B: Bank>(a: u128, b: u128, imm: u8) -> u128 {
                if B::BYTES == Xmm::BYTES {
                    Self::xmm(a, b, imm)
                } else {
                    Self::mmx(a, b, imm)
                }
            }
        }
    )*};
}

/// Returns field `i` of two bits.
#[inline(always)]
const fn field(imm: u8, i: usize) -> usize {
    (imm >> (2 * (i & 3)) & 3) as usize
}

shuffles! {
    Pshufd: B, |_a, b, imm| u32::collect(|i| u32::of(b, field(imm, i)));
    Pshufw: B, |_a, b, imm| u16::collect(|i| u16::of(b, field(imm, i)));
    Pshuflw: B, |_a, b, imm| {
        u16::collect(|i| u16::of(b, if i < 4 { field(imm, i) } else { i }))
    };
    Pshufhw: B, |_a, b, imm| {
        u16::collect(|i| u16::of(b, if i < 4 { i } else { 4 + field(imm, i) }))
    };
    Shufps: B, |a, b, imm| {
        u32::collect(|i| u32::of(if i < 2 { a } else { b }, field(imm, i)))
    };
    Shufpd: B, |a, b, imm| {
        u64::collect(|i| u64::of(if i == 0 { a } else { b }, (imm >> i & 1) as usize))
    };
    Palignr: B, |a, b, imm| u8::collect(|i| {
        let from = i + imm as usize;
        match from.checked_sub(B::BYTES) {
            None => u8::of(b, from),
            Some(from) if from < B::BYTES => u8::of(a, from),
            Some(_) => 0,
        }
    });
}

fn shuffle<B: Bank, S: Source, O: Shuffle, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let b = S::get::<B, C>(cpu, op)?;
    let state = cpu.state_mut();
    let a = B::read(state, op.reg);
    B::write(state, op.reg, O::apply::<B>(a, b, op.imm as u8));
    Ok(())
}

/// Interleaves the low halves of MMX registers: memory is 4 bytes.
fn unpack_low<O: Binary, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    Mmx::guard(cpu)?;
    let b = Mem::get_low::<4, Mmx, C>(cpu, op)?;
    let state = cpu.state_mut();
    let a = Mmx::read(state, op.reg);
    Mmx::write(state, op.reg, O::apply::<Mmx>(a, b));
    Ok(())
}

/// PINSRW.
fn insert<B: Bank, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let word: u16 = S::get(cpu, op)?;
    let at = 16 * (op.imm as u32 & (B::BYTES as u32 / 2 - 1));
    let state = cpu.state_mut();
    let rest = B::read(state, op.reg) & !(0xffff << at);
    B::write(state, op.reg, rest | u128::from(word) << at);
    Ok(())
}

/// PEXTRW.
fn extract<B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let at = 16 * (op.imm as u32 & (B::BYTES as u32 / 2 - 1));
    let word = (B::read(cpu.state(), op.rm) >> at) as u16;
    B::used(cpu.state_mut());
    R0::set(cpu, op, u32::from(word))
}

/// PMOVMSKB, MOVMSKPS, MOVMSKPD: the top bit of each lane of `BITS`.
fn signs<B: Bank, const BITS: u32, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let a = B::read(cpu.state(), op.rm);
    let lanes = B::BYTES as u32 * 8 / BITS;
    let signs = (0..lanes).fold(0, |sum, i| {
        sum | ((a >> (i * BITS + BITS - 1)) as u32 & 1) << i
    });
    B::used(cpu.state_mut());
    R0::set(cpu, op, signs)
}

macro_rules! by_name {
    ($choose:ident, $instruction:expr, $function:ident, $cpu:ident, $($name:ident $(= $alias:ident)?),* $(,)?) => {
        match $instruction.mnemonic() {
            $(Mnemonic::$name => $choose!($instruction, $function, $cpu, $name),)*
            $($(Mnemonic::$alias => $choose!($instruction, $function, $cpu, $name),)?)*
            _ => None,
        }
    };
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    select_special(instruction)
        .or_else(|| select_shift(instruction))
        .or_else(|| {
            by_name!(
                by_bank,
                instruction,
                binary,
                C,
                Punpcklbw,
                Punpcklwd,
                Punpckldq = Unpcklps,
                Punpcklqdq = Unpcklpd,
                Punpckhbw,
                Punpckhwd,
                Punpckhdq = Unpckhps,
                Punpckhqdq = Unpckhpd,
                Packsswb,
                Packuswb,
                Packssdw,
                Psllw,
                Pslld,
                Psllq,
                Psrlw,
                Psrld,
                Psrlq,
                Psraw,
                Psrad,
                Movshdup,
                Movsldup,
                Pshufb,
            )
        })
        .or_else(|| {
            by_name!(
                by_bank,
                instruction,
                shuffle,
                C,
                Pshufd,
                Pshufw,
                Pshuflw,
                Pshufhw,
                Shufps,
                Shufpd,
                Palignr,
            )
        })
}

/// Shifts by an immediate.
fn select_shift<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    if instruction.op1_kind() != OpKind::Immediate8 {
        return None;
    }
    by_name!(
        by_immediate,
        instruction,
        binary,
        C,
        Psllw,
        Pslld,
        Psllq,
        Psrlw,
        Psrld,
        Psrlq,
        Psraw,
        Psrad,
        Pslldq,
        Psrldq,
    )
}

fn select_special<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let is_memory = instruction.op1_kind() == OpKind::Memory;
    Some(match instruction.code() {
        Code::Punpcklbw_mm_mmm32 if is_memory => unpack_low::<Punpcklbw, C>,
        Code::Punpcklwd_mm_mmm32 if is_memory => unpack_low::<Punpcklwd, C>,
        Code::Punpckldq_mm_mmm32 if is_memory => unpack_low::<Punpckldq, C>,
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 if is_memory => {
            insert::<Xmm, M, C>
        }
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => insert::<Xmm, R1, C>,
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 if is_memory => {
            insert::<Mmx, M, C>
        }
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => insert::<Mmx, R1, C>,
        Code::Pextrw_r32_xmm_imm8 | Code::Pextrw_r64_xmm_imm8 => extract::<Xmm, C>,
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => extract::<Mmx, C>,
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => signs::<Xmm, 8, C>,
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => signs::<Mmx, 8, C>,
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => signs::<Xmm, 32, C>,
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => signs::<Xmm, 64, C>,
        _ => return None,
    })
}
