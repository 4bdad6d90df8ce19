//! Far JMP and CALL: to code segments, and through call gates; tasks are `task`'s. RET and IRET are `far_return`'s.
//!
//! Key type: [`Target`]; key function: [`branch`].

use iced_x86::{Code, Instruction};

use crate::address::is_canonical;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::op::{Op, Run};
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::descriptor::{
    Descriptor, Found, NOT_PRESENT, PROTECTION, Selector, complete, fetch, kind,
};
use crate::system::gate::{inner_stack, level_offset, long_stack};
use crate::system::interrupt::truncated_next;
use crate::system::segment::{null_stack, real, take, virtual_8086};
use crate::system::stack::{Size, Stack, pointer_for};
use crate::system::task;
use crate::system::writes::Writes;
use crate::word::Word;

/// How control goes far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Jump,
    Call,
}

/// Enough for a call gate: 31 parameters, four more pushes, two accessed bits.
type Stores = Writes<40>;

/// A place in a code segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) cs: Segment,
    pub(crate) offset: u64,
}

impl Target {
    /// Goes there.
    pub(crate) const fn enter(&self, state: &mut State) {
        state.segments[SegmentName::Cs as usize] = self.cs;
        state.next = self.offset;
    }
}

/// Checks a target's offset: its limit, or that it is canonical.
pub(crate) fn check_offset(state: &State, cs: &Segment, offset: u64) -> Result<(), Stop> {
    let is_64_bit = state.is_long() && cs.attributes & 1 << 9 != 0;
    let allowed = if is_64_bit {
        is_canonical(state, offset)
    } else {
        offset <= u64::from(cs.limit)
    };
    if allowed {
        Ok(())
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Raises #GP for a code segment that claims to be both 64-bit and 32-bit (AMD APM vol. 2, section 4.8.1).
pub(crate) fn check_width(
    state: &State,
    selector: Selector,
    descriptor: Descriptor,
) -> Result<(), Stop> {
    if state.is_long() && descriptor.is_long() && descriptor.is_big() {
        return Err(selector.fault(PROTECTION, 0));
    }
    Ok(())
}

/// Executes a far JMP or CALL.
pub(crate) fn branch(
    cpu: &mut impl Cpu,
    way: Way,
    selector: Selector,
    offset: u64,
    size: Size,
) -> Result<(), Stop> {
    let state = cpu.state();
    if state.is_real() || state.is_virtual_8086() {
        return simple(cpu, way, selector, offset, size);
    }
    if selector.is_null() {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let found = fetch(cpu, selector, PROTECTION, 0)?;
    if found.descriptor.is_code() {
        return to_code(cpu, way, selector, found, offset, size);
    }
    let is_long = cpu.state().is_long();
    match found.descriptor.kind() {
        Some(kind::CALL_GATE) => through_gate(cpu, way, selector, found),
        Some(kind::CALL_GATE_16) if !is_long => through_gate(cpu, way, selector, found),
        Some(kind::TSS | kind::TSS_16 | kind::TASK_GATE) if !is_long => {
            task::branch(cpu, way, selector, found.descriptor)
        }
        _ => Err(selector.fault(PROTECTION, 0)),
    }
}

/// Real and virtual-8086 mode.
fn simple(
    cpu: &mut impl Cpu,
    way: Way,
    selector: Selector,
    offset: u64,
    size: Size,
) -> Result<(), Stop> {
    let state = cpu.state();
    let old = state.segment(SegmentName::Cs);
    let cs = if state.is_real() {
        real(old, selector.0)
    } else {
        virtual_8086(selector.0)
    };
    check_offset(state, &cs, offset)?;
    finish(cpu, way, Target { cs, offset }, size, Stores::new())
}

/// Pushes the return address of a call, and goes.
fn finish(
    cpu: &mut impl Cpu,
    way: Way,
    target: Target,
    size: Size,
    mut writes: Stores,
) -> Result<(), Stop> {
    let state = cpu.state();
    let mut stack = Stack::current(state);
    if way == Way::Call {
        let cs = state.segment(SegmentName::Cs).selector;
        stack.push(state, &mut writes, size, cs.into())?;
        stack.push(state, &mut writes, size, truncated_next(state))?;
    }
    writes.check(cpu)?;
    writes.commit(cpu)?;
    let state = cpu.state_mut();
    if way == Way::Call {
        state.set(Gpr::RSP, stack.pointer);
    }
    target.enter(state);
    Ok(())
}

/// Straight to a code segment, at the same level (AMD APM vol. 2, section 4.11.1).
fn to_code(
    cpu: &mut impl Cpu,
    way: Way,
    selector: Selector,
    found: Found,
    offset: u64,
    size: Size,
) -> Result<(), Stop> {
    let state = cpu.state();
    let (cpl, descriptor) = (state.cpl, found.descriptor);
    check_width(state, selector, descriptor)?;
    let allowed = if descriptor.is_conforming() {
        descriptor.dpl() <= cpl
    } else {
        descriptor.dpl() == cpl && selector.rpl() <= cpl
    };
    if !allowed {
        return Err(selector.fault(PROTECTION, 0));
    }
    if !descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, 0));
    }
    let mut writes = Stores::new();
    let cs = take(&found, selector.with_rpl(cpl), &mut writes)?;
    check_offset(state, &cs, offset)?;
    finish(cpu, way, Target { cs, offset }, size, writes)
}

/// Through a call gate (AMD APM vol. 2, section 4.11.2).
fn through_gate(cpu: &mut impl Cpu, way: Way, selector: Selector, gate: Found) -> Result<(), Stop> {
    let state = cpu.state();
    let (cpl, is_long) = (state.cpl, state.is_long());
    if gate.descriptor.dpl() < cpl.max(selector.rpl()) {
        return Err(selector.fault(PROTECTION, 0));
    }
    if !gate.descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, 0));
    }
    let gate = complete(cpu, gate, selector, PROTECTION, 0)?;
    let code = gate.descriptor.gate_selector();
    if code.is_null() {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let found = fetch(cpu, code, PROTECTION, 0)?;
    let descriptor = found.descriptor;
    let is_same = descriptor.is_conforming() || descriptor.dpl() == cpl;
    let wide = descriptor.is_long() && !descriptor.is_big();
    if !descriptor.is_code()
        || descriptor.dpl() > cpl
        || is_long && !wide
        || way == Way::Jump && !is_same
    {
        return Err(code.fault(PROTECTION, 0));
    }
    if !descriptor.is_present() {
        return Err(code.fault(NOT_PRESENT, 0));
    }
    let (size, offset) = match gate.descriptor.kind() {
        Some(kind::CALL_GATE_16) => (Size::Two, u64::from(gate.descriptor.gate_offset() & 0xffff)),
        _ if is_long => {
            let low = u64::from(gate.descriptor.gate_offset());
            (Size::Eight, low | gate.high << 32)
        }
        _ => (Size::Four, u64::from(gate.descriptor.gate_offset())),
    };
    let new_cpl = if is_same { cpl } else { descriptor.dpl() };
    let mut writes = Stores::new();
    let cs = take(&found, code.with_rpl(new_cpl), &mut writes)?;
    check_offset(cpu.state(), &cs, offset)?;
    let target = Target { cs, offset };
    if is_same {
        return finish_gate(cpu, way, target, size, writes);
    }
    if is_long {
        inner_long(cpu, target, new_cpl, writes)
    } else {
        let parameters = (gate.descriptor.0 >> 32 & 31) as usize;
        inner(cpu, target, new_cpl, size, parameters, writes)
    }
}

/// At the same level: as straight there, but that in long mode the pushes are the 64-bit ones of the code that is entered.
fn finish_gate(
    cpu: &mut impl Cpu,
    way: Way,
    target: Target,
    size: Size,
    mut writes: Stores,
) -> Result<(), Stop> {
    let state = cpu.state();
    if size != Size::Eight || way == Way::Jump {
        return finish(cpu, way, target, size, writes);
    }
    let mut stack = Stack::flat(state.get(Gpr::RSP), Access::Write, 0);
    let cs = state.segment(SegmentName::Cs).selector;
    stack.push(state, &mut writes, size, cs.into())?;
    stack.push(state, &mut writes, size, truncated_next(state))?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    let state = cpu.state_mut();
    state.set(Gpr::RSP, stack.pointer);
    target.enter(state);
    Ok(())
}

/// To an inner level of protected mode: the parameters move to its stack.
fn inner(
    cpu: &mut impl Cpu,
    target: Target,
    cpl: u8,
    size: Size,
    parameters: usize,
    mut writes: Stores,
) -> Result<(), Stop> {
    let (ss, pointer) = inner_stack(cpu, cpl, 0, &mut writes)?;
    let old = Stack::current(cpu.state());
    let state = cpu.state();
    let pointer = pointer_for(false, &ss, state.get(Gpr::RSP), pointer);
    let mut stack = Stack::inner(ss, pointer, 0);
    let selector = state.segment(SegmentName::Ss).selector;
    stack.push(state, &mut writes, size, selector.into())?;
    stack.push(state, &mut writes, size, state.get(Gpr::RSP))?;
    for n in (0..parameters).rev() {
        let skip = n * size.bytes();
        let value = old.peek(cpu, size, skip as u64)?;
        stack.push(cpu.state(), &mut writes, size, value)?;
    }
    let state = cpu.state();
    let selector = state.segment(SegmentName::Cs).selector;
    stack.push(state, &mut writes, size, selector.into())?;
    stack.push(state, &mut writes, size, truncated_next(state))?;
    enter_inner(cpu, target, cpl, ss, stack, &writes)
}

/// To an inner level of long mode: its stack segment is null.
fn inner_long(cpu: &mut impl Cpu, target: Target, cpl: u8, mut writes: Stores) -> Result<(), Stop> {
    let pointer = long_stack(cpu, level_offset(cpl), 0)?;
    let mut stack = Stack::flat(pointer, Access::SystemWrite, 0);
    let state = cpu.state();
    for value in [
        u64::from(state.segment(SegmentName::Ss).selector),
        state.get(Gpr::RSP),
        u64::from(state.segment(SegmentName::Cs).selector),
        truncated_next(state),
    ] {
        stack.push(state, &mut writes, Size::Eight, value)?;
    }
    enter_inner(
        cpu,
        target,
        cpl,
        null_stack(cpl.into(), cpl),
        stack,
        &writes,
    )
}

fn enter_inner(
    cpu: &mut impl Cpu,
    target: Target,
    cpl: u8,
    ss: Segment,
    stack: Stack,
    writes: &Stores,
) -> Result<(), Stop> {
    writes.check(cpu)?;
    writes.commit(cpu)?;
    let state = cpu.state_mut();
    state.segments[SegmentName::Ss as usize] = ss;
    state.set(Gpr::RSP, stack.pointer);
    state.cpl = cpl;
    target.enter(state);
    Ok(())
}

/// The target is in the instruction.
fn immediate<W: Word, const CALL: bool, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let selector = Selector((op.imm >> 32) as u16);
    let offset = op.imm & 0xffff_ffff;
    branch(cpu, way(CALL), selector, offset, size_of::<W>())
}

/// The target is in memory, the offset first.
fn indirect<W: Word, const CALL: bool, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let at = op.linear(cpu, W::BYTES + 2, Access::Read)?;
    let offset = cpu.load::<W>(at, Access::Read)?.zero_extend();
    let at = at.wrapping_add(W::BYTES as u64);
    let selector = Selector(cpu.load(at, Access::Read)?);
    branch(cpu, way(CALL), selector, offset, size_of::<W>())
}

const fn way(call: bool) -> Way {
    if call { Way::Call } else { Way::Jump }
}

const fn size_of<W: Word>() -> Size {
    match W::BYTES {
        2 => Size::Two,
        4 => Size::Four,
        _ => Size::Eight,
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    Some(match instruction.code() {
        Code::Jmp_ptr1616 => immediate::<u16, false, C>,
        Code::Jmp_ptr1632 => immediate::<u32, false, C>,
        Code::Jmp_m1616 => indirect::<u16, false, C>,
        Code::Jmp_m1632 => indirect::<u32, false, C>,
        Code::Jmp_m1664 => indirect::<u64, false, C>,
        Code::Call_ptr1616 => immediate::<u16, true, C>,
        Code::Call_ptr1632 => immediate::<u32, true, C>,
        Code::Call_m1616 => indirect::<u16, true, C>,
        Code::Call_m1632 => indirect::<u32, true, C>,
        Code::Call_m1664 => indirect::<u64, true, C>,
        _ => return None,
    })
}
