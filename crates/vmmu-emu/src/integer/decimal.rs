//! Decimal adjustments, which 64-bit code does not have: AAA, AAS, AAM, AAD, DAA, DAS.

use iced_x86::{Instruction, Mnemonic};

use crate::arith;
use crate::cpu::{Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{HIGH_BYTE, Op, Run};
use crate::operand::{read_register, write_register};
use crate::state::{Gpr, State};

const RAX: u8 = Gpr::RAX.number();
const RESULT: Flags = Flags::PF.union(Flags::ZF).union(Flags::SF);
const CARRIES: Flags = Flags::CF.union(Flags::AF);

/// Says whether AL's low digit needs an adjustment.
fn low_digit_is_off(state: &State) -> bool {
    let al: u8 = read_register(state, RAX);
    al & 0xf > 9 || state.flags.contains(Flags::AF)
}

/// AAA and AAS: the adjustment is 0x106, added or subtracted from AX.
fn adjust_unpacked<const BY: u16, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let mut carries = Flags::empty();
    let mut ax: u16 = read_register(state, RAX);
    if low_digit_is_off(state) {
        ax = ax.wrapping_add(BY);
        carries = CARRIES;
    }
    write_register(state, RAX, ax & 0xff0f);
    state.flags.replace(CARRIES, carries);
    Ok(())
}

/// DAA and DAS.
fn adjust_packed<const SUBTRACT: bool, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let old: u8 = read_register(state, RAX);
    let carry = state.flags.contains(Flags::CF);
    let mut al = old;
    let mut carries = Flags::empty();
    let adjusted = |al: u8, by: u8| {
        if SUBTRACT {
            al.overflowing_sub(by)
        } else {
            al.overflowing_add(by)
        }
    };
    if low_digit_is_off(state) {
        let (value, wrapped) = adjusted(al, 6);
        al = value;
        carries.set(Flags::CF, wrapped);
        carries.insert(Flags::AF);
    }
    if old > 0x99 || carry {
        al = adjusted(al, 0x60).0;
        carries.insert(Flags::CF);
    }
    write_register(state, RAX, al);
    let flags = carries | arith::of_result(al);
    state.flags.replace(CARRIES | RESULT, flags);
    Ok(())
}

/// AAM.
fn split_digits<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let base = op.imm as u8;
    let state = cpu.state_mut();
    let al: u8 = read_register(state, RAX);
    let high = al.checked_div(base).ok_or(Exception::DIVIDE)?;
    let low = al % base;
    write_register(state, HIGH_BYTE, high);
    write_register(state, RAX, low);
    state.flags.replace(RESULT, arith::of_result(low));
    Ok(())
}

/// AAD.
fn join_digits<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let base = op.imm as u8;
    let state = cpu.state_mut();
    let low: u8 = read_register(state, RAX);
    let high: u8 = read_register(state, HIGH_BYTE);
    let al = low.wrapping_add(high.wrapping_mul(base));
    write_register(state, RAX, u16::from(al));
    state.flags.replace(RESULT, arith::of_result(al));
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    const ADD: u16 = 0x106;
    const SUBTRACT: u16 = ADD.wrapping_neg();
    match instruction.mnemonic() {
        Mnemonic::Aaa => Some(adjust_unpacked::<ADD, C>),
        Mnemonic::Aas => Some(adjust_unpacked::<SUBTRACT, C>),
        Mnemonic::Daa => Some(adjust_packed::<false, C>),
        Mnemonic::Das => Some(adjust_packed::<true, C>),
        Mnemonic::Aam => Some(split_digits::<C>),
        Mnemonic::Aad => Some(join_digits::<C>),
        _ => None,
    }
}
