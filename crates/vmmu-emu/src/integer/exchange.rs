//! Exchanges: XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
//!
//! XCHG with memory is atomic with or without LOCK (AMD APM vol. 3, "XCHG"). CMPXCHG8B and CMPXCHG16B are here too: nothing is cheaper without.

use iced_x86::{Instruction, Mnemonic};

use crate::arith;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::decode::{Form, form};
use crate::flags::Flags;
use crate::op::{Bits, Op, Run};
use crate::operand::{M, Operand, R0, R1, read_register, update_locked, write_register};
use crate::state::{Gpr, State};
use crate::word::Word;

const RAX: u8 = Gpr::RAX.number();
const RCX: u8 = Gpr::RCX.number();
const RDX: u8 = Gpr::RDX.number();
const RBX: u8 = Gpr::RBX.number();

fn exchange_registers<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let first: W = R0::get(cpu, op)?;
    let second: W = R1::get(cpu, op)?;
    R0::set(cpu, op, second)?;
    R1::set(cpu, op, first)
}

fn exchange_memory<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let new: W = R0::get(cpu, op)?;
    let at = op.linear(cpu, W::BYTES, Access::Update)?;
    let old = update_locked(cpu, at, |_, old| (new, old))?;
    R0::set(cpu, op, old)
}

/// XADD: D is the sum's place, S the register that gets the old value; of one register for both the sum stays.
fn exchange_and_add<W: Word, D: Operand, S: Operand, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    let addend: W = S::get(cpu, op)?;
    let (old, flags) = D::update(cpu, op, |_, old| {
        let (sum, flags) = arith::add(old, addend, false);
        (sum, (old, flags))
    })?;
    if op.reg != op.rm {
        S::set(cpu, op, old)?;
    }
    cpu.state_mut().flags.replace(Flags::ARITHMETIC, flags);
    Ok(())
}

fn compare_exchange_register<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let old: W = R0::get(cpu, op)?;
    let new: W = R1::get(cpu, op)?;
    let expected: W = read_register(cpu.state(), RAX);
    if old == expected {
        R0::set(cpu, op, new)?;
    }
    compared(cpu.state_mut(), expected, old);
    Ok(())
}

fn compare_exchange_memory<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let new: W = R0::get(cpu, op)?;
    let expected: W = read_register(cpu.state(), RAX);
    let at = op.linear(cpu, W::BYTES, Access::Update)?;
    let old = if op.bits.contains(Bits::LOCK) {
        cpu.compare_exchange(at, expected, new)?
    } else {
        let old: W = cpu.load(at, Access::Update)?;
        // The processor writes in any case; what it writes without equality is what was there.
        if old == expected {
            cpu.store(at, new, Access::Write)?;
        }
        old
    };
    compared(cpu.state_mut(), expected, old);
    Ok(())
}

/// Sets the flags of the comparison, and the accumulator if it failed.
#[inline(always)]
fn compared<W: Word>(state: &mut State, expected: W, old: W) {
    let (_, flags) = arith::sub(expected, old, false);
    state.flags.replace(Flags::ARITHMETIC, flags);
    if old != expected {
        write_register(state, RAX, old);
    }
}

fn compare_exchange_8<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let expected = joined::<u32>(state, RDX, RAX) as u64;
    let new = joined::<u32>(state, RCX, RBX) as u64;
    let at = op.linear(cpu, 8, Access::Update)?;
    let old = cpu.compare_exchange(at, expected, new)?;
    compared_halves::<u32>(cpu.state_mut(), u128::from(expected), u128::from(old));
    Ok(())
}

fn compare_exchange_16<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let expected = joined::<u64>(state, RDX, RAX);
    let new = joined::<u64>(state, RCX, RBX);
    let at = op.linear(cpu, 16, Access::Update)?;
    if at % 16 != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let old = cpu.compare_exchange_pair(at, expected, new)?;
    compared_halves::<u64>(cpu.state_mut(), expected, old);
    Ok(())
}

/// Returns two registers' joined value.
fn joined<W: Word>(state: &State, high: u8, low: u8) -> u128 {
    let high = read_register::<W>(state, high).zero_extend();
    let low = read_register::<W>(state, low).zero_extend();
    u128::from(high) << W::BITS | u128::from(low)
}

/// Sets ZF alone, and RDX:RAX if the comparison failed.
fn compared_halves<W: Word>(state: &mut State, expected: u128, old: u128) {
    state.flags.set(Flags::ZF, old == expected);
    if old != expected {
        write_register(state, RAX, W::truncate(old as u64));
        write_register(state, RDX, W::truncate((old >> W::BITS) as u64));
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match (instruction.mnemonic(), form(instruction)?) {
        (Mnemonic::Xchg, (Form::RegReg, size)) => by_size!(size, exchange_registers, (), C),
        (Mnemonic::Xchg, (Form::MemReg, size)) => by_size!(size, exchange_memory, (), C),
        (Mnemonic::Xadd, (Form::RegReg, size)) => by_size!(size, exchange_and_add, (R0, R1), C),
        (Mnemonic::Xadd, (Form::MemReg, size)) => by_size!(size, exchange_and_add, (M, R0), C),
        (Mnemonic::Cmpxchg, (Form::RegReg, size)) => {
            by_size!(size, compare_exchange_register, (), C)
        }
        (Mnemonic::Cmpxchg, (Form::MemReg, size)) => {
            by_size!(size, compare_exchange_memory, (), C)
        }
        (Mnemonic::Cmpxchg8b, _) => Some(compare_exchange_8::<C>),
        (Mnemonic::Cmpxchg16b, _) => Some(compare_exchange_16::<C>),
        _ => None,
    }
}
