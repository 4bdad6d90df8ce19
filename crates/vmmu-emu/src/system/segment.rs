//! Loading segment registers: MOV, POP, LDS and its relatives; and reading them.
//!
//! Key functions: [`load`] for the data segments and SS, [`load_code`] for what a far transfer found.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1, write_register};
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::descriptor::{Found, NOT_PRESENT, PROTECTION, STACK, Selector, fetch};
use crate::system::stack::{Size, Stack};
use crate::system::writes::Writes;
use crate::word::Word;

/// A segment register's name by its number in an encoding; CS and the two that don't exist can't be loaded.
const fn loadable(number: u8) -> Option<SegmentName> {
    match number {
        0 => Some(SegmentName::Es),
        2 => Some(SegmentName::Ss),
        3 => Some(SegmentName::Ds),
        4 => Some(SegmentName::Fs),
        5 => Some(SegmentName::Gs),
        _ => None,
    }
}

/// Returns what a segment register holds in real mode: the limit and the rest stay (AMD APM vol. 2, section 4.5.1).
pub(crate) fn real(old: &Segment, selector: u16) -> Segment {
    Segment {
        selector,
        base: u64::from(selector) << 4,
        ..*old
    }
}

/// Returns what a segment register holds in virtual-8086 mode.
pub(crate) fn virtual_8086(selector: u16) -> Segment {
    Segment {
        selector,
        attributes: 0xf3,
        limit: 0xffff,
        base: u64::from(selector) << 4,
    }
}

/// Returns what a null selector leaves in a segment register.
pub(crate) const fn null(selector: u16) -> Segment {
    Segment {
        selector,
        attributes: 0,
        limit: 0,
        base: 0,
    }
}

/// Returns SS as it is with a null selector, which 64-bit code may have.
pub(crate) const fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment {
        attributes: (cpl as u16) << 5,
        ..null(selector)
    }
}

/// Finds what a segment register is to hold; plans the descriptor's accessed bit.
///
/// # Errors
/// As the manuals say for MOV (AMD APM vol. 2, section 4.11).
pub(crate) fn load<const N: usize, C: Cpu>(
    cpu: &mut C,
    name: SegmentName,
    selector: u16,
    writes: &mut Writes<N>,
) -> Result<Segment, Stop> {
    let state = cpu.state();
    if state.is_real() {
        return Ok(real(state.segment(name), selector));
    }
    if state.is_virtual_8086() {
        return Ok(virtual_8086(selector));
    }
    let selector = Selector(selector);
    let cpl = state.cpl;
    if name == SegmentName::Ss {
        if selector.is_null() && state.is_64_bit() && cpl != 3 && selector.rpl() == cpl {
            return Ok(null_stack(selector.0, cpl));
        }
        return load_stack(cpu, selector, cpl, PROTECTION, 0, writes);
    }
    if selector.is_null() {
        return Ok(null(selector.0));
    }
    let found = fetch(cpu, selector, PROTECTION, 0)?;
    let descriptor = found.descriptor;
    let outer = selector.rpl().max(cpl);
    if !descriptor.is_readable() || !descriptor.is_conforming() && outer > descriptor.dpl() {
        return Err(selector.fault(PROTECTION, 0));
    }
    if !descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, 0));
    }
    take(&found, selector, writes)
}

/// Finds what SS is to hold at a privilege level. `vector` is #GP, or #TS where the selector comes from a task state.
pub(crate) fn load_stack<const N: usize, C: Cpu>(
    cpu: &mut C,
    selector: Selector,
    cpl: u8,
    vector: u8,
    external: u16,
    writes: &mut Writes<N>,
) -> Result<Segment, Stop> {
    if selector.is_null() {
        return Err(Selector(0).fault(vector, external));
    }
    let found = fetch(cpu, selector, vector, external)?;
    let descriptor = found.descriptor;
    if selector.rpl() != cpl || descriptor.dpl() != cpl || !descriptor.is_writable() {
        return Err(selector.fault(vector, external));
    }
    if !descriptor.is_present() {
        return Err(selector.fault(STACK, external));
    }
    take(&found, selector, writes)
}

/// Plans a descriptor's accessed bit; returns what the register holds.
pub(crate) fn take<const N: usize>(
    found: &Found,
    selector: Selector,
    writes: &mut Writes<N>,
) -> Result<Segment, Stop> {
    let accessed = found.descriptor.accessed();
    if !found.descriptor.is_accessed() {
        let byte = u64::from(accessed.type_byte());
        writes.add(found.at.wrapping_add(5), byte, 1, Access::SystemWrite)?;
    }
    Ok(accessed.segment(selector))
}

/// Loads a segment register and does what was planned.
fn load_now<C: Cpu>(cpu: &mut C, name: SegmentName, selector: u16) -> Result<(), Stop> {
    let mut writes = Writes::<1>::new();
    let segment = load(cpu, name, selector, &mut writes)?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    cpu.state_mut().segments[name as usize] = segment;
    Ok(())
}

/// MOV SS and POP SS hold interrupts off for one instruction (AMD APM vol. 2, section 8.1.4).
fn shadow(state: &mut State, name: SegmentName) {
    if name == SegmentName::Ss {
        state.interrupt_shadow = true;
        state.trap_held = true;
    }
}

fn to_segment<S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let name = loadable(op.reg).ok_or(Stop::Exception(Exception::UNDEFINED))?;
    let selector = S::get::<u16, C>(cpu, op)?;
    load_now(cpu, name, selector)?;
    shadow(cpu.state_mut(), name);
    Ok(())
}

fn from_segment<W: Word, D: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    // The segment register is the only one where the destination is memory.
    let number = if op.rm == Gpr::NONE.number() {
        op.reg
    } else {
        op.rm
    };
    let segments = &cpu.state().segments;
    let segment = segments
        .get(usize::from(number))
        .ok_or(Stop::Exception(Exception::UNDEFINED))?;
    let value = W::truncate(u64::from(segment.selector));
    D::set(cpu, op, value)
}

/// PUSH: with 32-bit operands the upper half is zero.
fn push<const SIZE: usize, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let segments = &state.segments;
    let segment = segments
        .get(usize::from(op.reg))
        .ok_or(Stop::Exception(Exception::UNDEFINED))?;
    let mut writes = Writes::<1>::new();
    let mut stack = Stack::current(state);
    stack.push(
        state,
        &mut writes,
        size_of_operand(SIZE),
        segment.selector.into(),
    )?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    cpu.state_mut().set(Gpr::RSP, stack.pointer);
    Ok(())
}

fn pop<const SIZE: usize, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let name = loadable(op.reg).ok_or(Stop::Exception(Exception::UNDEFINED))?;
    let mut stack = Stack::current(cpu.state());
    let selector = stack.pop(cpu, size_of_operand(SIZE))? as u16;
    load_now(cpu, name, selector)?;
    cpu.state_mut().set(Gpr::RSP, stack.pointer);
    shadow(cpu.state_mut(), name);
    Ok(())
}

const fn size_of_operand(bytes: usize) -> Size {
    match bytes {
        2 => Size::Two,
        4 => Size::Four,
        _ => Size::Eight,
    }
}

/// LDS, LES, LFS, LGS, LSS.
fn load_pointer<W: Word, const NAME: u8, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let name = loadable(NAME).ok_or(Stop::Unsupported)?;
    let at = op.linear(cpu, W::BYTES + 2, Access::Read)?;
    let offset: W = cpu.load(at, Access::Read)?;
    let selector: u16 = cpu.load(at.wrapping_add(W::BYTES as u64), Access::Read)?;
    load_now(cpu, name, selector)?;
    write_register(cpu.state_mut(), op.reg, offset);
    Ok(())
}

fn select_pointer<const NAME: u8, C: Cpu>(instruction: &Instruction) -> Run<C> {
    match instruction.op0_register().size() {
        2 => load_pointer::<u16, NAME, C>,
        4 => load_pointer::<u32, NAME, C>,
        _ => load_pointer::<u64, NAME, C>,
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_register().is_segment_register() => {
            Some(match instruction.op1_kind() {
                OpKind::Memory => to_segment::<M, C>,
                _ => to_segment::<R1, C>,
            })
        }
        Mnemonic::Mov if instruction.op1_register().is_segment_register() => {
            Some(match (instruction.op0_kind(), instruction.op0_register()) {
                (OpKind::Memory, _) => from_segment::<u16, M, C>,
                (_, register) => match register.size() {
                    2 => from_segment::<u16, R0, C>,
                    4 => from_segment::<u32, R0, C>,
                    _ => from_segment::<u64, R0, C>,
                },
            })
        }
        Mnemonic::Push if instruction.op0_register().is_segment_register() => {
            Some(match instruction.stack_pointer_increment() {
                -2 => push::<2, C>,
                -4 => push::<4, C>,
                _ => push::<8, C>,
            })
        }
        Mnemonic::Pop if instruction.op0_register().is_segment_register() => {
            Some(match instruction.stack_pointer_increment() {
                2 => pop::<2, C>,
                4 => pop::<4, C>,
                _ => pop::<8, C>,
            })
        }
        Mnemonic::Les => Some(select_pointer::<0, C>(instruction)),
        Mnemonic::Lss => Some(select_pointer::<2, C>(instruction)),
        Mnemonic::Lds => Some(select_pointer::<3, C>(instruction)),
        Mnemonic::Lfs => Some(select_pointer::<4, C>(instruction)),
        Mnemonic::Lgs => Some(select_pointer::<5, C>(instruction)),
        _ => None,
    }
}
