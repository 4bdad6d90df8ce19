//! Bits: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT.
//!
//! A bit offset in a register addresses memory as a bit string, up to 2^63 bits away from the operand (AMD APM vol. 3, "BT").

use iced_x86::{Instruction, Mnemonic};

use crate::address;
use crate::cpu::{Access, Cpu, Stop};
use crate::decode::{Form, form};
use crate::flags::Flags;
use crate::op::{Bits, Op, Run};
use crate::operand::{I, M, Operand, R0, R1, update_memory};
use crate::word::Word;

/// What becomes of the bit that was tested.
trait Change {
    const WRITES: bool;
    fn apply(value: u64, bit: u64) -> u64;
}

macro_rules! changes {
    ($($name:ident ($writes:expr) = |$value:ident, $bit:ident| $result:expr;)*) => {$(
        struct $name;
        impl Change for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply($value: u64, $bit: u64) -> u64 {
                $result
            }
        }
    )*};
}
changes! {
    Keep (false) = |value, _bit| value;
    Set (true) = |value, bit| value | bit;
    Reset (true) = |value, bit| value & !bit;
    Complement (true) = |value, bit| value ^ bit;
}

/// Tests and changes a bit of a value; returns the new value and CF.
#[inline(always)]
fn change<W: Word, K: Change>(old: W, number: u64) -> (W, Flags) {
    let bit = 1 << (number & u64::from(W::BITS - 1));
    let old = old.zero_extend();
    let mut carry = Flags::empty();
    carry.set(Flags::CF, old & bit != 0);
    (W::truncate(K::apply(old, bit)), carry)
}

/// The bit number is taken modulo the operand's size: a register operand, or an immediate.
fn test_within<W: Word, D: Operand, S: Operand, K: Change, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let number = S::get::<W, C>(cpu, op)?.zero_extend();
    let carry = if K::WRITES {
        D::update::<W, _, C>(cpu, op, |_, old| change::<W, K>(old, number))?
    } else {
        change::<W, K>(D::get(cpu, op)?, number).1
    };
    cpu.state_mut().flags.replace(Flags::CF, carry);
    Ok(())
}

/// Memory is a bit string, a register the signed offset in it.
fn test_string<W: Word, K: Change, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let number = R0::get::<W, C>(cpu, op)?.sign_extend();
    let words = number as i64 >> W::BITS.trailing_zeros();
    let offset = op
        .offset(cpu.state())
        .wrapping_add(words.wrapping_mul(W::BYTES as i64) as u64);
    let offset = op.truncate(offset);
    let access = if K::WRITES {
        Access::Update
    } else {
        Access::Read
    };
    let at = address::linear(cpu.state(), op.seg, offset, W::BYTES, access)?;
    let carry = if K::WRITES {
        let locked = op.bits.contains(Bits::LOCK);
        update_memory(cpu, at, locked, |_, old| change::<W, K>(old, number))?
    } else {
        change::<W, K>(cpu.load(at, access)?, number).1
    };
    cpu.state_mut().flags.replace(Flags::CF, carry);
    Ok(())
}

/// BSF: of zero the destination stays as it is (AMD APM vol. 3, "BSF").
fn scan_forward<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value = S::get::<W, C>(cpu, op)?.zero_extend();
    scanned::<W, C>(cpu, op, value, value.trailing_zeros())
}

/// BSR.
fn scan_reverse<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value = S::get::<W, C>(cpu, op)?.zero_extend();
    scanned::<W, C>(cpu, op, value, 63u32.wrapping_sub(value.leading_zeros()))
}

#[inline(always)]
fn scanned<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, value: u64, number: u32) -> Result<(), Stop> {
    if value != 0 {
        R0::set(cpu, op, W::truncate(u64::from(number)))?;
    }
    cpu.state_mut().flags.set(Flags::ZF, value == 0);
    Ok(())
}

/// TZCNT.
fn count_trailing<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value = S::get::<W, C>(cpu, op)?.zero_extend();
    counted::<W, C>(cpu, op, value, value.trailing_zeros().min(W::BITS))
}

/// LZCNT.
fn count_leading<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value = S::get::<W, C>(cpu, op)?.zero_extend();
    counted::<W, C>(cpu, op, value, value.leading_zeros() - (64 - W::BITS))
}

#[inline(always)]
fn counted<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, value: u64, count: u32) -> Result<(), Stop> {
    R0::set(cpu, op, W::truncate(u64::from(count)))?;
    let flags = &mut cpu.state_mut().flags;
    flags.set(Flags::CF, value == 0);
    flags.set(Flags::ZF, count == 0);
    Ok(())
}

fn popcnt<W: Word, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let value = S::get::<W, C>(cpu, op)?.zero_extend();
    R0::set(cpu, op, W::truncate(u64::from(value.count_ones())))?;
    let mut flags = Flags::empty();
    flags.set(Flags::ZF, value == 0);
    cpu.state_mut().flags.replace(Flags::ARITHMETIC, flags);
    Ok(())
}

fn select_test<K: Change, C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match form(instruction)? {
        (Form::RegReg, size) => by_wide_size!(size, test_within, (R0, R1, K), C),
        (Form::RegImm, size) => by_wide_size!(size, test_within, (R0, I, K), C),
        (Form::MemImm, size) => by_wide_size!(size, test_within, (M, I, K), C),
        (Form::MemReg, size) => by_wide_size!(size, test_string, (K), C),
        _ => None,
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Bt => select_test::<Keep, C>(instruction),
        Mnemonic::Bts => select_test::<Set, C>(instruction),
        Mnemonic::Btr => select_test::<Reset, C>(instruction),
        Mnemonic::Btc => select_test::<Complement, C>(instruction),
        Mnemonic::Bsf => by_source!(instruction, scan_forward, C),
        Mnemonic::Bsr => by_source!(instruction, scan_reverse, C),
        Mnemonic::Tzcnt => by_source!(instruction, count_trailing, C),
        Mnemonic::Lzcnt => by_source!(instruction, count_leading, C),
        Mnemonic::Popcnt => by_source!(instruction, popcnt, C),
        _ => None,
    }
}

#[cfg(test)]
mod tested_bits {
    use super::{Complement, Flags, Keep, Reset, Set, change};

    #[test]
    fn are_numbered_modulo_the_operand() {
        assert_eq!(change::<u16, Set>(0, 33), (2, Flags::empty()));
        assert_eq!(
            change::<u64, Reset>(u64::MAX, 127),
            (u64::MAX >> 1, Flags::CF)
        );
        assert_eq!(change::<u32, Complement>(1, 32), (0, Flags::CF));
        assert_eq!(change::<u32, Keep>(4, 2), (4, Flags::CF));
    }
}
