//! The second operand of arithmetic and comparisons.
//!
//! Key trait: [`Second`], of [`St`], [`M32`], [`M64`], [`I16`] and [`I32`].

use crate::cpu::{Cpu, Stop};
use crate::float::{Double, Format, Number, Single, Target, integer};
use crate::op::Op;
use crate::operand::{M, Operand};

/// A second operand.
pub(super) trait Second {
    /// It is in memory.
    const MEMORY: bool;
    /// Reads it; `None` is an empty register.
    fn get<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<Option<Number>, Stop>;
}

/// The op's second register.
pub(super) struct St;
impl Second for St {
    const MEMORY: bool = false;
    #[inline(always)]
    fn get<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<Option<Number>, Stop> {
        Ok(cpu.state().fpu.number(op.rm & 7))
    }
}

macro_rules! in_memory {
    ($($(#[$doc:meta])* $name:ident: $word:ty, |$value:ident| $number:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;
        impl Second for $name {
            const MEMORY: bool = true;
            #[inline(never)]
            fn get<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<Option<Number>, Stop> {
                let $value: $word = M::get(cpu, op)?;
                Ok(Some($number))
            }
        }
    )*};
}
in_memory! {
    /// 32 bits, floating-point.
    M32: u32, |value| Single::unpack(value.into());
    /// 64 bits, floating-point.
    M64: u64, |value| Double::unpack(value);
    /// An integer of 16 bits.
    I16: u16, |value| exact((value as i16).into());
    /// An integer of 32 bits.
    I32: u32, |value| exact((value as i32).into());
    /// An integer of 64 bits.
    I64: u64, |value| exact(value as i64);
}

/// Converts an integer: 64 bits of significand hold it.
pub(super) fn exact(value: i64) -> Number {
    let mut env = crate::float::Env::x87(crate::fpu::Fpu::INITIAL_CONTROL);
    integer::from_integer(&mut env, value, &Target::EXTENDED)
}

/// Chooses an instance by the second operand.
macro_rules! by_second {
    ($instruction:expr, $function:ident, $cpu:ident $(, $kind:ty)*) => {{
        use iced_x86::MemorySize;
        use $crate::vector::x87::second::{I16, I32, M32, M64, St};
        match $instruction.memory_size() {
            MemorySize::Unknown => Some($function::<St, $($kind,)* $cpu> as Run<$cpu>),
            MemorySize::Float32 => Some($function::<M32, $($kind,)* $cpu> as Run<$cpu>),
            MemorySize::Float64 => Some($function::<M64, $($kind,)* $cpu> as Run<$cpu>),
            MemorySize::Int16 => Some($function::<I16, $($kind,)* $cpu> as Run<$cpu>),
            MemorySize::Int32 => Some($function::<I32, $($kind,)* $cpu> as Run<$cpu>),
            _ => None,
        }
    }};
}
pub(super) use by_second;
