//! String instructions: MOVS, CMPS, STOS, LODS, SCAS, with and without REP.
//!
//! Key trait: [`Element`], what is done to one element.
//!
//! Invariants
//! 1. One execution of a repeated instruction handles several elements, at most [`AT_ONCE`], and one under the trap flag; if some remain it stays where
//!    it is, and the next execution goes on. In between, and where an element faults, registers say exactly what has been done (AMD APM vol. 3, section
//!    1.2.6).
//! 2. Addresses and counter wrap at the address size.

use iced_x86::{Instruction, Mnemonic};

use crate::address;
use crate::arith;
use crate::cpu::{Access, Cpu, Stop};
use crate::flags::Flags;
use crate::op::{Bits, Op, Run, Seg};
use crate::operand::{read_register, write_register};
use crate::state::{Gpr, State};
use crate::word::Word;

/// The number of elements after which a repeated instruction pauses, for interrupts to be seen.
const AT_ONCE: u64 = 1024;

const RAX: u8 = Gpr::RAX.number();

/// What a string instruction does to one element.
pub(super) trait Element {
    /// Whether the source index moves.
    const SOURCE: bool;
    /// Whether the destination index moves.
    const DESTINATION: bool;
    /// Whether REP ends by ZF.
    const COMPARES: bool;
    /// Handles the element that the index registers point to.
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop>;
}

/// Returns the linear address that the source index points to.
#[inline(always)]
pub(super) fn source<C: Cpu>(
    state: &State,
    op: &Op<C>,
    len: usize,
    access: Access,
) -> Result<u64, Stop> {
    let offset = op.truncate(state.get(Gpr::RSI));
    address::linear(state, op.seg, offset, len, access)
}

/// Returns the linear address that the destination index points to, always in ES.
#[inline(always)]
pub(super) fn destination<C: Cpu>(
    state: &State,
    op: &Op<C>,
    len: usize,
    access: Access,
) -> Result<u64, Stop> {
    let seg = if (op.seg as u8) < Seg::Es as u8 {
        Seg::Flat
    } else {
        Seg::Es
    };
    let offset = op.truncate(state.get(Gpr::RDI));
    address::linear(state, seg, offset, len, access)
}

struct Movs;
impl Element for Movs {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let from = source(cpu.state(), op, W::BYTES, Access::Read)?;
        let value: W = cpu.load(from, Access::Read)?;
        let to = destination(cpu.state(), op, W::BYTES, Access::Write)?;
        cpu.store(to, value, Access::Write)
    }
}

struct Stos;
impl Element for Stos {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let value: W = read_register(cpu.state(), RAX);
        let to = destination(cpu.state(), op, W::BYTES, Access::Write)?;
        cpu.store(to, value, Access::Write)
    }
}

struct Lods;
impl Element for Lods {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    const COMPARES: bool = false;
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let from = source(cpu.state(), op, W::BYTES, Access::Read)?;
        let value: W = cpu.load(from, Access::Read)?;
        write_register(cpu.state_mut(), RAX, value);
        Ok(())
    }
}

struct Scas;
impl Element for Scas {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let at = destination(cpu.state(), op, W::BYTES, Access::Read)?;
        let value: W = cpu.load(at, Access::Read)?;
        let first = read_register(cpu.state(), RAX);
        compare(cpu.state_mut(), first, value);
        Ok(())
    }
}

struct Cmps;
impl Element for Cmps {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;
    #[inline(always)]
    fn apply<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
        let from = source(cpu.state(), op, W::BYTES, Access::Read)?;
        let first: W = cpu.load(from, Access::Read)?;
        let at = destination(cpu.state(), op, W::BYTES, Access::Read)?;
        let second: W = cpu.load(at, Access::Read)?;
        compare(cpu.state_mut(), first, second);
        Ok(())
    }
}

#[inline(always)]
fn compare<W: Word>(state: &mut State, first: W, second: W) {
    let (_, flags) = arith::sub(first, second, false);
    state.flags.replace(Flags::ARITHMETIC, flags);
}

/// Adds to an index or the counter, as wide as addresses are.
#[inline(always)]
fn advance<C: Cpu>(state: &mut State, op: &Op<C>, register: Gpr, by: u64) {
    let old = state.get(register);
    let new = old.wrapping_add(by);
    // 16 bits leave the rest of the register, 32 clear it.
    let kept = if op.bits.contains(Bits::ADDRESS_16) {
        old & !0xffff
    } else {
        0
    };
    state.set(register, kept | op.truncate(new));
}

/// Handles one element and moves the index registers.
#[inline(always)]
fn one<W: Word, K: Element, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    K::apply::<W, C>(cpu, op)?;
    let state = cpu.state_mut();
    let by = if state.flags.contains(Flags::DF) {
        (W::BYTES as u64).wrapping_neg()
    } else {
        W::BYTES as u64
    };
    if K::SOURCE {
        advance(state, op, Gpr::RSI, by);
    }
    if K::DESTINATION {
        advance(state, op, Gpr::RDI, by);
    }
    Ok(())
}

fn once<W: Word, K: Element, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    one::<W, K, C>(cpu, op)
}

fn repeat<W: Word, K: Element, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let count = op.truncate(cpu.state().get(Gpr::RCX));
    let limit = if cpu.state().flags.contains(Flags::TF) {
        1
    } else {
        AT_ONCE
    };
    for _ in 0..count.min(limit) {
        one::<W, K, C>(cpu, op)?;
        let state = cpu.state_mut();
        advance(state, op, Gpr::RCX, u64::MAX);
        let equal = state.flags.contains(Flags::ZF);
        if K::COMPARES && equal == op.bits.contains(Bits::REPNE) {
            return Ok(());
        }
    }
    if count > limit {
        let state = cpu.state_mut();
        state.next = state.rip();
    }
    Ok(())
}

pub(super) fn select_element<K: Element, C: Cpu>(
    instruction: &Instruction,
    size: usize,
) -> Option<Run<C>> {
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        by_size!(size, repeat, (K), C)
    } else {
        by_size!(size, once, (K), C)
    }
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    if !instruction.is_string_instruction() {
        return None;
    }
    let size = instruction.memory_size().size();
    match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            select_element::<Movs, C>(instruction, size)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            select_element::<Stos, C>(instruction, size)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            select_element::<Lods, C>(instruction, size)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            select_element::<Scas, C>(instruction, size)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            select_element::<Cmps, C>(instruction, size)
        }
        _ => None,
    }
}
