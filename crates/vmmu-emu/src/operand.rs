//! Operands as types: where an instruction's function reads and writes is decided when it is decoded, not when it runs.
//!
//! Key trait: [`Operand`], of [`R0`] (the op's first register), [`R1`] (the second), [`M`] (memory), [`I`] (the immediate).

use crate::cpu::{Access, Cpu, Stop};
use crate::op::{Bits, HIGH_BYTE, Op};
use crate::state::{Gpr, State};
use crate::word::Word;

/// An operand of an instruction.
pub(crate) trait Operand {
    /// Reads it.
    fn get<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<W, Stop>;
    /// Writes it, as the last thing that can fail.
    fn set<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, value: W) -> Result<(), Stop>;
    /// Reads it, computes, and writes the result; atomically if the instruction is locked. `with` may run several times.
    fn update<W: Word, T, C: Cpu>(
        cpu: &mut C,
        op: &Op<C>,
        with: impl Fn(&State, W) -> (W, T),
    ) -> Result<T, Stop>;
}

/// Reads a register operand.
#[inline(always)]
pub(crate) fn read_register<W: Word>(state: &State, number: u8) -> W {
    if W::BYTES == 1 && number & HIGH_BYTE != 0 {
        return W::truncate(state.get(Gpr(number & 3)) >> 8);
    }
    W::truncate(state.get(Gpr(number)))
}

/// Writes a register operand: 32 bits clear the upper half, fewer leave the rest (AMD APM vol. 1, section 3.1.2).
#[inline(always)]
pub(crate) fn write_register<W: Word>(state: &mut State, number: u8, value: W) {
    let value = value.zero_extend();
    if W::BYTES >= 4 {
        state.set(Gpr(number), value);
    } else if W::BYTES == 1 && number & HIGH_BYTE != 0 {
        let register = Gpr(number & 3);
        state.set(register, state.get(register) & !0xff00 | value << 8);
    } else {
        let mask = if W::BYTES == 1 { 0xff } else { 0xffff };
        state.set(Gpr(number), state.get(Gpr(number)) & !mask | value);
    }
}

macro_rules! register_operand {
    ($(#[$doc:meta])* $name:ident, $field:ident) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl Operand for $name {
            #[inline(always)]
            fn get<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<W, Stop> {
                Ok(read_register(cpu.state(), op.$field))
            }
            #[inline(always)]
            fn set<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, value: W) -> Result<(), Stop> {
                write_register(cpu.state_mut(), op.$field, value);
                Ok(())
            }
            #[inline(always)]
            fn update<W: Word, T, C: Cpu>(
                cpu: &mut C,
                op: &Op<C>,
                with: impl Fn(&State, W) -> (W, T),
            ) -> Result<T, Stop> {
                let old = read_register(cpu.state(), op.$field);
                let (new, out) = with(cpu.state(), old);
                write_register(cpu.state_mut(), op.$field, new);
                Ok(out)
            }
        }
    };
}
register_operand!(
    /// The first register.
    R0,
    reg
);
register_operand!(
    /// The second register.
    R1,
    rm
);

/// Memory.
pub(crate) struct M;

impl Operand for M {
    #[inline(always)]
    fn get<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<W, Stop> {
        let at = op.linear(cpu, W::BYTES, Access::Read)?;
        cpu.load(at, Access::Read)
    }
    #[inline(always)]
    fn set<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, value: W) -> Result<(), Stop> {
        let at = op.linear(cpu, W::BYTES, Access::Write)?;
        cpu.store(at, value, Access::Write)
    }
    #[inline(always)]
    fn update<W: Word, T, C: Cpu>(
        cpu: &mut C,
        op: &Op<C>,
        with: impl Fn(&State, W) -> (W, T),
    ) -> Result<T, Stop> {
        let at = op.linear(cpu, W::BYTES, Access::Update)?;
        update_memory(cpu, at, op.bits.contains(Bits::LOCK), with)
    }
}

/// Updates memory at a linear address; atomically if the instruction is locked.
#[inline(always)]
pub(crate) fn update_memory<W: Word, T, C: Cpu>(
    cpu: &mut C,
    at: u64,
    locked: bool,
    with: impl Fn(&State, W) -> (W, T),
) -> Result<T, Stop> {
    if locked {
        return update_locked(cpu, at, with);
    }
    let old = cpu.load(at, Access::Update)?;
    let (new, out) = with(cpu.state(), old);
    cpu.store(at, new, Access::Write)?;
    Ok(out)
}

/// Updates memory atomically.
pub(crate) fn update_locked<W: Word, T, C: Cpu>(
    cpu: &mut C,
    at: u64,
    with: impl Fn(&State, W) -> (W, T),
) -> Result<T, Stop> {
    let mut old = cpu.load(at, Access::Update)?;
    loop {
        let (new, out) = with(cpu.state(), old);
        let found = cpu.compare_exchange(at, old, new)?;
        if found == old {
            return Ok(out);
        }
        old = found;
    }
}

/// The immediate; it can't be written.
pub(crate) struct I;

impl Operand for I {
    #[inline(always)]
    fn get<W: Word, C: Cpu>(_: &mut C, op: &Op<C>) -> Result<W, Stop> {
        Ok(W::truncate(op.imm))
    }
    #[inline(always)]
    fn set<W: Word, C: Cpu>(_: &mut C, _: &Op<C>, _: W) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }
    #[inline(always)]
    fn update<W: Word, T, C: Cpu>(
        _: &mut C,
        _: &Op<C>,
        _: impl Fn(&State, W) -> (W, T),
    ) -> Result<T, Stop> {
        Err(Stop::Unsupported)
    }
}
