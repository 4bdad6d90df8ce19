//! Interrupt and trap gates of protected and long mode, with the change to an inner level's stack.
//!
//! Key functions: [`protected`], [`long`].
//!
//! Invariant: everything is read and checked, and every store found possible, before the first store.

use crate::address::is_canonical;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::descriptor::{
    self, Descriptor, Found, INVALID_TSS, NOT_PRESENT, PROTECTION, Selector, fetch, kind,
};
use crate::system::interrupt::{Request, jump, selector_fault};
use crate::system::segment::{load_stack, null, null_stack, take};
use crate::system::stack::{Size, Stack, pointer_for};
use crate::system::task;
use crate::system::writes::Writes;

/// Enough for 32-bit virtual-8086 code: ten pushes, and the accessed bits of CS and SS.
type Stores = Writes<12>;

/// Delivers through a gate of protected mode (AMD APM vol. 2, section 8.7).
pub(crate) fn protected(cpu: &mut impl Cpu, request: &Request) -> Result<(), Stop> {
    let idtr = cpu.state().idtr;
    let offset = u64::from(request.vector) * 8;
    if offset + 7 > u64::from(idtr.limit) {
        return Err(request.entry_fault(PROTECTION));
    }
    let gate = Descriptor(descriptor::load(cpu, idtr.base, offset)?);
    let size = match gate.kind() {
        Some(kind::INTERRUPT_GATE | kind::TRAP_GATE) => Size::Four,
        Some(kind::INTERRUPT_GATE_16 | kind::TRAP_GATE_16) => Size::Two,
        Some(kind::TASK_GATE) => Size::Four,
        _ => return Err(request.entry_fault(PROTECTION)),
    };
    check_gate(cpu.state(), request, gate)?;
    if gate.kind() == Some(kind::TASK_GATE) {
        return task::interrupt(cpu, gate.gate_selector(), request);
    }
    let selector = gate.gate_selector();
    let found = find_code(cpu, selector, request)?;
    let offset = u64::from(gate.gate_offset()) & size.mask();
    let dpl = found.descriptor.dpl();
    let is_inner = !found.descriptor.is_conforming() && dpl < cpu.state().cpl;
    let entry = Entry {
        found,
        selector,
        offset,
        size,
        masks: matches!(
            gate.kind(),
            Some(kind::INTERRUPT_GATE | kind::INTERRUPT_GATE_16)
        ),
    };
    if cpu.state().is_virtual_8086() && (!is_inner || dpl != 0) {
        return Err(selector_fault(request, selector, PROTECTION));
    }
    if is_inner {
        entry.inner(cpu, request)
    } else {
        entry.same(cpu, request)
    }
}

/// Checks a gate's privilege level and presence.
fn check_gate(state: &State, request: &Request, gate: Descriptor) -> Result<(), Stop> {
    if request.is_checked() && gate.dpl() < state.cpl {
        return Err(request.entry_fault(PROTECTION));
    }
    if !gate.is_present() {
        return Err(request.entry_fault(NOT_PRESENT));
    }
    Ok(())
}

/// Finds the code segment of a handler.
fn find_code(cpu: &mut impl Cpu, selector: Selector, request: &Request) -> Result<Found, Stop> {
    if selector.is_null() {
        return Err(Exception::with_code(PROTECTION, request.external()).into());
    }
    let found = fetch(cpu, selector, PROTECTION, request.external())?;
    let descriptor = found.descriptor;
    if !descriptor.is_code() || descriptor.dpl() > cpu.state().cpl {
        return Err(selector_fault(request, selector, PROTECTION));
    }
    if !descriptor.is_present() {
        return Err(selector_fault(request, selector, NOT_PRESENT));
    }
    Ok(found)
}

/// Where a gate of protected mode leads.
struct Entry {
    found: Found,
    selector: Selector,
    offset: u64,
    size: Size,
    /// Interrupts are off in the handler.
    masks: bool,
}

impl Entry {
    /// Enters at the same level, on the same stack.
    fn same(&self, cpu: &mut impl Cpu, request: &Request) -> Result<(), Stop> {
        let mut writes = Stores::new();
        let cpl = cpu.state().cpl;
        let cs = self.code(cpl, request, &mut writes)?;
        let state = cpu.state();
        let mut stack = Stack::current(state);
        self.push_frame(state, &mut stack, &mut writes, request)?;
        writes.check(cpu)?;
        writes.commit(cpu)?;
        let state = cpu.state_mut();
        state.set(Gpr::RSP, stack.pointer);
        self.enter(state, cs);
        Ok(())
    }

    /// Enters an inner level, on its stack; data segments of virtual-8086 code are saved and become null.
    fn inner(&self, cpu: &mut impl Cpu, request: &Request) -> Result<(), Stop> {
        let cpl = self.found.descriptor.dpl();
        let external = request.external();
        let mut writes = Stores::new();
        let (ss, pointer) = inner_stack(cpu, cpl, external, &mut writes)?;
        let cs = self.code(cpl, request, &mut writes)?;
        let state = cpu.state();
        let pointer = pointer_for(false, &ss, state.get(Gpr::RSP), pointer);
        let mut stack = Stack::inner(ss, pointer, external);
        let was_virtual = state.is_virtual_8086();
        if was_virtual {
            for name in [
                SegmentName::Gs,
                SegmentName::Fs,
                SegmentName::Ds,
                SegmentName::Es,
            ] {
                let selector = state.segment(name).selector;
                stack.push(state, &mut writes, self.size, selector.into())?;
            }
        }
        let old = state.segment(SegmentName::Ss).selector;
        stack.push(state, &mut writes, self.size, old.into())?;
        stack.push(state, &mut writes, self.size, state.get(Gpr::RSP))?;
        self.push_frame(state, &mut stack, &mut writes, request)?;
        writes.check(cpu)?;
        writes.commit(cpu)?;
        let state = cpu.state_mut();
        if was_virtual {
            for name in [
                SegmentName::Gs,
                SegmentName::Fs,
                SegmentName::Ds,
                SegmentName::Es,
            ] {
                state.segments[name as usize] = null(0);
            }
        }
        state.segments[SegmentName::Ss as usize] = ss;
        state.set(Gpr::RSP, stack.pointer);
        state.cpl = cpl;
        self.enter(state, cs);
        Ok(())
    }

    /// Checks the offset, and returns what CS is to hold.
    fn code(&self, cpl: u8, request: &Request, writes: &mut Stores) -> Result<Segment, Stop> {
        let cs = take(&self.found, self.selector.with_rpl(cpl), writes)?;
        if self.offset > u64::from(cs.limit) {
            return Err(Exception::with_code(PROTECTION, request.external()).into());
        }
        Ok(cs)
    }

    fn push_frame(
        &self,
        state: &State,
        stack: &mut Stack,
        writes: &mut Stores,
        request: &Request,
    ) -> Result<(), Stop> {
        let cs = state.segment(SegmentName::Cs).selector;
        for value in [request.saved_flags(state), cs.into(), request.rip] {
            stack.push(state, writes, self.size, value)?;
        }
        if let Some(code) = request.code {
            stack.push(state, writes, self.size, code.into())?;
        }
        Ok(())
    }

    fn enter(&self, state: &mut State, cs: Segment) {
        state.segments[SegmentName::Cs as usize] = cs;
        clear_flags(state, self.masks);
        jump(state, self.offset);
    }
}

/// Clears the flags that no handler begins with (AMD APM vol. 2, section 8.7.1).
fn clear_flags(state: &mut State, masks: bool) {
    state
        .flags
        .remove(Flags::TF | Flags::NT | Flags::RF | Flags::VM);
    if masks {
        state.flags.remove(Flags::IF);
    }
}

/// Reads an inner level's stack from the task state of protected mode (AMD APM vol. 2, section 12.2.3), and plans SS's accessed bit.
pub(crate) fn inner_stack<const N: usize, C: Cpu>(
    cpu: &mut C,
    cpl: u8,
    external: u16,
    writes: &mut Writes<N>,
) -> Result<(Segment, u64), Stop> {
    let tr = cpu.state().tr;
    let level = u64::from(cpl);
    let is_16_bit = tr.attributes & 8 == 0;
    let (at, last) = if is_16_bit {
        (2 + level * 4, 5 + level * 4)
    } else {
        (4 + level * 8, 9 + level * 8)
    };
    if last > u64::from(tr.limit) || tr.attributes & 1 << 7 == 0 {
        return Err(Selector(tr.selector).fault(INVALID_TSS, external));
    }
    let (pointer, selector) = if is_16_bit {
        let pointer: u16 = descriptor::load(cpu, tr.base, at)?;
        let selector: u16 = descriptor::load(cpu, tr.base, at + 2)?;
        (u64::from(pointer), selector)
    } else {
        let pointer: u32 = descriptor::load(cpu, tr.base, at)?;
        let selector: u16 = descriptor::load(cpu, tr.base, at + 4)?;
        (u64::from(pointer), selector)
    };
    let ss = load_stack(cpu, Selector(selector), cpl, INVALID_TSS, external, writes)?;
    Ok((ss, pointer))
}

/// Reads a stack pointer from the task state of long mode: of a level, or of the interrupt stack table (AMD APM vol. 2, section 12.2.5).
pub(crate) fn long_stack(cpu: &mut impl Cpu, at: u64, external: u16) -> Result<u64, Stop> {
    let tr = cpu.state().tr;
    if at + 7 > u64::from(tr.limit) || tr.attributes & 1 << 7 == 0 {
        return Err(Selector(tr.selector).fault(INVALID_TSS, external));
    }
    descriptor::load(cpu, tr.base, at)
}

/// Returns where the task state of long mode has a level's stack pointer.
pub(crate) const fn level_offset(cpl: u8) -> u64 {
    4 + 8 * cpl as u64
}

/// Delivers through a gate of long mode (AMD APM vol. 2, section 8.9).
pub(crate) fn long(cpu: &mut impl Cpu, request: &Request) -> Result<(), Stop> {
    let external = request.external();
    let idtr = cpu.state().idtr;
    let offset = u64::from(request.vector) * 16;
    if offset + 15 > u64::from(idtr.limit) {
        return Err(request.entry_fault(PROTECTION));
    }
    let gate = Descriptor(descriptor::load(cpu, idtr.base, offset)?);
    let high: u64 = descriptor::load(cpu, idtr.base, offset + 8)?;
    let masks = match gate.kind() {
        Some(kind::INTERRUPT_GATE) => true,
        Some(kind::TRAP_GATE) => false,
        _ => return Err(request.entry_fault(PROTECTION)),
    };
    check_gate(cpu.state(), request, gate)?;
    let selector = gate.gate_selector();
    let found = find_code(cpu, selector, request)?;
    if !found.descriptor.is_long() || found.descriptor.is_big() {
        return Err(selector_fault(request, selector, PROTECTION));
    }
    let target = u64::from(gate.gate_offset()) | high << 32;
    if !is_canonical(cpu.state(), target) {
        return Err(Exception::with_code(PROTECTION, external).into());
    }
    let old_cpl = cpu.state().cpl;
    let is_inner = !found.descriptor.is_conforming() && found.descriptor.dpl() < old_cpl;
    let cpl = if is_inner {
        found.descriptor.dpl()
    } else {
        old_cpl
    };
    let table = gate.0 >> 32 & 7;
    let pointer = match (table, is_inner) {
        (0, true) => long_stack(cpu, level_offset(cpl), external)?,
        (0, false) => cpu.state().get(Gpr::RSP),
        (n, _) => long_stack(cpu, 0x1c + 8 * n, external)?,
    };
    let access = if is_inner {
        Access::SystemWrite
    } else {
        Access::Write
    };
    let mut writes = Writes::<7>::new();
    let mut stack = Stack::flat(pointer & !15, access, external);
    let state = cpu.state();
    for value in [
        u64::from(state.segment(SegmentName::Ss).selector),
        state.get(Gpr::RSP),
        request.saved_flags(state),
        u64::from(state.segment(SegmentName::Cs).selector),
        request.rip,
    ] {
        stack.push(state, &mut writes, Size::Eight, value)?;
    }
    if let Some(code) = request.code {
        stack.push(state, &mut writes, Size::Eight, code.into())?;
    }
    let cs = take(&found, selector.with_rpl(cpl), &mut writes)?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    let state = cpu.state_mut();
    if is_inner {
        state.segments[SegmentName::Ss as usize] = null_stack(cpl.into(), cpl);
    }
    state.segments[SegmentName::Cs as usize] = cs;
    state.cpl = cpl;
    state.set(Gpr::RSP, stack.pointer);
    clear_flags(state, masks);
    jump(state, target);
    Ok(())
}
