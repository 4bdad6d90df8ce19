//! LAR, LSL, VERR, VERW, ARPL: what a selector may be used for. An unusable one clears ZF, it raises nothing.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::{Cpu, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::operand::{M, Operand, R0, R1};
use crate::system::descriptor::{Descriptor, PROTECTION, Selector, fetch, kind};
use crate::system::require_protected;
use crate::word::Word;

/// Reads a selector's descriptor; none where there is none, or where a level forbids it.
fn probe(cpu: &mut impl Cpu, selector: Selector) -> Result<Option<Descriptor>, Stop> {
    if selector.is_null() {
        return Ok(None);
    }
    let descriptor = match fetch(cpu, selector, PROTECTION, 0) {
        Ok(found) => found.descriptor,
        Err(stop) if stop == selector.fault(PROTECTION, 0) => return Ok(None),
        Err(stop) => return Err(stop),
    };
    let outer = cpu.state().cpl.max(selector.rpl());
    let allowed = descriptor.is_conforming() || outer <= descriptor.dpl();
    Ok(allowed.then_some(descriptor))
}

fn set_zero(cpu: &mut impl Cpu, zero: bool) {
    cpu.state_mut().flags.set(Flags::ZF, zero);
}

/// Says whether LAR, or LSL, knows the type of a system descriptor (AMD APM vol. 3).
const fn is_known(kind_of: u8, is_long: bool, has_limit: bool) -> bool {
    match kind_of {
        kind::LDT | kind::TSS | kind::TSS_BUSY => true,
        kind::TSS_16 | kind::TSS_16_BUSY => !is_long,
        kind::CALL_GATE => !has_limit,
        kind::CALL_GATE_16 | kind::TASK_GATE => !is_long && !has_limit,
        _ => false,
    }
}

/// LAR and LSL.
fn inspect<const LIMIT: bool, W: Word, S: Operand, C: Cpu>(
    cpu: &mut C,
    op: &Op<C>,
) -> Result<(), Stop> {
    require_protected(cpu.state())?;
    let selector = Selector(S::get(cpu, op)?);
    let is_long = cpu.state().is_long();
    let known = |descriptor: &Descriptor| {
        descriptor
            .kind()
            .is_none_or(|kind_of| is_known(kind_of, is_long, LIMIT))
    };
    let Some(descriptor) = probe(cpu, selector)?.filter(known) else {
        set_zero(cpu, false);
        return Ok(());
    };
    let value = if LIMIT {
        descriptor.limit()
    } else {
        (descriptor.0 >> 32) as u32 & 0x00f0_ff00
    };
    R0::set(cpu, op, W::truncate(u64::from(value)))?;
    set_zero(cpu, true);
    Ok(())
}

/// VERR and VERW.
fn verify<const WRITE: bool, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_protected(cpu.state())?;
    let selector = Selector(S::get(cpu, op)?);
    let usable = probe(cpu, selector)?.is_some_and(|descriptor| {
        if WRITE {
            descriptor.is_writable()
        } else {
            descriptor.is_readable()
        }
    });
    set_zero(cpu, usable);
    Ok(())
}

/// ARPL: raises a selector's level to that of another one.
fn arpl<D: Operand, S: Operand, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    require_protected(cpu.state())?;
    let source: u16 = S::get(cpu, op)?;
    let level = source & 3;
    let raised = D::update::<u16, _, C>(cpu, op, |_, old| {
        if old & 3 < level {
            (old & !3 | level, true)
        } else {
            (old, false)
        }
    })?;
    set_zero(cpu, raised);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let from_memory = instruction.op1_kind() == OpKind::Memory;
    let is_memory = instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Lar if from_memory => inspect_sized::<false, M, C>(instruction),
        Mnemonic::Lar => inspect_sized::<false, R1, C>(instruction),
        Mnemonic::Lsl if from_memory => inspect_sized::<true, M, C>(instruction),
        Mnemonic::Lsl => inspect_sized::<true, R1, C>(instruction),
        Mnemonic::Verr if is_memory => verify::<false, M, C>,
        Mnemonic::Verr => verify::<false, R0, C>,
        Mnemonic::Verw if is_memory => verify::<true, M, C>,
        Mnemonic::Verw => verify::<true, R0, C>,
        Mnemonic::Arpl if is_memory => arpl::<M, R0, C>,
        Mnemonic::Arpl => arpl::<R0, R1, C>,
        _ => return None,
    })
}

fn inspect_sized<const LIMIT: bool, S: Operand, C: Cpu>(instruction: &Instruction) -> Run<C> {
    match instruction.op0_register().size() {
        2 => inspect::<LIMIT, u16, S, C>,
        4 => inspect::<LIMIT, u32, S, C>,
        _ => inspect::<LIMIT, u64, S, C>,
    }
}
