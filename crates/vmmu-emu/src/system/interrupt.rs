//! Through the interrupt table to a handler: real mode, and what all modes share.
//!
//! Key types: [`Request`], [`Source`]; key function: [`deliver`]. `gate` has protected and long mode.

use iced_x86::{Instruction, Mnemonic};

use crate::address::linear;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run, Seg};
use crate::operand::{M, Operand, R0};
use crate::state::{Gpr, SegmentName, State};
use crate::system::descriptor::{self, PROTECTION, Selector};
use crate::system::gate;
use crate::system::segment;
use crate::system::stack::{Size, Stack};
use crate::system::writes::Writes;
use crate::word::Word;

/// Where an interrupt comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// A device, or NMI.
    External,
    /// An instruction that faulted.
    Exception,
    /// INT n.
    Int,
    /// INT3 and INTO, which virtual-8086 code may always use.
    ShortInt,
    /// INT1: as if hardware had raised it.
    IceBreakpoint,
}

/// An interrupt to be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) vector: u8,
    pub(crate) code: Option<u16>,
    pub(crate) source: Source,
    /// The RIP to return to.
    pub(crate) rip: u64,
}

impl Request {
    /// The bit of error codes that says that the event came from outside the program (AMD APM vol. 2, section 8.4.1).
    pub(crate) const fn external(&self) -> u16 {
        match self.source {
            Source::Int | Source::ShortInt => 0,
            _ => 1,
        }
    }

    /// Says whether the gate's privilege level counts.
    pub(crate) const fn is_checked(&self) -> bool {
        matches!(self.source, Source::Int | Source::ShortInt)
    }

    /// Makes a fault of the table's entry.
    pub(crate) const fn entry_fault(&self, vector: u8) -> Stop {
        let code = (self.vector as u16) << 3 | 2 | self.external();
        Stop::Exception(Exception::with_code(vector, code))
    }

    /// Returns the flags to be saved: RF is set by faults, so that they don't hit the same breakpoint again (AMD APM vol. 2, section 13.1.3.4).
    pub(crate) fn saved_flags(&self, state: &State) -> u64 {
        let mut flags = state.flags;
        let is_fault = self.source == Source::Exception && !matches!(self.vector, 1 | 3 | 4);
        if is_fault {
            flags |= Flags::RF;
        }
        flags.bits()
    }
}

/// Delivers an interrupt, completely or not at all.
pub(crate) fn deliver(cpu: &mut impl Cpu, request: &Request) -> Result<(), Stop> {
    let state = cpu.state();
    if state.is_real() {
        real(cpu, request)?;
    } else if state.is_long() {
        gate::long(cpu, request)?;
    } else {
        gate::protected(cpu, request)?;
    }
    let state = cpu.state_mut();
    state.interrupt_shadow = false;
    state.trap_held = true;
    if request.vector == 1 {
        // The handler may use the debug registers (AMD APM vol. 2, section 13.1.1.4).
        state.dr[7] &= !(1 << 13);
    }
    Ok(())
}

/// Real mode: a table of far pointers (AMD APM vol. 2, section 8.6).
fn real(cpu: &mut impl Cpu, request: &Request) -> Result<(), Stop> {
    let state = cpu.state();
    let idtr = state.idtr;
    let offset = u64::from(request.vector) * 4;
    if offset + 3 > u64::from(idtr.limit) {
        return Err(request.entry_fault(PROTECTION));
    }
    let entry: u32 = descriptor::load(cpu, idtr.base, offset)?;
    let (target, selector) = (entry & 0xffff, (entry >> 16) as u16);
    let state = cpu.state();
    let cs = state.segment(SegmentName::Cs);
    if target > cs.limit {
        return Err(Exception::with_code(PROTECTION, request.external()).into());
    }
    let mut stack = Stack::current(state);
    let mut writes = Writes::<3>::new();
    for value in [state.flags.bits(), u64::from(cs.selector), request.rip] {
        stack.push(state, &mut writes, Size::Two, value)?;
    }
    writes.check(cpu)?;
    writes.commit(cpu)?;
    let state = cpu.state_mut();
    state.set(Gpr::RSP, stack.pointer);
    let cs = &mut state.segments[SegmentName::Cs as usize];
    *cs = segment::real(cs, selector);
    state
        .flags
        .remove(Flags::IF | Flags::TF | Flags::RF | Flags::AC);
    jump(state, u64::from(target));
    Ok(())
}

/// Goes to an instruction, from within one or between two.
pub(crate) const fn jump(state: &mut State, rip: u64) {
    state.next = rip;
    state.set_rip(rip);
}

/// Delivers a software interrupt from within its instruction.
fn software(cpu: &mut impl Cpu, vector: u8, source: Source) -> Result<(), Stop> {
    let state = cpu.state();
    let needs_level = source == Source::Int && state.is_virtual_8086();
    if needs_level && state.flags.iopl() != 3 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let request = Request {
        vector,
        code: None,
        source,
        rip: truncated_next(state),
    };
    deliver(cpu, &request)
}

/// Returns the following instruction's address, as wide as the code's pointer.
pub(crate) const fn truncated_next(state: &State) -> u64 {
    if state.is_64_bit() {
        state.next
    } else if state.segment(SegmentName::Cs).attributes & 1 << 10 != 0 {
        state.next & 0xffff_ffff
    } else {
        state.next & 0xffff
    }
}

fn int<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    software(cpu, op.imm as u8, Source::Int)
}

fn int3<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    software(cpu, 3, Source::ShortInt)
}

fn int1<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    software(cpu, 1, Source::IceBreakpoint)
}

fn into<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    if cpu.state().flags.contains(Flags::OF) {
        software(cpu, 4, Source::ShortInt)
    } else {
        Ok(())
    }
}

/// BOUND: a signed index between two bounds in memory.
fn bound<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let signed = |value: W| value.sign_extend() as i64;
    let index = signed(R0::get(cpu, op)?);
    let lower = signed(M::get(cpu, op)?);
    let offset = op.truncate(op.offset(cpu.state()).wrapping_add(W::BYTES as u64));
    let seg: Seg = op.seg;
    let at = linear(cpu.state(), seg, offset, W::BYTES, Access::Read)?;
    let upper = signed(cpu.load(at, Access::Read)?);
    if (lower..=upper).contains(&index) {
        Ok(())
    } else {
        Err(Exception::BOUND.into())
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.mnemonic() {
        Mnemonic::Int => int,
        Mnemonic::Int3 => int3,
        Mnemonic::Int1 => int1,
        Mnemonic::Into => into,
        Mnemonic::Bound if instruction.op0_register().size() == 2 => bound::<u16, C>,
        Mnemonic::Bound => bound::<u32, C>,
        _ => return None,
    })
}

/// Makes the fault that names a selector, while a request is delivered.
pub(crate) const fn selector_fault(request: &Request, selector: Selector, vector: u8) -> Stop {
    selector.fault(vector, request.external())
}
