//! The descriptor-table registers, the task register, and the bases of FS and GS.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::address::is_canonical;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0};
use crate::state::{Segment, SegmentName, Table};
use crate::system::control::cr4;
use crate::system::descriptor::{Found, NOT_PRESENT, PROTECTION, Selector, complete, fetch, kind};
use crate::system::segment;
use crate::system::writes::Writes;
use crate::system::{require_outermost, require_protected, require_umip};
use crate::word::Word;

/// LGDT and LIDT: 2 bytes of limit, then the base, 8 bytes in 64-bit code; 24 bits count with 16-bit operands.
fn load_table<const INTERRUPTS: bool, const BITS: u32, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let width = if BITS == 64 { 8 } else { 4 };
    let at = op.linear(cpu, 2 + width, Access::Read)?;
    let limit: u16 = cpu.load(at, Access::Read)?;
    let at = at.wrapping_add(2);
    let base = match BITS {
        64 => cpu.load(at, Access::Read)?,
        32 => u64::from(cpu.load::<u32>(at, Access::Read)?),
        _ => u64::from(cpu.load::<u32>(at, Access::Read)? & 0xff_ffff),
    };
    let state = cpu.state_mut();
    if BITS == 64 && !is_canonical(state, base) {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let table = Table { base, limit };
    if INTERRUPTS {
        state.idtr = table;
    } else {
        state.gdtr = table;
    }
    Ok(())
}

/// SGDT and SIDT.
fn store_table<const INTERRUPTS: bool, W: Word, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    require_umip(cpu.state())?;
    let at = op.linear(cpu, 2 + W::BYTES, Access::Write)?;
    let state = cpu.state();
    let table = if INTERRUPTS { state.idtr } else { state.gdtr };
    cpu.check_write(at, 2 + W::BYTES, Access::Write)?;
    cpu.store(at, table.limit, Access::Write)?;
    cpu.store(at.wrapping_add(2), W::truncate(table.base), Access::Write)
}

/// SLDT and STR.
fn store_selector<const TASK: bool, W: Word, D: Operand, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    require_protected(cpu.state())?;
    require_umip(cpu.state())?;
    let state = cpu.state();
    let segment = if TASK { &state.tr } else { &state.ldtr };
    let value = W::truncate(u64::from(segment.selector));
    D::set(cpu, op, value)
}

fn lldt<S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_protected(cpu.state())?;
    require_outermost(cpu.state())?;
    let selector = Selector(S::get(cpu, op)?);
    let ldtr = find_ldt(cpu, selector, PROTECTION)?;
    cpu.state_mut().ldtr = ldtr;
    Ok(())
}

/// Finds what LDTR is to hold; a null selector leaves no table.
pub(crate) fn find_ldt(
    cpu: &mut impl Cpu,
    selector: Selector,
    vector: u8,
) -> Result<Segment, Stop> {
    if selector.is_null() {
        return Ok(segment::null(selector.0));
    }
    let found = fetch_global(cpu, selector, vector)?;
    if found.descriptor.kind() != Some(kind::LDT) {
        return Err(selector.fault(vector, 0));
    }
    let absent = if vector == PROTECTION {
        NOT_PRESENT
    } else {
        vector
    };
    if !found.descriptor.is_present() {
        return Err(selector.fault(absent, 0));
    }
    let found = complete(cpu, found, selector, vector, 0)?;
    Ok(Segment {
        base: found.base(),
        ..found.descriptor.segment(selector)
    })
}

/// Reads a descriptor that must lie in the global table.
fn fetch_global(cpu: &mut impl Cpu, selector: Selector, vector: u8) -> Result<Found, Stop> {
    if selector.is_local() {
        return Err(selector.fault(vector, 0));
    }
    fetch(cpu, selector, vector, 0)
}

fn ltr<S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_protected(cpu.state())?;
    require_outermost(cpu.state())?;
    let selector = Selector(S::get(cpu, op)?);
    if selector.is_null() {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let found = fetch_global(cpu, selector, PROTECTION)?;
    let is_long = cpu.state().is_long();
    match found.descriptor.kind() {
        Some(kind::TSS) => {}
        Some(kind::TSS_16) if !is_long => {}
        _ => return Err(selector.fault(PROTECTION, 0)),
    }
    if !found.descriptor.is_present() {
        return Err(selector.fault(NOT_PRESENT, 0));
    }
    let found = complete(cpu, found, selector, PROTECTION, 0)?;
    let mut writes = Writes::<1>::new();
    let tr = take_task(&found, selector, &mut writes)?;
    writes.check(cpu)?;
    writes.commit(cpu)?;
    cpu.state_mut().tr = tr;
    Ok(())
}

/// Plans a task's busy bit; returns what TR holds.
pub(crate) fn take_task<const N: usize>(
    found: &Found,
    selector: Selector,
    writes: &mut Writes<N>,
) -> Result<Segment, Stop> {
    let busy = found.descriptor.type_byte() | kind::BUSY;
    writes.add(
        found.at.wrapping_add(5),
        busy.into(),
        1,
        Access::SystemWrite,
    )?;
    let segment = found.descriptor.segment(selector);
    Ok(Segment {
        base: found.base(),
        attributes: segment.attributes | u16::from(kind::BUSY),
        ..segment
    })
}

/// RDFSBASE and RDGSBASE.
fn read_base<const NAME: u8, W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_base_access(cpu)?;
    let base = cpu.state().segments[usize::from(NAME)].base;
    R0::set(cpu, op, W::truncate(base))
}

/// WRFSBASE and WRGSBASE.
fn write_base<const NAME: u8, W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_base_access(cpu)?;
    let base = R0::get::<W, C>(cpu, op)?.zero_extend();
    if !is_canonical(cpu.state(), base) {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    cpu.state_mut().segments[usize::from(NAME)].base = base;
    Ok(())
}

fn require_base_access(cpu: &impl Cpu) -> Result<(), Stop> {
    let state = cpu.state();
    if state.is_64_bit() && state.cr4 & cr4::FSGSBASE != 0 {
        Ok(())
    } else {
        Err(Exception::UNDEFINED.into())
    }
}

fn swapgs<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    require_outermost(cpu.state())?;
    let state = cpu.state_mut();
    let base = &mut state.segments[SegmentName::Gs as usize].base;
    core::mem::swap(base, &mut state.msrs.kernel_gs_base);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let is_memory = instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Lgdt => select_load::<false, C>(instruction),
        Mnemonic::Lidt => select_load::<true, C>(instruction),
        Mnemonic::Sgdt if instruction.code() == Code::Sgdt_m1664 => store_table::<false, u64, C>,
        Mnemonic::Sgdt => store_table::<false, u32, C>,
        Mnemonic::Sidt if instruction.code() == Code::Sidt_m1664 => store_table::<true, u64, C>,
        Mnemonic::Sidt => store_table::<true, u32, C>,
        Mnemonic::Sldt => select_store::<false, C>(instruction),
        Mnemonic::Str => select_store::<true, C>(instruction),
        Mnemonic::Lldt if is_memory => lldt::<M, C>,
        Mnemonic::Lldt => lldt::<R0, C>,
        Mnemonic::Ltr if is_memory => ltr::<M, C>,
        Mnemonic::Ltr => ltr::<R0, C>,
        Mnemonic::Swapgs => swapgs,
        _ => return select_base(instruction),
    })
}

fn select_load<const INTERRUPTS: bool, C: Cpu>(instruction: &Instruction) -> Run<C> {
    match instruction.code() {
        Code::Lgdt_m1664 | Code::Lidt_m1664 => load_table::<INTERRUPTS, 64, C>,
        Code::Lgdt_m1632 | Code::Lidt_m1632 => load_table::<INTERRUPTS, 32, C>,
        _ => load_table::<INTERRUPTS, 16, C>,
    }
}

fn select_store<const TASK: bool, C: Cpu>(instruction: &Instruction) -> Run<C> {
    if instruction.op0_kind() == OpKind::Memory {
        return store_selector::<TASK, u16, M, C>;
    }
    match instruction.op0_register().size() {
        2 => store_selector::<TASK, u16, R0, C>,
        4 => store_selector::<TASK, u32, R0, C>,
        _ => store_selector::<TASK, u64, R0, C>,
    }
}

fn select_base<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let wide = instruction.op0_register().size() == 8;
    Some(match (instruction.mnemonic(), wide) {
        (Mnemonic::Rdfsbase, false) => read_base::<4, u32, C>,
        (Mnemonic::Rdfsbase, true) => read_base::<4, u64, C>,
        (Mnemonic::Rdgsbase, false) => read_base::<5, u32, C>,
        (Mnemonic::Rdgsbase, true) => read_base::<5, u64, C>,
        (Mnemonic::Wrfsbase, false) => write_base::<4, u32, C>,
        (Mnemonic::Wrfsbase, true) => write_base::<4, u64, C>,
        (Mnemonic::Wrgsbase, false) => write_base::<5, u32, C>,
        (Mnemonic::Wrgsbase, true) => write_base::<5, u64, C>,
        _ => return None,
    })
}
