//! Instructions that reach the machine: MSRs, CPUID, HLT, time, caches and translations, hypercalls.

use iced_x86::{Instruction, Mnemonic};

use crate::address;
use crate::cpu::{Access, Cpu, Exception, Invalidation, Stop};
use crate::op::{Op, Run, Seg};
use crate::operand::{Operand, R0};
use crate::state::{Gpr, SegmentName, State};
use crate::system::control::cr4;
use crate::system::features::Instructions;
use crate::system::require_outermost;
use crate::word::Word;

/// Writes EDX:EAX; the upper halves become zero.
fn set_pair(state: &mut State, value: u64) {
    state.set(Gpr::RAX, value & 0xffff_ffff);
    state.set(Gpr::RDX, value >> 32);
}

/// Reads EDX:EAX.
const fn pair(state: &State) -> u64 {
    state.get(Gpr::RDX) << 32 | state.get(Gpr::RAX) & 0xffff_ffff
}

/// Returns ECX.
const fn count(state: &State) -> u32 {
    state.get(Gpr::RCX) as u32
}

fn rdmsr<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let number = count(cpu.state());
    let value = cpu.read_msr(number)?;
    set_pair(cpu.state_mut(), value);
    Ok(())
}

fn wrmsr<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let (number, value) = (count(cpu.state()), pair(cpu.state()));
    cpu.write_msr(number, value)
}

/// RDPMC: the four counters of AMD64 are MSRs too (AMD APM vol. 2, section 13.2.1).
fn rdpmc<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let number = count(state);
    if state.cpl != 0 && state.cr4 & cr4::PCE == 0 || number > 3 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let value = cpu.read_msr(0xc001_0004 + number)?;
    set_pair(cpu.state_mut(), value);
    Ok(())
}

fn cpuid<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let leaf = cpu.state().get(Gpr::RAX) as u32;
    let subleaf = count(cpu.state());
    let [a, b, c, d] = cpu.cpuid(leaf, subleaf)?.map(u64::from);
    let state = cpu.state_mut();
    state.set(Gpr::RAX, a);
    state.set(Gpr::RBX, b);
    state.set(Gpr::RCX, c);
    state.set(Gpr::RDX, d);
    Ok(())
}

/// Checks that the time-stamp counter may be read: CR4.TSD keeps it from the outer levels.
fn require_time(state: &State) -> Result<(), Stop> {
    if state.cr4 & cr4::TSD != 0 && state.cpl != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    Ok(())
}

fn rdtsc<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_time(cpu.state())?;
    let value = cpu.timestamp()?;
    set_pair(cpu.state_mut(), value);
    Ok(())
}

fn rdtscp<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_offered(cpu, Instructions::RDTSCP)?;
    require_time(cpu.state())?;
    let value = cpu.timestamp()?;
    let state = cpu.state_mut();
    set_pair(state, value);
    state.set(Gpr::RCX, u64::from(state.msrs.tsc_aux));
    Ok(())
}

fn rdpid<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_offered(cpu, Instructions::RDPID)?;
    let value = u64::from(cpu.state().msrs.tsc_aux);
    R0::set(cpu, op, value)
}

/// Raises #UD where the processor lacks an instruction.
fn require_offered(cpu: &impl Cpu, instruction: Instructions) -> Result<(), Stop> {
    if cpu.features().instructions.contains(instruction) {
        Ok(())
    } else {
        Err(Exception::UNDEFINED.into())
    }
}

fn hlt<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    cpu.halt()
}

fn invlpg<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let state = cpu.state();
    // No access: neither limit nor form is checked (AMD APM vol. 3, INVLPG). A non-canonical address does nothing.
    let offset = op.offset(state);
    let at = match op.seg {
        Seg::Flat | Seg::FlatStack => offset,
        Seg::FlatFs => offset.wrapping_add(state.segment(SegmentName::Fs).base),
        Seg::FlatGs => offset.wrapping_add(state.segment(SegmentName::Gs).base),
        other => {
            let segment = &state.segments[(other as u8 - Seg::Es as u8) as usize];
            segment.base.wrapping_add(offset) & 0xffff_ffff
        }
    };
    if address::is_canonical(state, at) {
        cpu.invalidate(Invalidation::Page(at))
    } else {
        Ok(())
    }
}

fn invpcid<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_offered(cpu, Instructions::INVPCID)?;
    require_outermost(cpu.state())?;
    let kind = R0::get::<W, C>(cpu, op)?.zero_extend();
    let at = op.linear(cpu, 16, Access::Read)?;
    let space: u64 = cpu.load(at, Access::Read)?;
    let page: u64 = cpu.load(at.wrapping_add(8), Access::Read)?;
    let state = cpu.state();
    let names_space = kind <= 1;
    let without_pcids = state.cr4 & cr4::PCIDE == 0 && names_space && space != 0;
    let refused = kind > 3
        || space >> 12 != 0
        || without_pcids
        || kind == 0 && !address::is_canonical(state, page);
    if refused {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let pcid = space as u16;
    cpu.invalidate(if kind == 0 {
        Invalidation::PageOf { pcid, at: page }
    } else {
        Invalidation::Spaces {
            kind: kind as u8,
            pcid,
        }
    })
}

fn invalidate_caches<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    cpu.invalidate(Invalidation::Caches)
}

/// XGETBV and XSETBV: CR4.OSXSAVE can't be set, so they don't exist.
fn undefined<C: Cpu>(_: &mut C, _: &Op<C>) -> Result<(), Stop> {
    Err(Exception::UNDEFINED.into())
}

fn hypercall<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    cpu.hypercall()
}

/// MONITOR reads a byte at rAX in DS.
fn monitor<W: Word, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_monitor(cpu)?;
    if count(cpu.state()) != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let state = cpu.state();
    let offset = W::truncate(state.get(Gpr::RAX)).zero_extend();
    let seg = if state.is_64_bit() {
        Seg::Flat
    } else {
        Seg::Ds
    };
    let at = address::linear(state, seg, offset, 1, Access::Read)?;
    cpu.load::<u8>(at, Access::Read).map(drop)
}

fn mwait<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_monitor(cpu)?;
    if count(cpu.state()) > 1 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    Ok(())
}

fn require_monitor(cpu: &impl Cpu) -> Result<(), Stop> {
    require_offered(cpu, Instructions::MONITOR)?;
    if cpu.state().cpl != 0 {
        return Err(Exception::UNDEFINED.into());
    }
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Rdpmc => rdpmc,
        Mnemonic::Cpuid => cpuid,
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdpid => rdpid,
        Mnemonic::Hlt => hlt,
        Mnemonic::Invlpg => invlpg,
        Mnemonic::Invpcid if instruction.op0_register().size() == 8 => invpcid::<u64, C>,
        Mnemonic::Invpcid => invpcid::<u32, C>,
        Mnemonic::Invd | Mnemonic::Wbinvd => invalidate_caches,
        Mnemonic::Xgetbv | Mnemonic::Xsetbv => undefined,
        Mnemonic::Vmmcall | Mnemonic::Vmcall => hypercall,
        Mnemonic::Monitor => match instruction.op0_register().size() {
            8 => monitor::<u64, C>,
            4 => monitor::<u32, C>,
            _ => monitor::<u16, C>,
        },
        Mnemonic::Mwait => mwait,
        _ => return None,
    })
}
