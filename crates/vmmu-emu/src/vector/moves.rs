//! Instructions that move data to, from and between vector registers (AMD APM vol. 1, sections 4.5.1 and 5.6.2).
//!
//! Non-temporal stores are plain ones: caches are not modelled.

use core::ops::RangeInclusive;

use iced_x86::{Code, Instruction, OpKind};

use super::bank::{Bank, Mmx, Xmm, aligned};
use super::guard;
use super::lane::Lane;
use crate::cpu::{Access, Cpu, Stop};
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1};
use crate::word::Word;

/// Whether a 16-byte operand must be aligned.
trait Alignment {
    fn place<C: Cpu>(cpu: &C, op: &Op<C>, access: Access) -> Result<u64, Stop>;
}

struct Aligned;
impl Alignment for Aligned {
    #[inline(always)]
    fn place<C: Cpu>(cpu: &C, op: &Op<C>, access: Access) -> Result<u64, Stop> {
        aligned(cpu, op, access)
    }
}

struct Unaligned;
impl Alignment for Unaligned {
    #[inline(always)]
    fn place<C: Cpu>(cpu: &C, op: &Op<C>, access: Access) -> Result<u64, Stop> {
        op.linear(cpu, 16, access)
    }
}

fn load<A: Alignment, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let at = A::place(cpu, op, Access::Read)?;
    let value = cpu.load_vector(at, Access::Read)?;
    Xmm::write(cpu.state_mut(), op.reg, value);
    Ok(())
}

fn store<A: Alignment, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let at = A::place(cpu, op, Access::Write)?;
    let value = Xmm::read(cpu.state(), op.reg);
    cpu.store_vector(at, value, Access::Write)
}

/// A move between registers: what becomes of the destination.
trait Copy {
    fn copy(old: u128, from: u128) -> u128;
}

macro_rules! copies {
    ($($(#[$doc:meta])* $name:ident: |$old:ident, $from:ident| $result:expr;)*) => {$(
        $(#[$doc])*
        struct $name;
        impl Copy for $name {
            #[inline(always)]
            fn copy($old: u128, $from: u128) -> u128 {
                $result
            }
        }
    )*};
}

const LOW_32: u128 = 0xffff_ffff;
const LOW_64: u128 = 0xffff_ffff_ffff_ffff;

copies! {
    /// All of it.
    All: |_old, from| from;
    /// The low half; the upper one becomes zero.
    Low64: |_old, from| from & LOW_64;
    /// The lowest lane of 32 bits; the rest stays.
    Lane32: |old, from| old & !LOW_32 | from & LOW_32;
    /// The low half; the upper one stays.
    LowHalf: |old, from| old & !LOW_64 | from & LOW_64;
    /// The low half to the upper one.
    LowToHigh: |old, from| old & LOW_64 | from << 64;
    /// The upper half to the low one.
    HighToLow: |old, from| old & !LOW_64 | from >> 64;
    /// The low half to both.
    Twice: |_old, from| from & LOW_64 | from << 64;
}

fn copy<K: Copy, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let state = cpu.state_mut();
    let value = K::copy(Xmm::read(state, op.reg), Xmm::read(state, op.rm));
    Xmm::write(state, op.reg, value);
    Ok(())
}

fn copy_mmx<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::mmx(cpu)?;
    let state = cpu.state_mut();
    Mmx::write(state, op.reg, Mmx::read(state, op.rm));
    Ok(())
}

/// Loads a word into a register, extended with zeros.
fn load_word<W: Word, B: Bank, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let value: W = S::get(cpu, op)?;
    B::write(cpu.state_mut(), op.reg, u128::from(value.zero_extend()));
    Ok(())
}

/// Loads 8 bytes into a part of a register.
fn load_part<K: Copy, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let value: u64 = M::get(cpu, op)?;
    let state = cpu.state_mut();
    let value = K::copy(Xmm::read(state, op.reg), u128::from(value));
    Xmm::write(state, op.reg, value);
    Ok(())
}

/// Stores the lowest word of a register.
fn store_word<W: Word, B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let value = W::truncate(B::read(cpu.state(), op.reg) as u64);
    M::set(cpu, op, value)?;
    B::used(cpu.state_mut());
    Ok(())
}

fn store_high<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let value = (Xmm::read(cpu.state(), op.reg) >> 64) as u64;
    M::set(cpu, op, value)
}

/// Moves the lowest word to a general register.
fn to_general<W: Word, B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let value = W::truncate(B::read(cpu.state(), op.rm) as u64);
    B::used(cpu.state_mut());
    R0::set(cpu, op, value)
}

/// MOVQ2DQ.
fn mmx_to_xmm<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    guard::mmx(cpu)?;
    let state = cpu.state_mut();
    Mmx::used(state);
    Xmm::write(state, op.reg, Mmx::read(state, op.rm));
    Ok(())
}

/// MOVDQ2Q.
fn xmm_to_mmx<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::sse(cpu)?;
    guard::mmx(cpu)?;
    let state = cpu.state_mut();
    Mmx::write(state, op.reg, Xmm::read(state, op.rm));
    Ok(())
}

/// MASKMOVQ, MASKMOVDQU: stores the bytes whose mask is negative. Only the bytes between the first and the last of them are checked.
fn store_masked<B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    B::guard(cpu)?;
    let at = op.linear(cpu, B::BYTES, Access::Write)?;
    let value = B::read(cpu.state(), op.reg);
    let mask = B::read(cpu.state(), op.rm);
    let Some(range) = selected(mask, B::BYTES) else {
        B::used(cpu.state_mut());
        return Ok(());
    };
    let first = at.wrapping_add(*range.start() as u64);
    let len = range.end() - range.start() + 1;
    cpu.check_write(first, len, Access::Write)?;
    for i in range.filter(|i| is_selected(mask, *i)) {
        let at = at.wrapping_add(i as u64);
        cpu.store(at, u8::of(value, i), Access::Write)?;
    }
    B::used(cpu.state_mut());
    Ok(())
}

fn is_selected(mask: u128, i: usize) -> bool {
    u8::of(mask, i) & 0x80 != 0
}

fn selected(mask: u128, bytes: usize) -> Option<RangeInclusive<usize>> {
    let first = (0..bytes).find(|i| is_selected(mask, *i))?;
    let last = (0..bytes).rfind(|i| is_selected(mask, *i))?;
    Some(first..=last)
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let memory = (0..2).any(|n| instruction.op_kind(n) == OpKind::Memory);
    whole(instruction.code(), memory)
        .or_else(|| parts(instruction.code(), memory))
        .or_else(|| other(instruction.code(), memory))
}

/// Moves of 16 bytes.
fn whole<C: Cpu>(code: Code, memory: bool) -> Option<Run<C>> {
    Some(match (code, memory) {
        (
            Code::Movaps_xmm_xmmm128
            | Code::Movapd_xmm_xmmm128
            | Code::Movdqa_xmm_xmmm128
            | Code::Movaps_xmmm128_xmm
            | Code::Movapd_xmmm128_xmm
            | Code::Movdqa_xmmm128_xmm
            | Code::Movups_xmm_xmmm128
            | Code::Movupd_xmm_xmmm128
            | Code::Movdqu_xmm_xmmm128
            | Code::Movups_xmmm128_xmm
            | Code::Movupd_xmmm128_xmm
            | Code::Movdqu_xmmm128_xmm,
            false,
        ) => copy::<All, C>,
        (Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128, true) => {
            load::<Aligned, C>
        }
        (
            Code::Movups_xmm_xmmm128
            | Code::Movupd_xmm_xmmm128
            | Code::Movdqu_xmm_xmmm128
            | Code::Lddqu_xmm_m128,
            true,
        ) => load::<Unaligned, C>,
        (
            Code::Movaps_xmmm128_xmm
            | Code::Movapd_xmmm128_xmm
            | Code::Movdqa_xmmm128_xmm
            | Code::Movntps_m128_xmm
            | Code::Movntpd_m128_xmm
            | Code::Movntdq_m128_xmm,
            true,
        ) => store::<Aligned, C>,
        (Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm, true) => {
            store::<Unaligned, C>
        }
        _ => return None,
    })
}

/// Moves of a part of an XMM register.
fn parts<C: Cpu>(code: Code, memory: bool) -> Option<Run<C>> {
    Some(match (code, memory) {
        (Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm, false) => copy::<Lane32, C>,
        (Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm, false) => copy::<LowHalf, C>,
        (Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm, false) => copy::<Low64, C>,
        (Code::Movddup_xmm_xmmm64, false) => copy::<Twice, C>,
        (Code::Movhlps_xmm_xmm, _) => copy::<HighToLow, C>,
        (Code::Movlhps_xmm_xmm, _) => copy::<LowToHigh, C>,
        (Code::Movss_xmm_xmmm32, true) => load_word::<u32, Xmm, M, C>,
        (Code::Movsd_xmm_xmmm64 | Code::Movq_xmm_xmmm64, true) => load_word::<u64, Xmm, M, C>,
        (Code::Movddup_xmm_xmmm64, true) => load_part::<Twice, C>,
        (Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64, _) => load_part::<LowHalf, C>,
        (Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64, _) => load_part::<LowToHigh, C>,
        (Code::Movss_xmmm32_xmm, true) => store_word::<u32, Xmm, C>,
        (
            Code::Movsd_xmmm64_xmm
            | Code::Movq_xmmm64_xmm
            | Code::Movlps_m64_xmm
            | Code::Movlpd_m64_xmm,
            true,
        ) => store_word::<u64, Xmm, C>,
        (Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm, _) => store_high,
        _ => return None,
    })
}

/// Moves from and to general and MMX registers, and masked stores.
fn other<C: Cpu>(code: Code, memory: bool) -> Option<Run<C>> {
    Some(match (code, memory) {
        (Code::Movd_xmm_rm32, false) => load_word::<u32, Xmm, R1, C>,
        (Code::Movd_xmm_rm32, true) => load_word::<u32, Xmm, M, C>,
        (Code::Movq_xmm_rm64, false) => load_word::<u64, Xmm, R1, C>,
        (Code::Movq_xmm_rm64, true) => load_word::<u64, Xmm, M, C>,
        (Code::Movd_mm_rm32, false) => load_word::<u32, Mmx, R1, C>,
        (Code::Movd_mm_rm32, true) => load_word::<u32, Mmx, M, C>,
        (Code::Movq_mm_rm64, false) => load_word::<u64, Mmx, R1, C>,
        (Code::Movq_mm_rm64 | Code::Movq_mm_mmm64, true) => load_word::<u64, Mmx, M, C>,
        (Code::Movd_rm32_xmm, false) => to_general::<u32, Xmm, C>,
        (Code::Movd_rm32_xmm, true) => store_word::<u32, Xmm, C>,
        (Code::Movq_rm64_xmm, false) => to_general::<u64, Xmm, C>,
        (Code::Movq_rm64_xmm, true) => store_word::<u64, Xmm, C>,
        (Code::Movd_rm32_mm, false) => to_general::<u32, Mmx, C>,
        (Code::Movd_rm32_mm, true) => store_word::<u32, Mmx, C>,
        (Code::Movq_rm64_mm, false) => to_general::<u64, Mmx, C>,
        (Code::Movq_rm64_mm | Code::Movq_mmm64_mm | Code::Movntq_m64_mm, true) => {
            store_word::<u64, Mmx, C>
        }
        (Code::Movq_mm_mmm64 | Code::Movq_mmm64_mm, false) => copy_mmx,
        (Code::Movq2dq_xmm_mm, _) => mmx_to_xmm,
        (Code::Movdq2q_mm_xmm, _) => xmm_to_mmx,
        (Code::Maskmovq_rDI_mm_mm, _) => store_masked::<Mmx, C>,
        (Code::Maskmovdqu_rDI_xmm_xmm, _) => store_masked::<Xmm, C>,
        _ => return None,
    })
}
