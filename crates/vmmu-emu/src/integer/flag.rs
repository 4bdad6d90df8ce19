//! Instructions on single flags: CLC, STC, CMC, CLD, STD, LAHF, SAHF, SALC.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Stop};
use crate::flags::Flags;
use crate::op::{HIGH_BYTE, Op, Run};
use crate::operand::{read_register, write_register};
use crate::state::Gpr;

/// What LAHF and SAHF move.
const STATUS: Flags = Flags::ARITHMETIC.difference(Flags::OF);

fn clear<const FLAG: u64, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    cpu.state_mut().flags.remove(Flags::from_bits_retain(FLAG));
    Ok(())
}

fn set<const FLAG: u64, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    cpu.state_mut().flags.insert(Flags::from_bits_retain(FLAG));
    Ok(())
}

fn complement_carry<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    cpu.state_mut().flags.toggle(Flags::CF);
    Ok(())
}

fn lahf<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let flags = state.flags & STATUS | Flags::ONE;
    write_register(state, HIGH_BYTE, flags.bits() as u8);
    Ok(())
}

fn sahf<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let value: u8 = read_register(state, HIGH_BYTE);
    let flags = Flags::from_bits_retain(value.into()) & STATUS;
    state.flags.replace(STATUS, flags);
    Ok(())
}

/// SALC, which no manual lists and every processor has: AL becomes CF's copies.
fn spread_carry<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let carry = state.flags.contains(Flags::CF);
    write_register(state, Gpr::RAX.number(), u8::from(carry).wrapping_neg());
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    const CF: u64 = Flags::CF.bits();
    const DF: u64 = Flags::DF.bits();
    match instruction.mnemonic() {
        Mnemonic::Clc => Some(clear::<CF, C>),
        Mnemonic::Stc => Some(set::<CF, C>),
        Mnemonic::Cmc => Some(complement_carry::<C>),
        Mnemonic::Cld => Some(clear::<DF, C>),
        Mnemonic::Std => Some(set::<DF, C>),
        Mnemonic::Lahf => Some(lahf::<C>),
        Mnemonic::Sahf => Some(sahf::<C>),
        Mnemonic::Salc => Some(spread_carry::<C>),
        _ => None,
    }
}
