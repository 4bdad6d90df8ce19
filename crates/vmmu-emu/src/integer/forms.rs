//! How a family's `select` names one of a generic function's instances.
//!
//! [`by_size`], [`by_place`], [`by_form`] and [`by_condition`] turn what is known when an instruction is decoded (the size of its operands, where they
//! are, its condition) into type parameters, so that nothing of it is asked when the instruction runs.

/// Chooses by operand size: `function::<W, kinds..., C>`.
macro_rules! by_size {
    ($size:expr, $function:ident, ($($kind:ty),*), $cpu:ident) => {
        match $size {
            1 => Some($function::<u8, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            2 => Some($function::<u16, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            4 => Some($function::<u32, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            8 => Some($function::<u64, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            _ => None,
        }
    };
}

/// Chooses by operand size among those larger than a byte.
macro_rules! by_wide_size {
    ($size:expr, $function:ident, ($($kind:ty),*), $cpu:ident) => {
        match $size {
            2 => Some($function::<u16, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            4 => Some($function::<u32, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            8 => Some($function::<u64, $($kind,)* $cpu> as $crate::op::Run<$cpu>),
            _ => None,
        }
    };
}

/// Chooses by the place and size of a single operand, or of the only one that matters: `function::<W, D, kinds..., C>`.
macro_rules! by_place {
    ($instruction:expr, $function:ident, $cpu:ident $(, $kind:ty)*) => {{
        use $crate::decode::{Form, form};
        use $crate::operand::{M, R0};
        match form($instruction) {
            Some((Form::Reg | Form::RegReg | Form::RegImm, size)) => {
                by_size!(size, $function, (R0 $(, $kind)*), $cpu)
            }
            Some((Form::Mem | Form::MemReg | Form::MemImm, size)) => {
                by_size!(size, $function, (M $(, $kind)*), $cpu)
            }
            _ => None,
        }
    }};
}

/// Chooses by the places of two operands and the size of the first: `function::<W, D, S, kinds..., C>`.
macro_rules! by_form {
    ($instruction:expr, $function:ident, $cpu:ident $(, $kind:ty)*) => {{
        use $crate::decode::{Form, form};
        use $crate::operand::{I, M, R0, R1};
        match form($instruction) {
            Some((Form::RegReg, size)) => by_size!(size, $function, (R0, R1 $(, $kind)*), $cpu),
            Some((Form::RegMem, size)) => by_size!(size, $function, (R0, M $(, $kind)*), $cpu),
            Some((Form::MemReg, size)) => by_size!(size, $function, (M, R0 $(, $kind)*), $cpu),
            Some((Form::RegImm, size)) => by_size!(size, $function, (R0, I $(, $kind)*), $cpu),
            Some((Form::MemImm, size)) => by_size!(size, $function, (M, I $(, $kind)*), $cpu),
            _ => None,
        }
    }};
}

/// Chooses the place of a register destination's source: `function::<W, S, kinds..., C>` with S the second register or memory.
macro_rules! by_source {
    ($instruction:expr, $function:ident, $cpu:ident $(, $kind:ty)*) => {{
        use $crate::decode::{Form, form};
        use $crate::operand::{M, R1};
        match form($instruction) {
            Some((Form::RegReg, size)) => by_wide_size!(size, $function, (R1 $(, $kind)*), $cpu),
            Some((Form::RegMem, size)) => by_wide_size!(size, $function, (M $(, $kind)*), $cpu),
            _ => None,
        }
    }};
}

/// Chooses by the condition code: `function::<CONDITION, kinds..., C>`.
macro_rules! by_condition {
    ($instruction:expr, $function:ident, ($($kind:ty),*), $cpu:ident) => {{
        use $crate::op::Run;
        match ($instruction.condition_code() as u8).wrapping_sub(1) {
            0 => Some($function::<0, $($kind,)* $cpu> as Run<$cpu>),
            1 => Some($function::<1, $($kind,)* $cpu> as Run<$cpu>),
            2 => Some($function::<2, $($kind,)* $cpu> as Run<$cpu>),
            3 => Some($function::<3, $($kind,)* $cpu> as Run<$cpu>),
            4 => Some($function::<4, $($kind,)* $cpu> as Run<$cpu>),
            5 => Some($function::<5, $($kind,)* $cpu> as Run<$cpu>),
            6 => Some($function::<6, $($kind,)* $cpu> as Run<$cpu>),
            7 => Some($function::<7, $($kind,)* $cpu> as Run<$cpu>),
            8 => Some($function::<8, $($kind,)* $cpu> as Run<$cpu>),
            9 => Some($function::<9, $($kind,)* $cpu> as Run<$cpu>),
            10 => Some($function::<10, $($kind,)* $cpu> as Run<$cpu>),
            11 => Some($function::<11, $($kind,)* $cpu> as Run<$cpu>),
            12 => Some($function::<12, $($kind,)* $cpu> as Run<$cpu>),
            13 => Some($function::<13, $($kind,)* $cpu> as Run<$cpu>),
            14 => Some($function::<14, $($kind,)* $cpu> as Run<$cpu>),
            15 => Some($function::<15, $($kind,)* $cpu> as Run<$cpu>),
            _ => None,
        }
    }};
}
