//! Task switches of protected mode: by JMP, CALL, IRET, and interrupts through a task gate.
//!
//! Key functions: [`branch`], [`back`], [`interrupt`].
//!
//! Invariants
//! 1. Everything that can fail in the old task does so before it changes.
//! 2. A fault of loading the new task's segments is the new task's: the switch has happened, and RIP says so (AMD APM vol. 2, section 12.3.2).

use crate::address::linear;
use crate::cpu::{Access, Control, Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::Seg;
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::control::cr0;
use crate::system::descriptor::{
    self, Descriptor, Found, INVALID_TSS, NOT_PRESENT, PROTECTION, Selector, fetch, kind,
};
use crate::system::far::Way;
use crate::system::interrupt::{Request, jump, truncated_next};
use crate::system::segment::{load_stack, null, null_stack, take, virtual_8086};
use crate::system::stack::{Size, Stack};
use crate::system::tables::{find_ldt, take_task};
use crate::system::writes::Writes;

/// 14 or 16 saved registers, two busy bits, the link.
type Stores = Writes<20>;

/// DR6: a task switch to a task that asked for a trap.
const TASK_SWITCH: u64 = 1 << 15;

/// In the order of a task state.
const SEGMENTS: [SegmentName; 6] = [
    SegmentName::Es,
    SegmentName::Cs,
    SegmentName::Ss,
    SegmentName::Ds,
    SegmentName::Fs,
    SegmentName::Gs,
];

/// How a task is left, and whether the new one can return to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Jump,
    /// CALL and interrupts.
    Nest,
    Return,
}

/// The layout of a task state (AMD APM vol. 2, figures 12-5 and 12-6).
struct Layout {
    size: Size,
    ip: u64,
    selectors: u64,
    segments: usize,
    ldt: u64,
    limit: u32,
}

const LAYOUT_16: Layout = Layout {
    size: Size::Two,
    ip: 0x0e,
    selectors: 0x22,
    segments: 4,
    ldt: 0x2a,
    limit: 0x2b,
};
const LAYOUT_32: Layout = Layout {
    size: Size::Four,
    ip: 0x20,
    selectors: 0x48,
    segments: 6,
    ldt: 0x60,
    limit: 0x67,
};

const fn layout(type_bits: u8) -> &'static Layout {
    if type_bits & 8 == 0 {
        &LAYOUT_16
    } else {
        &LAYOUT_32
    }
}

/// What a task state holds.
struct Task {
    cr3: u32,
    ip: u64,
    flags: u64,
    registers: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    traps: bool,
}

/// JMP or CALL to a task, or to a task gate.
pub(crate) fn branch(
    cpu: &mut impl Cpu,
    way: Way,
    selector: Selector,
    descriptor: Descriptor,
) -> Result<(), Stop> {
    if descriptor.dpl() < cpu.state().cpl.max(selector.rpl()) {
        return Err(selector.fault(PROTECTION, 0));
    }
    let mut task = selector;
    if descriptor.kind() == Some(kind::TASK_GATE) {
        if !descriptor.is_present() {
            return Err(selector.fault(NOT_PRESENT, 0));
        }
        task = descriptor.gate_selector();
    }
    let kind = match way {
        Way::Jump => Kind::Jump,
        Way::Call => Kind::Nest,
    };
    let found = find_free(cpu, task, 0)?;
    let rip = truncated_next(cpu.state());
    let flags = cpu.state().flags.bits();
    switch(cpu, task, found, kind, rip, flags, 0)
}

/// IRET with NT: back to the task that the current one is linked to.
pub(crate) fn back(cpu: &mut impl Cpu) -> Result<(), Stop> {
    let tr = cpu.state().tr;
    let link: u16 = descriptor::load(cpu, tr.base, 0)?;
    let selector = Selector(link);
    if selector.is_local() || selector.is_null() {
        return Err(selector.fault(INVALID_TSS, 0));
    }
    let found = fetch(cpu, selector, INVALID_TSS, 0)?;
    if !matches!(
        found.descriptor.kind(),
        Some(kind::TSS_BUSY | kind::TSS_16_BUSY)
    ) {
        return Err(selector.fault(INVALID_TSS, 0));
    }
    if !found.descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, 0));
    }
    let state = cpu.state();
    let flags = state.flags.difference(Flags::NT).bits();
    let rip = truncated_next(state);
    switch(cpu, selector, found, Kind::Return, rip, flags, 0)
}

/// An interrupt through a task gate; the error code goes to the new task's stack.
pub(crate) fn interrupt(
    cpu: &mut impl Cpu,
    selector: Selector,
    request: &Request,
) -> Result<(), Stop> {
    let external = request.external();
    let found = find_free(cpu, selector, external)?;
    let size = layout(found.descriptor.type_bits()).size;
    let flags = request.saved_flags(cpu.state());
    switch(
        cpu,
        selector,
        found,
        Kind::Nest,
        request.rip,
        flags,
        external,
    )?;
    let Some(code) = request.code else {
        return Ok(());
    };
    let state = cpu.state();
    let mut stack = Stack::current(state);
    let mut writes = Writes::<1>::new();
    stack.push(state, &mut writes, size, code.into())?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    cpu.state_mut().set(Gpr::RSP, stack.pointer);
    Ok(())
}

/// Finds a task that is not busy.
fn find_free(cpu: &mut impl Cpu, selector: Selector, external: u16) -> Result<Found, Stop> {
    if selector.is_local() || selector.is_null() {
        return Err(selector.fault(PROTECTION, external));
    }
    let found = fetch(cpu, selector, PROTECTION, external)?;
    if !matches!(found.descriptor.kind(), Some(kind::TSS | kind::TSS_16)) {
        return Err(selector.fault(PROTECTION, external));
    }
    if !found.descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, external));
    }
    Ok(found)
}

/// Switches.
fn switch(
    cpu: &mut impl Cpu,
    selector: Selector,
    found: Found,
    kind: Kind,
    rip: u64,
    flags: u64,
    external: u16,
) -> Result<(), Stop> {
    let new = layout(found.descriptor.type_bits());
    if found.descriptor.limit() < new.limit {
        return Err(selector.fault(INVALID_TSS, external));
    }
    let task = read(cpu, found.base(), new)?;
    let mut writes = Stores::new();
    save(cpu, rip, flags, &mut writes)?;
    let old = cpu.state().tr.selector;
    if kind != Kind::Nest {
        release(cpu, Selector(old), &mut writes)?;
    } else {
        let at = descriptor::system_address(cpu.state(), found.base(), 0)?;
        writes.add(at, old.into(), 2, Access::SystemWrite)?;
    }
    let tr = take_task(&found, selector, &mut writes)?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    if cpu.state().cr0 & cr0::PG != 0 && new.size == Size::Four {
        let written = cpu.write_control(Control::Cr3, task.cr3.into());
        if let Err(stop) = written {
            // What was stored is stored again the same when this is repeated, but for the busy bit.
            let byte = found.descriptor.type_byte();
            cpu.store(found.at.wrapping_add(5), byte, Access::SystemWrite)?;
            return Err(stop);
        }
    }
    let state = cpu.state_mut();
    state.tr = tr;
    enter(state, &task, kind, new);
    load_segments(cpu, &task, external)
}

/// Reads a task state.
fn read(cpu: &mut impl Cpu, base: u64, layout: &Layout) -> Result<Task, Stop> {
    let is_32_bit = layout.size == Size::Four;
    let step = layout.size.bytes() as u64;
    let mut task = Task {
        cr3: 0,
        ip: word(cpu, base, layout.ip, layout)?,
        flags: word(cpu, base, layout.ip + step, layout)?,
        registers: [0; 8],
        selectors: [0; 6],
        ldt: descriptor::load(cpu, base, layout.ldt)?,
        traps: false,
    };
    for (n, register) in (2..).zip(&mut task.registers) {
        *register = word(cpu, base, layout.ip + n * step, layout)?;
    }
    for (n, selector) in (0..).zip(&mut task.selectors[..layout.segments]) {
        *selector = descriptor::load(cpu, base, layout.selectors + n * step)?;
    }
    if is_32_bit {
        task.cr3 = descriptor::load(cpu, base, 0x1c)?;
        task.traps = descriptor::load::<u8>(cpu, base, 0x64)? & 1 != 0;
    }
    Ok(task)
}

fn word(cpu: &mut impl Cpu, base: u64, at: u64, layout: &Layout) -> Result<u64, Stop> {
    Ok(match layout.size {
        Size::Two => descriptor::load::<u16>(cpu, base, at)?.into(),
        _ => descriptor::load::<u32>(cpu, base, at)?.into(),
    })
}

/// Plans to save the current task.
fn save(cpu: &mut impl Cpu, rip: u64, flags: u64, writes: &mut Stores) -> Result<(), Stop> {
    let state = cpu.state();
    let tr = state.tr;
    let layout = layout((tr.attributes & 15) as u8);
    if tr.limit < layout.limit || tr.attributes & 1 << 7 == 0 {
        return Err(Selector(tr.selector).fault(INVALID_TSS, 0));
    }
    let bytes = layout.size.bytes();
    let mut add = |offset, value: u64, bytes| {
        let at = descriptor::system_address(state, tr.base, offset)?;
        writes.add(at, value & layout.size.mask(), bytes, Access::SystemWrite)
    };
    let step = bytes as u64;
    add(layout.ip, rip, bytes)?;
    add(layout.ip + step, flags, bytes)?;
    for n in 0..8 {
        let value = state.get(Gpr::new(n));
        add(layout.ip + (2 + u64::from(n)) * step, value, bytes)?;
    }
    for (n, name) in (0..).zip(&SEGMENTS[..layout.segments]) {
        let selector = state.segment(*name).selector;
        add(layout.selectors + n * step, selector.into(), 2)?;
    }
    Ok(())
}

/// Plans to clear the old task's busy bit.
fn release(cpu: &mut impl Cpu, selector: Selector, writes: &mut Stores) -> Result<(), Stop> {
    let found = fetch(cpu, selector, INVALID_TSS, 0)?;
    let byte = found.descriptor.type_byte() & !kind::BUSY;
    let at = found.at.wrapping_add(5);
    writes.add(at, byte.into(), 1, Access::SystemWrite)
}

/// Loads all that can't fail. Segments hold their selectors only, until they are loaded.
fn enter(state: &mut State, task: &Task, kind: Kind, layout: &Layout) {
    // The upper halves after a 16-bit switch are undefined.
    let above = if layout.size == Size::Two {
        0xffff_0000
    } else {
        0
    };
    for (n, value) in (0..).zip(task.registers) {
        state.set(Gpr::new(n), value | above);
    }
    let known = Flags::from_bits_truncate(task.flags | above & state.flags.bits());
    state.flags = known | Flags::ONE;
    if kind == Kind::Nest {
        state.flags |= Flags::NT;
    }
    state.cr0 |= cr0::TS;
    // Local breakpoints are the old task's (AMD APM vol. 2, section 13.1.1.4).
    state.dr[7] &= !0x155;
    for (name, selector) in SEGMENTS.into_iter().zip(task.selectors) {
        state.segments[name as usize] = null(selector);
    }
    state.ldtr = null(task.ldt);
    state.cpl = Selector(task.selectors[SegmentName::Cs as usize]).rpl();
    state.segments[SegmentName::Ss as usize].attributes = null_stack(0, state.cpl).attributes;
    state.trap_held = true;
    if task.traps {
        state.trap_pending = TASK_SWITCH;
    }
    jump(state, task.ip);
}

/// Loads the new task's segments.
fn load_segments(cpu: &mut impl Cpu, task: &Task, external: u16) -> Result<(), Stop> {
    let ldtr = find_ldt(cpu, Selector(task.ldt), INVALID_TSS)?;
    let state = cpu.state_mut();
    state.ldtr = ldtr;
    if state.is_virtual_8086() {
        for (segment, selector) in state.segments.iter_mut().zip(task.selectors) {
            *segment = virtual_8086(selector);
        }
        state.cpl = 3;
    } else {
        let mut writes = Writes::<6>::new();
        let segments = find_segments(cpu, task, external, &mut writes)?;
        writes.check(cpu)?;
        writes.commit(cpu)?;
        cpu.state_mut().segments = segments;
    }
    linear(cpu.state(), Seg::Cs, task.ip, 1, Access::Read).map(drop)
}

/// Finds what the new task's segment registers are to hold (AMD APM vol. 2, section 12.3.2).
fn find_segments(
    cpu: &mut impl Cpu,
    task: &Task,
    external: u16,
    writes: &mut Writes<6>,
) -> Result<[Segment; 6], Stop> {
    let cpl = cpu.state().cpl;
    let mut segments = cpu.state().segments;
    for name in SEGMENTS {
        let selector = Selector(task.selectors[name as usize]);
        segments[name as usize] = match name {
            SegmentName::Ss => load_stack(cpu, selector, cpl, INVALID_TSS, external, writes)?,
            SegmentName::Cs => find_segment(cpu, selector, external, true, writes)?,
            _ if selector.is_null() => null(selector.0),
            _ => find_segment(cpu, selector, external, false, writes)?,
        };
    }
    Ok(segments)
}

/// Finds the code segment, whose selector's level is the new one, or a data segment.
fn find_segment(
    cpu: &mut impl Cpu,
    selector: Selector,
    external: u16,
    is_code: bool,
    writes: &mut Writes<6>,
) -> Result<Segment, Stop> {
    if selector.is_null() {
        return Err(Exception::with_code(INVALID_TSS, external).into());
    }
    let found = fetch(cpu, selector, INVALID_TSS, external)?;
    let descriptor = found.descriptor;
    let level = selector.rpl().max(cpu.state().cpl);
    let allowed = match (is_code, descriptor.is_conforming()) {
        (true, true) => descriptor.dpl() <= level,
        (true, false) => descriptor.is_code() && descriptor.dpl() == level,
        (false, true) => descriptor.is_readable(),
        (false, false) => descriptor.is_readable() && descriptor.dpl() >= level,
    };
    if !allowed {
        return Err(selector.fault(INVALID_TSS, external));
    }
    if !descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, external));
    }
    take(&found, selector, writes)
}
