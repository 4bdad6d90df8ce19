//! Multiplication and division: MUL, IMUL, DIV, IDIV.
//!
//! Of the flags, multiplication defines CF and OF, division none; what is undefined stays as it was.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{HIGH_BYTE, Op, Run};
use crate::operand::{Operand, R0, read_register, write_register};
use crate::state::{Gpr, State};
use crate::word::Word;

const RAX: u8 = Gpr::RAX.number();

/// The register of a product's or dividend's upper half: AH for bytes.
const fn upper<W: Word>() -> u8 {
    if W::BYTES == 1 {
        HIGH_BYTE
    } else {
        Gpr::RDX.number()
    }
}

#[inline(always)]
fn set_overflow(state: &mut State, overflows: bool) {
    let mut flags = Flags::empty();
    flags.set(Flags::CF.union(Flags::OF), overflows);
    state.flags.replace(Flags::CF.union(Flags::OF), flags);
}

fn mul<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let factor = D::get::<W, C>(cpu, op)?.zero_extend();
    let state = cpu.state_mut();
    let product = u128::from(read_register::<W>(state, RAX).zero_extend()) * u128::from(factor);
    let high = W::truncate((product >> W::BITS) as u64);
    write_register(state, RAX, W::truncate(product as u64));
    write_register(state, upper::<W>(), high);
    set_overflow(state, high != W::default());
    Ok(())
}

/// Multiplies with sign; returns the product's halves and whether the upper one matters.
#[inline(always)]
fn signed<W: Word>(a: W, b: W) -> (W, W, bool) {
    let product = i128::from(a.sign_extend() as i64) * i128::from(b.sign_extend() as i64);
    let low = W::truncate(product as u64);
    let high = W::truncate((product >> W::BITS) as u64);
    (low, high, i128::from(low.sign_extend() as i64) != product)
}

fn imul<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let factor: W = D::get(cpu, op)?;
    let state = cpu.state_mut();
    let (low, high, overflows) = signed(read_register(state, RAX), factor);
    write_register(state, RAX, low);
    write_register(state, upper::<W>(), high);
    set_overflow(state, overflows);
    Ok(())
}

/// IMUL of two operands.
fn imul_into<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let factor: W = S::get(cpu, op)?;
    let old: W = R0::get(cpu, op)?;
    product_into(cpu, op, old, factor)
}

/// IMUL of three operands.
fn imul_immediate<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let factor: W = S::get(cpu, op)?;
    product_into(cpu, op, factor, W::truncate(op.imm))
}

#[inline(always)]
fn product_into<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, a: W, b: W) -> Result<(), Stop> {
    let (low, _, overflows) = signed(a, b);
    R0::set(cpu, op, low)?;
    set_overflow(cpu.state_mut(), overflows);
    Ok(())
}

fn div<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let divisor = D::get::<W, C>(cpu, op)?.zero_extend();
    let state = cpu.state_mut();
    let low = read_register::<W>(state, RAX).zero_extend();
    let high = read_register::<W>(state, upper::<W>()).zero_extend();
    // The quotient fits exactly if the upper half is below the divisor; of zero it never is.
    if high >= divisor {
        return Err(Exception::DIVIDE.into());
    }
    let (quotient, remainder) = if W::BYTES == 8 && high != 0 {
        let dividend = u128::from(high) << 64 | u128::from(low);
        let divisor = u128::from(divisor);
        ((dividend / divisor) as u64, (dividend % divisor) as u64)
    } else {
        let dividend = if W::BYTES == 8 {
            low
        } else {
            high << W::BITS | low
        };
        (dividend / divisor, dividend % divisor)
    };
    write_register(state, RAX, W::truncate(quotient));
    write_register(state, upper::<W>(), W::truncate(remainder));
    Ok(())
}

fn idiv<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let divisor = D::get::<W, C>(cpu, op)?.sign_extend() as i64;
    let state = cpu.state_mut();
    let low = read_register::<W>(state, RAX).zero_extend();
    let high = read_register::<W>(state, upper::<W>()).sign_extend() as i64;
    let dividend = i128::from(high) << W::BITS | i128::from(low);
    let (quotient, remainder) = divided(dividend, divisor).ok_or(Exception::DIVIDE)?;
    let result = W::truncate(quotient as u64);
    if i128::from(result.sign_extend() as i64) != quotient {
        return Err(Exception::DIVIDE.into());
    }
    write_register(state, RAX, result);
    write_register(state, upper::<W>(), W::truncate(remainder as u64));
    Ok(())
}

/// Divides, in 64 bits where that suffices; nothing comes of a divisor of zero.
#[inline(always)]
fn divided(dividend: i128, divisor: i64) -> Option<(i128, i128)> {
    if let Ok(short) = i64::try_from(dividend)
        && let Some(quotient) = short.checked_div(divisor)
    {
        return Some((quotient.into(), (short % divisor).into()));
    }
    let divisor = i128::from(divisor);
    Some((
        dividend.checked_div(divisor)?,
        dividend.checked_rem(divisor)?,
    ))
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match (instruction.mnemonic(), instruction.op_count()) {
        (Mnemonic::Mul, 1) => by_place!(instruction, mul, C),
        (Mnemonic::Imul, 1) => by_place!(instruction, imul, C),
        (Mnemonic::Imul, 2) => by_source!(instruction, imul_into, C),
        (Mnemonic::Imul, _) => by_source!(instruction, imul_immediate, C),
        (Mnemonic::Div, _) => by_place!(instruction, div, C),
        (Mnemonic::Idiv, _) => by_place!(instruction, idiv, C),
        _ => None,
    }
}

#[cfg(test)]
mod products_and_quotients {
    use super::{divided, signed};

    #[test]
    fn overflow_when_the_upper_half_is_more_than_the_sign() {
        assert_eq!(signed(0xff_u8, 0xff), (1, 0, false));
        assert_eq!(signed(0x80_u8, 0xff), (0x80, 0, true));
        assert_eq!(signed(0x40_u8, 2), (0x80, 0, true));
        assert_eq!(signed(u64::MAX, 5), (5_u64.wrapping_neg(), u64::MAX, false));
        let least = 1_u64 << 63;
        assert_eq!(signed(least, least), (0, 1 << 62, true));
    }

    #[test]
    fn are_the_same_in_64_and_in_128_bits() {
        assert_eq!(divided(-7, 2), Some((-3, -1)));
        assert_eq!(divided(7, -2), Some((-3, 1)));
        assert_eq!(divided(i128::from(i64::MIN), -1), Some((1 << 63, 0)));
        assert_eq!(divided(1 << 100, 1 << 40), Some((1 << 60, 0)));
        assert_eq!(divided(i128::MIN, -1), None);
        assert_eq!(divided(5, 0), None);
    }
}
