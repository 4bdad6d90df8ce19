//! Sums and differences of neighbouring lanes: SSSE3's PHADDW and its kin (AMD APM vol. 4).

use iced_x86::{Instruction, Mnemonic};

use super::bank::{Bank, Binary, binary, by_bank};
use super::lane::Lane;
use crate::cpu::Cpu;
use crate::op::Run;

/// Returns the lanes of both operands whose number in their pair is `which`: the first operand's below.
#[inline(always)]
fn every_second<L: Lane>(a: u128, b: u128, pairs: usize, which: usize) -> u128 {
    L::collect(|i| {
        let from = if i < pairs { a } else { b };
        L::of(from, 2 * (i % pairs) + which)
    })
}

macro_rules! horizontal {
    ($($name:ident: $lane:ty, |$a:ident, $b:ident| $result:expr;)*) => {
        $(
            struct $name;
            impl $name {
                fn of(a: u128, b: u128, bytes: usize) -> u128 {
                    let pairs = bytes / size_of::<$lane>() / 2;
                    let first = every_second::<$lane>(a, b, pairs, 0);
                    let second = every_second::<$lane>(a, b, pairs, 1);
                    <$lane>::zip(first, second, |$a, $b| $result)
                }
            }
            impl Binary for $name {
                #[inline(always)]
                fn apply<B: Bank>(a: u128, b: u128) -> u128 {
                    Self::of(a, b, B::BYTES)
                }
            }
        )*
        /// Finds the function of an instruction of this family.
        pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
            match instruction.mnemonic() {
                $(Mnemonic::$name => by_bank!(instruction, binary, C, $name),)*
                _ => None,
            }
        }
    };
}
horizontal! {
    Phaddw: u16, |a, b| a.wrapping_add(b);
    Phaddd: u32, |a, b| a.wrapping_add(b);
    Phaddsw: u16, |a, b| (a as i16).saturating_add(b as i16) as u16;
    Phsubw: u16, |a, b| a.wrapping_sub(b);
    Phsubd: u32, |a, b| a.wrapping_sub(b);
    Phsubsw: u16, |a, b| (a as i16).saturating_sub(b as i16) as u16;
}
