//! MOV to and from control and debug registers, LMSW, SMSW, CLTS, CLAC, STAC.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Control, Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1};
use crate::system::control::{self, cr0, cr4};
use crate::system::{require_outermost, require_umip};
use crate::word::Word;

/// The bits of DR6 that are always set, and those of DR7 (AMD APM vol. 2, section 13.1.1).
const DR6_ONES: u64 = 0xffff_0ff0;
const DR7_ONES: u64 = 0x400;
/// DR6: a debug register was accessed although DR7 forbids it.
const DR6_ACCESSED: u64 = 1 << 13;
/// DR7: accesses to debug registers raise #DB.
const DR7_DETECT: u64 = 1 << 13;

fn from_control<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let value = match op.rm {
        0 => state.cr0,
        2 => state.cr2,
        3 => state.cr3,
        4 => state.cr4,
        8 => state.cr8,
        _ => return Err(Exception::UNDEFINED.into()),
    };
    require_outermost(state)?;
    R0::set(cpu, op, W::truncate(value))
}

fn to_control<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let register = match op.reg {
        0 => Some(Control::Cr0),
        2 => None,
        3 => Some(Control::Cr3),
        4 => Some(Control::Cr4),
        8 => Some(Control::Cr8),
        _ => return Err(Exception::UNDEFINED.into()),
    };
    require_outermost(cpu.state())?;
    let value = R1::get::<W, C>(cpu, op)?.zero_extend();
    match register {
        Some(register) => write_control(cpu, register, value),
        None => {
            cpu.state_mut().cr2 = value;
            Ok(())
        }
    }
}

/// Checks a control register's value, then has it written.
fn write_control(cpu: &mut impl Cpu, register: Control, value: u64) -> Result<(), Stop> {
    control::check(cpu.state(), &cpu.features(), register, value)?;
    cpu.write_control(register, value)
}

/// Returns the number of a debug register: 4 and 5 are other names of 6 and 7, unless CR4.DE is set.
fn debug_number(cpu: &impl Cpu, number: u8) -> Result<usize, Stop> {
    let extended = cpu.state().cr4 & cr4::DE != 0;
    match number {
        0..=3 | 6 | 7 => Ok(usize::from(number)),
        4 | 5 if !extended => Ok(usize::from(number) + 2),
        _ => Err(Exception::UNDEFINED.into()),
    }
}

/// Raises #DB if DR7 says that debug registers are watched.
fn require_unwatched(cpu: &mut impl Cpu) -> Result<(), Stop> {
    let state = cpu.state_mut();
    if state.dr[7] & DR7_DETECT == 0 {
        return Ok(());
    }
    state.dr[6] |= DR6_ACCESSED;
    Err(Exception::DEBUG.into())
}

fn from_debug<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let number = debug_number(cpu, op.rm)?;
    require_unwatched(cpu)?;
    let value = cpu.state().dr[number];
    R0::set(cpu, op, W::truncate(value))
}

fn to_debug<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let number = debug_number(cpu, op.reg)?;
    require_unwatched(cpu)?;
    let value = R1::get::<W, C>(cpu, op)?.zero_extend();
    if number >= 6 && value >> 32 != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    cpu.state_mut().dr[number] = match number {
        6 => value & 0xe00f | DR6_ONES,
        7 => value & 0xffff_2bff | DR7_ONES,
        _ => value,
    };
    Ok(())
}

fn smsw<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_umip(cpu.state())?;
    let value = cpu.state().cr0;
    D::set(cpu, op, W::truncate(value))
}

/// LMSW changes PE (only to 1), MP, EM and TS.
fn lmsw<S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let value = u64::from(S::get::<u16, C>(cpu, op)?);
    let old = cpu.state().cr0;
    let new = old & !0xe | value & 0xf | old & cr0::PE;
    write_control(cpu, Control::Cr0, new)
}

fn clts<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let new = cpu.state().cr0 & !cr0::TS;
    write_control(cpu, Control::Cr0, new)
}

/// CLAC and STAC.
fn access_control<const ALLOWED: bool, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    if state.cpl != 0 {
        return Err(Exception::UNDEFINED.into());
    }
    state.flags.set(Flags::AC, ALLOWED);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Mov => select_mov(instruction),
        Mnemonic::Smsw => Some(match (instruction.op0_kind(), instruction.op0_register()) {
            (OpKind::Memory, _) => smsw::<u16, M, C>,
            (_, register) => match register.size() {
                2 => smsw::<u16, R0, C>,
                4 => smsw::<u32, R0, C>,
                _ => smsw::<u64, R0, C>,
            },
        }),
        Mnemonic::Lmsw if instruction.op0_kind() == OpKind::Memory => Some(lmsw::<M, C>),
        Mnemonic::Lmsw => Some(lmsw::<R0, C>),
        Mnemonic::Clts => Some(clts),
        Mnemonic::Clac => Some(access_control::<false, C>),
        Mnemonic::Stac => Some(access_control::<true, C>),
        _ => None,
    }
}

fn select_mov<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    let wide = |register: Register| register.size() == 8;
    if to.is_cr() {
        Some(if wide(from) {
            to_control::<u64, C>
        } else {
            to_control::<u32, C>
        })
    } else if from.is_cr() {
        Some(if wide(to) {
            from_control::<u64, C>
        } else {
            from_control::<u32, C>
        })
    } else if to.is_dr() {
        Some(if wide(from) {
            to_debug::<u64, C>
        } else {
            to_debug::<u32, C>
        })
    } else if from.is_dr() {
        Some(if wide(to) {
            from_debug::<u64, C>
        } else {
            from_debug::<u32, C>
        })
    } else {
        None
    }
}
