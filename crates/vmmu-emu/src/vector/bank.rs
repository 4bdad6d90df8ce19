//! Vector registers and operands as types, so that each instruction's function is specialised for both.
//!
//! Key traits: [`Bank`], of [`Xmm`] and [`Mmx`]; [`Source`], of [`Reg`] (the op's second register), [`Mem`] and [`Imm`].
//!
//! Invariants:
//! 1. A vector is a `u128`, little-endian: lane 0 is lowest. The upper half of an MMX operand's is zero or ignored.
//! 2. A 16-byte memory operand is aligned, or #GP is raised, except in instructions whose name says otherwise (AMD APM vol. 1, section 4.5).

use super::guard;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::op::Op;
use crate::state::State;

/// A bank of vector registers.
pub(crate) trait Bank {
    /// A register's size.
    const BYTES: usize;
    /// Checks that the instruction may execute.
    fn guard<C: Cpu>(cpu: &C) -> Result<(), Stop>;
    /// Returns a register.
    fn read(state: &State, number: u8) -> u128;
    /// Replaces a register.
    fn write(state: &mut State, number: u8, value: u128);
    /// Notes that an instruction of this bank completed.
    fn used(state: &mut State);
    /// Loads a memory operand.
    fn load<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop>;
}

/// The 16-byte registers of SSE.
pub(crate) struct Xmm;

impl Bank for Xmm {
    const BYTES: usize = 16;
    #[inline(always)]
    fn guard<C: Cpu>(cpu: &C) -> Result<(), Stop> {
        guard::sse(cpu)
    }
    #[inline(always)]
    fn read(state: &State, number: u8) -> u128 {
        state.fpu.xmm[(number & 15) as usize]
    }
    #[inline(always)]
    fn write(state: &mut State, number: u8, value: u128) {
        state.fpu.xmm[(number & 15) as usize] = value;
    }
    #[inline(always)]
    fn used(_: &mut State) {}
    // Not inlined: it is the larger part of hundreds of functions that each embedder compiles.
    #[inline(never)]
    fn load<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        let at = aligned(cpu, op, Access::Read)?;
        cpu.load_vector(at, Access::Read)
    }
}

/// The 8-byte registers of MMX: the significands of the x87 registers.
pub(crate) struct Mmx;

impl Bank for Mmx {
    const BYTES: usize = 8;
    #[inline(always)]
    fn guard<C: Cpu>(cpu: &C) -> Result<(), Stop> {
        guard::mmx(cpu)
    }
    #[inline(always)]
    fn read(state: &State, number: u8) -> u128 {
        u128::from(state.fpu.registers[(number & 7) as usize].significand)
    }
    #[inline(always)]
    fn write(state: &mut State, number: u8, value: u128) {
        let register = &mut state.fpu.registers[(number & 7) as usize];
        register.significand = value as u64;
        register.sign_exponent = 0xffff;
        Self::used(state);
    }
    /// Every MMX instruction but EMMS clears TOP and fills all registers (AMD APM vol. 1, section 5.12).
    #[inline(always)]
    fn used(state: &mut State) {
        state.fpu.set_top(0);
        state.fpu.in_use = 0xff;
    }
    #[inline(always)]
    fn load<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        load_low::<8, C>(cpu, op)
    }
}

/// Returns the address of a 16-byte operand that must be aligned.
#[inline(always)]
pub(crate) fn aligned<C: Cpu>(cpu: &C, op: &Op<C>, access: Access) -> Result<u64, Stop> {
    let at = op.linear(cpu, 16, access)?;
    if at.is_multiple_of(16) {
        Ok(at)
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Loads 4 or 8 bytes, which need no alignment. Not inlined, as [`Xmm::load`].
#[inline(never)]
fn load_low<const BYTES: usize, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
    let at = op.linear(cpu, BYTES, Access::Read)?;
    Ok(if BYTES == 4 {
        u128::from(cpu.load::<u32>(at, Access::Read)?)
    } else {
        u128::from(cpu.load::<u64>(at, Access::Read)?)
    })
}

/// Where an instruction's last operand is.
pub(crate) trait Source {
    /// Reads it.
    fn get<B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop>;
    /// Reads the low `BYTES` of it: 4 or 8, which need no alignment.
    fn get_low<const BYTES: usize, B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop>;
}

/// The second register.
pub(crate) struct Reg;
impl Source for Reg {
    #[inline(always)]
    fn get<B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        Ok(B::read(cpu.state(), op.rm))
    }
    #[inline(always)]
    fn get_low<const BYTES: usize, B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        Self::get::<B, C>(cpu, op)
    }
}

/// Memory.
pub(crate) struct Mem;
impl Source for Mem {
    #[inline(always)]
    fn get<B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        B::load(cpu, op)
    }
    #[inline(always)]
    fn get_low<const BYTES: usize, B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        load_low::<BYTES, C>(cpu, op)
    }
}

/// The immediate byte.
pub(crate) struct Imm;
impl Source for Imm {
    #[inline(always)]
    fn get<B: Bank, C: Cpu>(_: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        Ok(u128::from(op.imm & 0xff))
    }
    #[inline(always)]
    fn get_low<const BYTES: usize, B: Bank, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<u128, Stop> {
        Self::get::<B, C>(cpu, op)
    }
}

/// A function of two vectors; the first is replaced by the result.
pub(crate) trait Binary {
    /// Computes it.
    fn apply<B: Bank>(a: u128, b: u128) -> u128;
}

/// Executes a [`Binary`].
pub(crate) fn binary<B: Bank, S: Source, O: Binary, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    B::guard(cpu)?;
    let b = S::get::<B, C>(cpu, op)?;
    let state = cpu.state_mut();
    let a = B::read(state, op.reg);
    B::write(state, op.reg, O::apply::<B>(a, b));
    Ok(())
}

/// Chooses an instance by the bank of the first operand and the place of the second.
macro_rules! by_bank {
    ($instruction:expr, $function:ident, $cpu:ident, $operation:ident) => {{
        use iced_x86::OpKind;
        use $crate::vector::bank::{Mem, Mmx, Reg, Xmm};
        let is_xmm = $instruction.op0_register().is_xmm();
        match ($instruction.op1_kind(), is_xmm) {
            _ if !is_xmm && !$instruction.op0_register().is_mm() => None,
            (OpKind::Register, true) => Some($function::<Xmm, Reg, $operation, $cpu> as Run<$cpu>),
            (OpKind::Memory, true) => Some($function::<Xmm, Mem, $operation, $cpu> as Run<$cpu>),
            (OpKind::Register, false) => Some($function::<Mmx, Reg, $operation, $cpu> as Run<$cpu>),
            (OpKind::Memory, false) => Some($function::<Mmx, Mem, $operation, $cpu> as Run<$cpu>),
            _ => None,
        }
    }};
}
pub(crate) use by_bank;

/// As [`by_bank`], for a shift by an immediate.
macro_rules! by_immediate {
    ($instruction:expr, $function:ident, $cpu:ident, $operation:ident) => {{
        use $crate::vector::bank::{Imm, Mmx, Xmm};
        if $instruction.op0_register().is_xmm() {
            Some($function::<Xmm, Imm, $operation, $cpu> as Run<$cpu>)
        } else {
            Some($function::<Mmx, Imm, $operation, $cpu> as Run<$cpu>)
        }
    }};
}
pub(crate) use by_immediate;
