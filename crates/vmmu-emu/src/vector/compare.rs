//! Comparisons of SSE and SSE2: CMPPS and its kin, COMISS, UCOMISS (AMD APM vol. 4).

use core::cmp::Ordering;

use iced_x86::{Code, Instruction, OpKind};

use super::bank::{Mem, Reg, Source, Xmm};
use super::float::{Operation, by_place, lane, on_lanes};
use super::{bank::Bank, guard};
use crate::cpu::{Cpu, Stop};
use crate::flags::Flags;
use crate::float::compare::{Nans, compare};
use crate::float::{Double, Env, Format, Single};
use crate::op::{Op, Run};

/// CMPPS: ones where the immediate's predicate holds.
struct Compare;
impl Operation for Compare {
    fn apply<F: Format>(env: &mut Env, a: u64, b: u64, imm: u8) -> u64 {
        // The lower two bits: equal, less, less or equal, unordered; bit 2 negates.
        let nans = if matches!(imm & 3, 1 | 2) {
            Nans::Signal
        } else {
            Nans::Quiet
        };
        let order = compare(env, F::unpack(a), F::unpack(b), nans);
        let holds = match imm & 3 {
            0 => order == Some(Ordering::Equal),
            1 => order == Some(Ordering::Less),
            2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            _ => order.is_none(),
        };
        if holds == (imm & 4 == 0) {
            u64::MAX >> (64 - 8 * F::BYTES)
        } else {
            0
        }
    }
}

/// Whether COMISS or UCOMISS, FCOM or FUCOM: which NaNs are invalid.
pub(super) trait Strictness {
    const NANS: Nans;
}
pub(super) struct Ordered;
impl Strictness for Ordered {
    const NANS: Nans = Nans::Signal;
}
pub(super) struct Unordered;
impl Strictness for Unordered {
    const NANS: Nans = Nans::Quiet;
}

/// Returns the flags of an order: ZF, PF, CF (AMD APM vol. 4, COMISS).
pub(super) const fn flags_of(order: Option<Ordering>) -> Flags {
    match order {
        None => Flags::ZF.union(Flags::PF).union(Flags::CF),
        Some(Ordering::Less) => Flags::CF,
        Some(Ordering::Equal) => Flags::ZF,
        Some(Ordering::Greater) => Flags::empty(),
    }
}

/// COMISS and its kin. `LANES` is 1.
fn comis<F: Format, const LANES: usize, S: Source, K: Strictness, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    guard::sse(cpu)?;
    let b = if F::BYTES == 4 {
        S::get_low::<4, Xmm, C>(cpu, op)?
    } else {
        S::get_low::<8, Xmm, C>(cpu, op)?
    };
    let state = cpu.state();
    let a = Xmm::read(state, op.reg);
    let mut env = Env::sse(state.fpu.mxcsr);
    let (a, b) = (F::unpack(lane::<F>(a, 0)), F::unpack(lane::<F>(b, 0)));
    let order = compare(&mut env, a, b, K::NANS);
    guard::simd_flags(cpu, &env)?;
    let state = cpu.state_mut();
    state.flags = state
        .flags
        .difference(Flags::ARITHMETIC)
        .union(flags_of(order));
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.code() {
        Code::Cmpss_xmm_xmmm32_imm8 => by_place!(instruction, on_lanes, Single, 1, Compare, C),
        Code::Cmpsd_xmm_xmmm64_imm8 => by_place!(instruction, on_lanes, Double, 1, Compare, C),
        Code::Cmpps_xmm_xmmm128_imm8 => by_place!(instruction, on_lanes, Single, 4, Compare, C),
        Code::Cmppd_xmm_xmmm128_imm8 => by_place!(instruction, on_lanes, Double, 2, Compare, C),
        Code::Comiss_xmm_xmmm32 => by_place!(instruction, comis, Single, 1, Ordered, C),
        Code::Comisd_xmm_xmmm64 => by_place!(instruction, comis, Double, 1, Ordered, C),
        Code::Ucomiss_xmm_xmmm32 => by_place!(instruction, comis, Single, 1, Unordered, C),
        Code::Ucomisd_xmm_xmmm64 => by_place!(instruction, comis, Double, 1, Unordered, C),
        _ => None,
    }
}
