//! Integer arithmetic, comparisons and logic, lane by lane (AMD APM vol. 1, sections 4.6 and 5.6).

use iced_x86::{Instruction, Mnemonic};

use super::bank::{Bank, Binary, binary, by_bank};
use super::lane::{Lane, mask8, mask16, mask32};
use crate::cpu::Cpu;
use crate::op::Run;

/// Declares operations on lanes, named like the instruction, and the function that finds them.
macro_rules! lanewise {
    ($select:ident: $($name:ident: $lane:ty, |$a:ident, $b:ident| $result:expr;)*) => {
        $(
            struct $name;
            impl $name {
                // Not generic, so that it is compiled here, once, and not with each embedder.
                fn of(a: u128, b: u128) -> u128 {
                    <$lane>::zip(a, b, |$a, $b| $result)
                }
            }
            impl Binary for $name {
                #[inline(always)]
                fn apply<B: Bank>(a: u128, b: u128) -> u128 {
                    Self::of(a, b)
                }
            }
        )*
        fn $select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
            match instruction.mnemonic() {
                $(Mnemonic::$name => by_bank!(instruction, binary, C, $name),)*
                _ => None,
            }
        }
    };
}

/// Takes a signed function to unsigned lanes.
macro_rules! signed {
    ($signed:ty as $unsigned:ty, $f:ident, $a:expr, $b:expr) => {
        ($a as $signed).$f($b as $signed) as $unsigned
    };
}

lanewise! { select_arithmetic:
    Paddb: u8, |a, b| a.wrapping_add(b);
    Paddw: u16, |a, b| a.wrapping_add(b);
    Paddd: u32, |a, b| a.wrapping_add(b);
    Paddq: u64, |a, b| a.wrapping_add(b);
    Psubb: u8, |a, b| a.wrapping_sub(b);
    Psubw: u16, |a, b| a.wrapping_sub(b);
    Psubd: u32, |a, b| a.wrapping_sub(b);
    Psubq: u64, |a, b| a.wrapping_sub(b);
    Paddusb: u8, |a, b| a.saturating_add(b);
    Paddusw: u16, |a, b| a.saturating_add(b);
    Psubusb: u8, |a, b| a.saturating_sub(b);
    Psubusw: u16, |a, b| a.saturating_sub(b);
    Paddsb: u8, |a, b| signed!(i8 as u8, saturating_add, a, b);
    Paddsw: u16, |a, b| signed!(i16 as u16, saturating_add, a, b);
    Psubsb: u8, |a, b| signed!(i8 as u8, saturating_sub, a, b);
    Psubsw: u16, |a, b| signed!(i16 as u16, saturating_sub, a, b);
    Pmaxub: u8, |a, b| a.max(b);
    Pminub: u8, |a, b| a.min(b);
    Pmaxsw: u16, |a, b| signed!(i16 as u16, max, a, b);
    Pminsw: u16, |a, b| signed!(i16 as u16, min, a, b);
    Pavgb: u8, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8;
    Pavgw: u16, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16;
    Pmullw: u16, |a, b| a.wrapping_mul(b);
    Pmulhw: u16, |a, b| (product(a, b) >> 16) as u16;
    Pmulhuw: u16, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16;
    Pmulhrsw: u16, |a, b| (((product(a, b) >> 14) + 1) >> 1) as u16;
    Pmuludq: u64, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff);
    Pmaddwd: u32, |a, b| product(a as u16, b as u16)
        .wrapping_add(product((a >> 16) as u16, (b >> 16) as u16)) as u32;
    Pmaddubsw: u16, |a, b| mixed_product(a as u8, b as u8)
        .saturating_add(mixed_product((a >> 8) as u8, (b >> 8) as u8)) as u16;
    Psadbw: u64, |a, b| differences(a, b);
    Psignb: u8, |a, b| ((a as i8).wrapping_mul((b as i8).signum())) as u8;
    Psignw: u16, |a, b| ((a as i16).wrapping_mul((b as i16).signum())) as u16;
    Psignd: u32, |a, b| ((a as i32).wrapping_mul((b as i32).signum())) as u32;
    Pabsb: u8, |_a, b| (b as i8).unsigned_abs();
    Pabsw: u16, |_a, b| (b as i16).unsigned_abs();
    Pabsd: u32, |_a, b| (b as i32).unsigned_abs();
}

lanewise! { select_comparison:
    Pcmpeqb: u64, |a, b| equal_bytes(a, b);
    Pcmpeqw: u16, |a, b| mask16(a == b);
    Pcmpeqd: u32, |a, b| mask32(a == b);
    Pcmpgtb: u8, |a, b| mask8(a as i8 > b as i8);
    Pcmpgtw: u16, |a, b| mask16(a as i16 > b as i16);
    Pcmpgtd: u32, |a, b| mask32(a as i32 > b as i32);
}

lanewise! { select_logic:
    Pand: u64, |a, b| a & b;
    Andps: u64, |a, b| a & b;
    Andpd: u64, |a, b| a & b;
    Pandn: u64, |a, b| !a & b;
    Andnps: u64, |a, b| !a & b;
    Andnpd: u64, |a, b| !a & b;
    Por: u64, |a, b| a | b;
    Orps: u64, |a, b| a | b;
    Orpd: u64, |a, b| a | b;
    Pxor: u64, |a, b| a ^ b;
    Xorps: u64, |a, b| a ^ b;
    Xorpd: u64, |a, b| a ^ b;
}

/// Returns a byte of ones for each byte in which two words are equal: what string functions do most, so in a few steps.
#[inline(always)]
const fn equal_bytes(a: u64, b: u64) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let different = a ^ b;
    // The top bit of each byte that is zero.
    let zeros = !(((different & LOW) + LOW) | different | LOW);
    (zeros << 1).wrapping_sub(zeros >> 7)
}

#[inline(always)]
fn product(a: u16, b: u16) -> i32 {
    i32::from(a as i16) * i32::from(b as i16)
}

#[inline(always)]
fn mixed_product(a: u8, b: u8) -> i16 {
    i16::from(a).wrapping_mul(i16::from(b as i8))
}

#[inline(always)]
fn differences(a: u64, b: u64) -> u64 {
    let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    pairs.map(|(a, b)| u64::from(a.abs_diff(b))).sum()
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    select_arithmetic(instruction)
        .or_else(|| select_comparison(instruction))
        .or_else(|| select_logic(instruction))
}
