//! SYSCALL, SYSRET, SYSENTER, SYSEXIT: fixed segments, no descriptor is read.

use iced_x86::{Instruction, Mnemonic};

use crate::address::is_canonical;
use crate::cpu::{Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::control::efer;
use crate::system::debug::SINGLE_STEP;
use crate::system::features::Instructions;
use crate::system::interrupt::truncated_next;

/// The width of the code that is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits32,
    Bits64,
}

/// Loads CS and SS with flat segments of a level.
fn set_segments(state: &mut State, cs: u16, ss: u16, level: u8, width: Width) {
    let dpl = u16::from(level) << 5;
    let flat = |selector, attributes| Segment {
        selector,
        attributes: attributes | dpl,
        limit: u32::MAX,
        base: 0,
    };
    let code = match width {
        Width::Bits32 => 0xc9b,
        Width::Bits64 => 0xa9b,
    };
    state.segments[SegmentName::Cs as usize] = flat(cs, code);
    state.segments[SegmentName::Ss as usize] = flat(ss, 0xc93);
    state.cpl = level;
}

/// SYSCALL (AMD APM vol. 2, section 6.1.1).
fn syscall<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    if state.efer & efer::SCE == 0 {
        return Err(Exception::UNDEFINED.into());
    }
    let next = truncated_next(state);
    let cs = (state.msrs.star >> 32) as u16 & 0xfffc;
    state.flags.remove(Flags::RF);
    state.set(Gpr::RCX, next);
    if state.is_long() {
        let from_64_bit = state.is_64_bit();
        state.set(Gpr::R11, state.flags.bits());
        state.next = if from_64_bit {
            state.msrs.lstar
        } else {
            state.msrs.cstar
        };
        let cleared = Flags::from_bits_truncate(state.msrs.sfmask);
        state.flags = state.flags.difference(cleared) | Flags::ONE;
        set_segments(state, cs, cs.wrapping_add(8), 0, Width::Bits64);
    } else {
        state.next = state.msrs.star & 0xffff_ffff;
        state.flags.remove(Flags::IF | Flags::VM);
        set_segments(state, cs, cs.wrapping_add(8), 0, Width::Bits32);
    }
    trap_by_new_flags(state);
    Ok(())
}

/// The single-step trap of SYSCALL and SYSRET depends on the flags that they leave.
const fn trap_by_new_flags(state: &mut State) {
    state.trap_held = true;
    if state.flags.contains(Flags::TF) {
        state.trap_pending = SINGLE_STEP;
    }
}

/// SYSRET (AMD APM vol. 2, section 6.1.1). A return address that is not canonical faults when it is fetched from.
fn sysret<const WIDE: bool, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    if state.efer & efer::SCE == 0 {
        return Err(Exception::UNDEFINED.into());
    }
    if state.is_real() || state.cpl != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let selector = (state.msrs.star >> 48) as u16;
    let (cs, width) = if WIDE {
        (selector.wrapping_add(16), Width::Bits64)
    } else {
        (selector, Width::Bits32)
    };
    let rcx = state.get(Gpr::RCX);
    state.next = if WIDE { rcx } else { rcx & 0xffff_ffff };
    if state.is_long() {
        let flags = Flags::from_bits_truncate(state.get(Gpr::R11));
        state.flags = flags.difference(Flags::RF | Flags::VM) | Flags::ONE;
    } else {
        state.flags.insert(Flags::IF);
    }
    set_segments(state, cs | 3, selector.wrapping_add(8) | 3, 3, width);
    trap_by_new_flags(state);
    Ok(())
}

/// Checks that SYSENTER and SYSEXIT exist in the mode (AMD APM vol. 3), and returns whether it is long mode.
fn check_sysenter(cpu: &impl Cpu) -> Result<bool, Stop> {
    let is_long = cpu.state().is_long();
    let offered = cpu
        .features()
        .instructions
        .contains(Instructions::LONG_SYSENTER);
    if is_long && !offered {
        return Err(Exception::UNDEFINED.into());
    }
    let state = cpu.state();
    if state.is_real() || state.msrs.sysenter_cs & 0xfffc == 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    Ok(is_long)
}

fn sysenter<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let is_long = check_sysenter(cpu)?;
    let state = cpu.state_mut();
    let cs = state.msrs.sysenter_cs as u16 & 0xfffc;
    let (width, mask) = if is_long {
        (Width::Bits64, u64::MAX)
    } else {
        (Width::Bits32, 0xffff_ffff)
    };
    state.flags.remove(Flags::VM | Flags::IF | Flags::RF);
    state.set(Gpr::RSP, state.msrs.sysenter_esp & mask);
    state.next = state.msrs.sysenter_eip & mask;
    set_segments(state, cs, cs.wrapping_add(8), 0, width);
    Ok(())
}

fn sysexit<const WIDE: bool, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    check_sysenter(cpu)?;
    let state = cpu.state_mut();
    let (rip, rsp) = (state.get(Gpr::RDX), state.get(Gpr::RCX));
    let canonical = is_canonical(state, rip) && is_canonical(state, rsp);
    if state.cpl != 0 || WIDE && !canonical {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let selector = state.msrs.sysenter_cs as u16;
    let (distance, width, mask) = if WIDE {
        (32, Width::Bits64, u64::MAX)
    } else {
        (16, Width::Bits32, 0xffff_ffff)
    };
    let cs = selector.wrapping_add(distance) | 3;
    state.set(Gpr::RSP, rsp & mask);
    state.next = rip & mask;
    set_segments(state, cs, cs.wrapping_add(8), 3, width);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret => sysret::<false, C>,
        Mnemonic::Sysretq => sysret::<true, C>,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit => sysexit::<false, C>,
        Mnemonic::Sysexitq => sysexit::<true, C>,
        _ => return None,
    })
}
