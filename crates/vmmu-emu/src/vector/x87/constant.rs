//! FLD1, FLDZ and the other constants, rounded as FCW says (AMD APM vol. 1, section 6.4.4).

use iced_x86::{Instruction, Mnemonic};

use super::complete;
use crate::cpu::{Cpu, Stop};
use crate::float::round::round;
use crate::float::{Number, Target};
use crate::fpu::Extended;
use crate::op::{Op, Run};
use crate::vector::guard;

/// A constant: 128 bits of significand, the top one set, and the exponent.
trait Constant {
    const SIGNIFICAND: u128;
    const EXPONENT: i32;
}

macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident: $significand:literal, $exponent:literal;)*) => {$(
        $(#[$doc])*
        struct $name;
        impl Constant for $name {
            const SIGNIFICAND: u128 = $significand;
            const EXPONENT: i32 = $exponent;
        }
    )*};
}
constants! {
    One: 0x8000_0000_0000_0000_0000_0000_0000_0000, 0;
    /// log2(10).
    Log2Ten: 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c, 1;
    /// log2(e).
    Log2E: 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88, 0;
    Pi: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1, 1;
    /// log10(2).
    Log10Two: 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178, -2;
    /// ln(2).
    LnTwo: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af, -1;
}

fn load<K: Constant, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    let mut env = fpu.env();
    let value = round(
        &mut env,
        false,
        K::EXPONENT,
        K::SIGNIFICAND,
        &Target::EXTENDED,
    );
    fpu.raise(0);
    fpu.push(Extended::pack(&value));
    complete(cpu, op, false);
    Ok(())
}

fn load_zero<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    guard::x87(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.raise(0);
    fpu.push(Extended::pack(&Number::zero(false)));
    complete(cpu, op, false);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fld1 => load::<One, C>,
        Mnemonic::Fldl2t => load::<Log2Ten, C>,
        Mnemonic::Fldl2e => load::<Log2E, C>,
        Mnemonic::Fldpi => load::<Pi, C>,
        Mnemonic::Fldlg2 => load::<Log10Two, C>,
        Mnemonic::Fldln2 => load::<LnTwo, C>,
        Mnemonic::Fldz => load_zero,
        _ => return None,
    })
}
