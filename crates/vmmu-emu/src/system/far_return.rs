//! Far RET and IRET: to the same level, to an outer one, to virtual-8086 code, to the task before.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::descriptor::{NOT_PRESENT, PROTECTION, Selector, fetch};
use crate::system::far::{Target, check_offset, check_width};
use crate::system::segment::{load_stack, null, null_stack, real, take, virtual_8086};
use crate::system::stack::{Size, Stack, pointer_for};
use crate::system::task;
use crate::system::writes::Writes;

/// Two accessed bits.
type Stores = Writes<2>;

const DATA_SEGMENTS: [SegmentName; 4] = [
    SegmentName::Es,
    SegmentName::Ds,
    SegmentName::Fs,
    SegmentName::Gs,
];

/// Finds the code segment that a return goes to (AMD APM vol. 2, section 4.11.3). The return goes to the selector's level, not further in.
fn find_target(
    cpu: &mut impl Cpu,
    selector: u64,
    offset: u64,
    writes: &mut Stores,
) -> Result<Target, Stop> {
    let selector = Selector(selector as u16);
    if selector.is_null() {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let found = fetch(cpu, selector, PROTECTION, 0)?;
    let (descriptor, rpl) = (found.descriptor, selector.rpl());
    let state = cpu.state();
    let allowed = if descriptor.is_conforming() {
        descriptor.dpl() <= rpl
    } else {
        descriptor.dpl() == rpl
    };
    if !descriptor.is_code() || rpl < state.cpl || !allowed {
        return Err(selector.fault(PROTECTION, 0));
    }
    check_width(state, selector, descriptor)?;
    if !descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, 0));
    }
    let cs = take(&found, selector, writes)?;
    Ok(Target { cs, offset })
}

/// Returns whether a code segment is 64-bit.
const fn is_64_bit(state: &State, cs: &Segment) -> bool {
    state.is_long() && cs.attributes & 1 << 9 != 0
}

/// Finds the stack segment that a return goes to; 64-bit code of an inner level may have none.
fn find_stack(
    cpu: &mut impl Cpu,
    selector: Selector,
    cs: &Segment,
    writes: &mut Stores,
) -> Result<Segment, Stop> {
    let cpl = Selector(cs.selector).rpl();
    if selector.is_null() && is_64_bit(cpu.state(), cs) && cpl != 3 {
        return Ok(null_stack(selector.0, cpl));
    }
    load_stack(cpu, selector, cpl, PROTECTION, 0, writes)
}

/// Makes data segments null that the outer level must not have (AMD APM vol. 3, IRET); the base stays, as 64-bit code may have set it.
fn drop_inner_segments(state: &mut State, cpl: u8) {
    for name in DATA_SEGMENTS {
        let segment = &mut state.segments[name as usize];
        let attributes = segment.attributes;
        let is_conforming = attributes & 0xc == 0xc;
        if !is_conforming && ((attributes >> 5 & 3) as u8) < cpl {
            *segment = Segment {
                base: segment.base,
                ..null(0)
            };
        }
    }
}

/// Returns to an outer level.
fn install_outer(state: &mut State, target: &Target, ss: Segment, pointer: u64) {
    let cpl = Selector(target.cs.selector).rpl();
    let wide = is_64_bit(state, &target.cs);
    let pointer = pointer_for(wide, &ss, state.get(Gpr::RSP), pointer);
    target.enter(state);
    state.segments[SegmentName::Ss as usize] = ss;
    state.set(Gpr::RSP, pointer);
    if cpl > state.cpl {
        drop_inner_segments(state, cpl);
        state.cpl = cpl;
    }
}

/// RET far; the immediate says how many bytes of parameters to release.
fn ret<const SIZE: u8, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let size = size(SIZE);
    let mut stack = Stack::current(cpu.state());
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)?;
    let state = cpu.state();
    if state.is_real() || state.is_virtual_8086() {
        let target = simple_target(state, selector, offset)?;
        stack.release(op.imm);
        let state = cpu.state_mut();
        state.set(Gpr::RSP, stack.pointer);
        target.enter(state);
        return Ok(());
    }
    let mut writes = Stores::new();
    let target = find_target(cpu, selector, offset, &mut writes)?;
    stack.release(op.imm);
    if Selector(target.cs.selector).rpl() == cpu.state().cpl {
        check_offset(cpu.state(), &target.cs, offset)?;
        writes.check(cpu)?;
        writes.commit(cpu)?;
        let state = cpu.state_mut();
        state.set(Gpr::RSP, stack.pointer);
        target.enter(state);
        return Ok(());
    }
    let pointer = stack.pop(cpu, size)?;
    let selector = Selector(stack.pop(cpu, size)? as u16);
    let ss = find_stack(cpu, selector, &target.cs, &mut writes)?;
    check_offset(cpu.state(), &target.cs, offset)?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    install_outer(cpu.state_mut(), &target, ss, pointer.wrapping_add(op.imm));
    Ok(())
}

/// Returns the target of a return in real or virtual-8086 mode.
fn simple_target(state: &State, selector: u64, offset: u64) -> Result<Target, Stop> {
    let old = state.segment(SegmentName::Cs);
    let cs = if state.is_real() {
        real(old, selector as u16)
    } else {
        virtual_8086(selector as u16)
    };
    check_offset(state, &cs, offset)?;
    Ok(Target { cs, offset })
}

/// IRET. It lets NMIs in again.
fn iret<const SIZE: u8, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let size = size(SIZE);
    let state = cpu.state();
    if state.is_real() {
        simple_iret(cpu, size)?;
    } else if state.is_virtual_8086() {
        if state.flags.iopl() != 3 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        simple_iret(cpu, size)?;
    } else if state.flags.contains(Flags::NT) {
        if state.is_long() {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        task::back(cpu)?;
    } else {
        protected_iret(cpu, size)?;
    }
    cpu.state_mut().nmi_blocked = false;
    Ok(())
}

fn simple_iret(cpu: &mut impl Cpu, size: Size) -> Result<(), Stop> {
    let mut stack = Stack::current(cpu.state());
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)?;
    let flags = stack.pop(cpu, size)?;
    let state = cpu.state_mut();
    let target = simple_target(state, selector, offset)?;
    let mask = restorable(state, size);
    state.set(Gpr::RSP, stack.pointer);
    restore_flags(state, flags, mask);
    target.enter(state);
    Ok(())
}

/// Returns the flags that IRET may change (AMD APM vol. 3, IRET).
fn restorable(state: &State, size: Size) -> Flags {
    let mut mask = Flags::ARITHMETIC | Flags::TF | Flags::DF | Flags::NT;
    if state.cpl <= state.flags.iopl() || state.is_real() {
        mask |= Flags::IF;
    }
    if state.cpl == 0 {
        mask |= Flags::IOPL;
    }
    if size != Size::Two {
        mask |= Flags::RF | Flags::AC | Flags::ID;
        if state.cpl == 0 && !state.is_real() {
            mask |= Flags::VIF | Flags::VIP;
        }
    }
    mask
}

fn restore_flags(state: &mut State, flags: u64, mask: Flags) {
    let kept = state.flags.difference(mask);
    state.flags = Flags::from_bits_truncate(flags & mask.bits()) | kept | Flags::ONE;
}

/// IRET in protected and long mode. 64-bit code always restores the stack.
fn protected_iret(cpu: &mut impl Cpu, size: Size) -> Result<(), Stop> {
    let mut stack = Stack::current(cpu.state());
    let offset = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)?;
    let flags = stack.pop(cpu, size)?;
    let state = cpu.state();
    let to_virtual = flags & Flags::VM.bits() != 0 && size == Size::Four;
    if to_virtual && state.cpl == 0 && !state.is_long() {
        return to_virtual_8086(cpu, stack, [offset, selector, flags]);
    }
    let mut writes = Stores::new();
    let target = find_target(cpu, selector, offset, &mut writes)?;
    let state = cpu.state();
    let same = Selector(target.cs.selector).rpl() == state.cpl;
    let mask = restorable(state, size);
    if same && !state.is_64_bit() {
        check_offset(state, &target.cs, offset)?;
        writes.check(cpu)?;
        writes.commit(cpu)?;
        let state = cpu.state_mut();
        state.set(Gpr::RSP, stack.pointer);
        target.enter(state);
        restore_flags(state, flags, mask);
        return Ok(());
    }
    let pointer = stack.pop(cpu, size)?;
    let selector = Selector(stack.pop(cpu, size)? as u16);
    let ss = find_stack(cpu, selector, &target.cs, &mut writes)?;
    check_offset(cpu.state(), &target.cs, offset)?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    let state = cpu.state_mut();
    install_outer(state, &target, ss, pointer);
    restore_flags(state, flags, mask);
    Ok(())
}

/// From protected mode to virtual-8086 code: all segments come from the stack.
fn to_virtual_8086(
    cpu: &mut impl Cpu,
    mut stack: Stack,
    [offset, selector, flags]: [u64; 3],
) -> Result<(), Stop> {
    use SegmentName::{Ds, Es, Fs, Gs, Ss};
    let pointer = stack.pop(cpu, Size::Four)?;
    let mut selectors = [0; 5];
    for selector in &mut selectors {
        *selector = stack.pop(cpu, Size::Four)? as u16;
    }
    let cs = virtual_8086(selector as u16);
    check_offset(cpu.state(), &cs, offset)?;
    let state = cpu.state_mut();
    let mask = restorable(state, Size::Four) | Flags::VM;
    for (name, selector) in [Ss, Es, Ds, Fs, Gs].into_iter().zip(selectors) {
        state.segments[name as usize] = virtual_8086(selector);
    }
    state.set(Gpr::RSP, pointer);
    Target { cs, offset }.enter(state);
    restore_flags(state, flags, mask);
    state.cpl = 3;
    Ok(())
}

const fn size(bytes: u8) -> Size {
    match bytes {
        2 => Size::Two,
        4 => Size::Four,
        _ => Size::Eight,
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    use iced_x86::Code;
    Some(match instruction.mnemonic() {
        Mnemonic::Iret => iret::<2, C>,
        Mnemonic::Iretd => iret::<4, C>,
        Mnemonic::Iretq => iret::<8, C>,
        Mnemonic::Retf => match instruction.code() {
            Code::Retfw | Code::Retfw_imm16 => ret::<2, C>,
            Code::Retfd | Code::Retfd_imm16 => ret::<4, C>,
            _ => ret::<8, C>,
        },
        _ => return None,
    })
}
