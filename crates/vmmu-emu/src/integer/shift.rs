//! Shifts and rotations: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! Counts are taken modulo 32, or 64 for 64-bit operands; a count of 0 changes no flag (AMD APM vol. 3, "SAL"). OF is defined for a count of 1;
//! for others the value is what the same formula gives.

use iced_x86::{Instruction, Mnemonic};

use crate::arith;
use crate::cpu::{Cpu, Stop};
use crate::decode::{Form, form};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::operand::{I, M, Operand, R0, R1, read_register};
use crate::state::Gpr;
use crate::word::Word;

/// A shift or rotation by a count that is not 0, and the flags that it sets.
trait Shift {
    const SETS: Flags;
    fn apply<W: Word>(value: W, count: u32, flags: Flags) -> (W, Flags);
}

const ROTATION: Flags = Flags::CF.union(Flags::OF);

/// Returns CF and OF.
#[inline(always)]
fn carry_and_overflow(carry: u64, overflow: u64) -> Flags {
    Flags::from_bits_retain(carry & 1 | (overflow & 1) << 11)
}

#[inline(always)]
fn top<W: Word>(value: W) -> u64 {
    value.zero_extend() >> (W::BITS - 1)
}

struct Shl;
impl Shift for Shl {
    const SETS: Flags = Flags::ARITHMETIC;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, _: Flags) -> (W, Flags) {
        // One bit less at first: what leaves is then the top one. Bytes and words: counts up to 31 fit in 64 bits.
        let almost = value.zero_extend() << (count - 1);
        let result = W::truncate(almost << 1);
        let carry = almost >> (W::BITS - 1);
        let flags = carry_and_overflow(carry, carry ^ top(result));
        (result, arith::of_result(result) | flags)
    }
}

struct Shr;
impl Shift for Shr {
    const SETS: Flags = Flags::ARITHMETIC;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, _: Flags) -> (W, Flags) {
        let almost = value.zero_extend() >> (count - 1);
        let result = W::truncate(almost >> 1);
        let flags = carry_and_overflow(almost, top(value));
        (result, arith::of_result(result) | flags)
    }
}

struct Sar;
impl Shift for Sar {
    const SETS: Flags = Flags::ARITHMETIC;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, _: Flags) -> (W, Flags) {
        let almost = value.sign_extend() as i64 >> (count - 1);
        let result = W::truncate((almost >> 1) as u64);
        let flags = carry_and_overflow(almost as u64, 0);
        (result, arith::of_result(result) | flags)
    }
}

struct Rol;
impl Shift for Rol {
    const SETS: Flags = ROTATION;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, _: Flags) -> (W, Flags) {
        let result = rotated_left(value, count % W::BITS);
        let carry = result.zero_extend();
        (result, carry_and_overflow(carry, carry ^ top(result)))
    }
}

struct Ror;
impl Shift for Ror {
    const SETS: Flags = ROTATION;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, _: Flags) -> (W, Flags) {
        let result = rotated_left(value, (W::BITS - count % W::BITS) % W::BITS);
        let below = result.zero_extend() >> (W::BITS - 2);
        let carry = top(result);
        (result, carry_and_overflow(carry, carry ^ below))
    }
}

#[inline(always)]
fn rotated_left<W: Word>(value: W, count: u32) -> W {
    let value = value.zero_extend();
    let wrapped = (value >> 1) >> (W::BITS - 1 - count);
    W::truncate(value << count | wrapped)
}

struct Rcl;
impl Shift for Rcl {
    const SETS: Flags = ROTATION;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, flags: Flags) -> (W, Flags) {
        let (result, carry) = rotated_through(value, count % (W::BITS + 1), flags);
        (result, carry_and_overflow(carry, carry ^ top(result)))
    }
}

struct Rcr;
impl Shift for Rcr {
    const SETS: Flags = ROTATION;
    #[inline(always)]
    fn apply<W: Word>(value: W, count: u32, flags: Flags) -> (W, Flags) {
        let count = W::BITS + 1 - count % (W::BITS + 1);
        let (result, carry) = rotated_through(value, count % (W::BITS + 1), flags);
        let below = result.zero_extend() >> (W::BITS - 2);
        (result, carry_and_overflow(carry, top(result) ^ below))
    }
}

/// Rotates the value with the carry above it to the left; returns both.
#[inline(always)]
fn rotated_through<W: Word>(value: W, count: u32, flags: Flags) -> (W, u64) {
    let carry = u128::from(flags.contains(Flags::CF));
    let joined = carry << W::BITS | u128::from(value.zero_extend());
    let rotated = joined << count | joined >> (W::BITS + 1 - count);
    (W::truncate(rotated as u64), (rotated >> W::BITS) as u64 & 1)
}

/// Returns the bits of a count that matter.
#[inline(always)]
fn masked<W: Word>(count: u8) -> u32 {
    u32::from(count) & if W::BYTES == 8 { 63 } else { 31 }
}

fn shift<W: Word, D: Operand, S: Operand, K: Shift, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let count = masked::<W>(S::get(cpu, op)?);
    let flags = D::update::<W, _, C>(cpu, op, |state, old| {
        if count == 0 {
            (old, state.flags & K::SETS)
        } else {
            K::apply(old, count, state.flags)
        }
    })?;
    cpu.state_mut().flags.replace(K::SETS, flags);
    Ok(())
}

/// A shift that fills with another register's bits; the carry is the lowest bit of the second result.
trait Double {
    fn apply<W: Word>(value: W, filler: W, count: u32) -> (W, u64);
}

struct Left;
impl Double for Left {
    #[inline(always)]
    fn apply<W: Word>(value: W, filler: W, count: u32) -> (W, u64) {
        let joined = u128::from(value.zero_extend()) << W::BITS | u128::from(filler.zero_extend());
        let carry = (joined << (count - 1)) >> (2 * W::BITS - 1);
        let result = W::truncate((joined << count >> W::BITS) as u64);
        (result, carry as u64)
    }
}

struct Right;
impl Double for Right {
    #[inline(always)]
    fn apply<W: Word>(value: W, filler: W, count: u32) -> (W, u64) {
        let joined = u128::from(filler.zero_extend()) << W::BITS | u128::from(value.zero_extend());
        let almost = (joined >> (count - 1)) as u64;
        (W::truncate((joined >> count) as u64), almost)
    }
}

/// SHLD and SHRD. Of a 16-bit operand and a count above 16 result and flags are undefined.
fn shift_double<W: Word, D: Operand, S: Operand, K: Double, N: Count, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let filler: W = S::get(cpu, op)?;
    let count = masked::<W>(N::get(cpu, op));
    let flags = D::update::<W, _, C>(cpu, op, |state, old| {
        if count == 0 {
            return (old, state.flags & Flags::ARITHMETIC);
        }
        let (result, carry) = K::apply(old, filler, count);
        let flags = carry_and_overflow(carry, top(old) ^ top(result));
        (result, arith::of_result(result) | flags)
    })?;
    cpu.state_mut().flags.replace(Flags::ARITHMETIC, flags);
    Ok(())
}

/// Where SHLD and SHRD find their count.
trait Count {
    fn get<C: Cpu>(cpu: &C, op: &Op<C>) -> u8;
}

struct Immediate;
impl Count for Immediate {
    #[inline(always)]
    fn get<C: Cpu>(_: &C, op: &Op<C>) -> u8 {
        op.imm as u8
    }
}

struct Cl;
impl Count for Cl {
    #[inline(always)]
    fn get<C: Cpu>(cpu: &C, _: &Op<C>) -> u8 {
        read_register(cpu.state(), Gpr::RCX.number())
    }
}

/// Chooses an instance by place and size of the shifted operand and place of the count.
macro_rules! by_count {
    ($instruction:expr, $cpu:ident, $kind:ty) => {
        match form($instruction) {
            Some((Form::RegReg, size)) => by_size!(size, shift, (R0, R1, $kind), $cpu),
            Some((Form::MemReg, size)) => by_size!(size, shift, (M, R0, $kind), $cpu),
            Some((Form::RegImm, size)) => by_size!(size, shift, (R0, I, $kind), $cpu),
            Some((Form::MemImm, size)) => by_size!(size, shift, (M, I, $kind), $cpu),
            _ => None,
        }
    };
}

fn select_double<K: Double, C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let by_cl = instruction.op2_kind() == iced_x86::OpKind::Register;
    match (form(instruction)?, by_cl) {
        ((Form::RegReg, size), true) => by_wide_size!(size, shift_double, (R0, R1, K, Cl), C),
        ((Form::MemReg, size), true) => by_wide_size!(size, shift_double, (M, R0, K, Cl), C),
        ((Form::RegReg, size), false) => {
            by_wide_size!(size, shift_double, (R0, R1, K, Immediate), C)
        }
        ((Form::MemReg, size), false) => {
            by_wide_size!(size, shift_double, (M, R0, K, Immediate), C)
        }
        _ => None,
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => by_count!(instruction, C, Shl),
        Mnemonic::Shr => by_count!(instruction, C, Shr),
        Mnemonic::Sar => by_count!(instruction, C, Sar),
        Mnemonic::Rol => by_count!(instruction, C, Rol),
        Mnemonic::Ror => by_count!(instruction, C, Ror),
        Mnemonic::Rcl => by_count!(instruction, C, Rcl),
        Mnemonic::Rcr => by_count!(instruction, C, Rcr),
        Mnemonic::Shld => select_double::<Left, C>(instruction),
        Mnemonic::Shrd => select_double::<Right, C>(instruction),
        _ => None,
    }
}

#[cfg(test)]
mod shifted_values {
    use super::{Double, Flags, Left, Rcl, Rcr, Right, Rol, Ror, Sar, Shift, Shl, Shr};

    const NONE: Flags = Flags::empty();
    const CF: Flags = Flags::CF;

    #[test]
    fn leave_their_last_bit_in_the_carry() {
        assert_eq!(Shl::apply(0x81_u8, 1, NONE).0, 2);
        assert!(Shl::apply(0x81_u8, 1, NONE).1.contains(CF | Flags::OF));
        assert!(Shl::apply(1_u8, 8, NONE).1.contains(CF | Flags::ZF));
        assert!(!Shl::apply(1_u8, 9, NONE).1.contains(CF));
        assert!(Shl::apply(1_u64 << 1, 63, NONE).1.contains(CF));
        assert!(Shr::apply(0x80_u8, 8, NONE).1.contains(CF | Flags::ZF));
        assert_eq!(Sar::apply(0x80_u8, 31, NONE).0, 0xff);
        assert!(Sar::apply(0x80_u8, 31, NONE).1.contains(CF));
    }

    #[test]
    fn come_round_when_rotated() {
        assert_eq!(Rol::apply(0x81_u8, 9, NONE), (3, CF | Flags::OF));
        assert_eq!(Ror::apply(1_u16, 17, NONE), (0x8000, CF | Flags::OF));
        assert_eq!(Rol::apply(0xf0_u64, 64, NONE).0, 0xf0);
    }

    #[test]
    fn rotate_through_the_carry_as_one_bit_more() {
        assert_eq!(Rcl::apply(0x80_u8, 1, CF).0, 1);
        assert!(Rcl::apply(0x80_u8, 1, CF).1.contains(CF));
        for count in 0..32 {
            let (there, flags) = Rcl::apply(0x5a_u8, count, CF);
            assert_eq!(Rcr::apply(there, count, flags).0, 0x5a);
        }
        // Nine bits make a full turn.
        assert_eq!(Rcr::apply(0x5a_u8, 9, CF).0, 0x5a);
        assert_eq!(Rcr::apply(1_u64, 1, NONE), (0, CF));
    }

    #[test]
    fn are_filled_from_the_other_operand() {
        let carry = |(result, carry)| (result, carry & 1);
        assert_eq!(carry(Left::apply(1_u64, u64::MAX, 4)), (0x1f, 0));
        assert_eq!(carry(Left::apply(u64::MAX << 63, 0, 1)), (0, 1));
        let (left, right) = (0x1234_5678_u32, 0x9abc_def0);
        assert_eq!(Left::apply(left, right, 8).0, 0x3456_789a);
        assert_eq!(Right::apply(left, right, 8).0, 0xf012_3456);
        assert_eq!(Right::apply(0x80_u32, 0, 8).1 & 1, 1);
        assert_eq!(Left::apply(1_u16, 0x8000, 16).0, 0x8000);
    }
}
