//! String instructions: MOVS, CMPS, STOS, LODS, SCAS, with and without REP.
//!
//! Key trait: [`Element`], what is done to one element.
//!
//! Invariants
//! 1. One execution of a repeated instruction handles several elements, at most [`AT_ONCE`], and one under the trap flag; if some remain it stays where
//!    it is, and the next execution goes on. In between, and where an element faults, registers say exactly what has been done (AMD APM vol. 3, section
//!    1.2.6).
//! 2. Addresses and counter wrap at the address size.
//! 3. Several elements at once ([`Element::apply_many`]) lie in one page each way, go up, and come out as one after the other would.

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

/// The fewest elements that are worth a bulk operation.
const MANY: u64 = 8;
const PAGE: u64 = 4096;

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
    /// Handles up to `count` elements at once, upwards; returns how many, and leaves the registers.
    #[inline(always)]
    fn apply_many<W: Word, C: Cpu>(_cpu: &mut C, _op: &Op<C>, _count: u64) -> u64 {
        0
    }
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
    fn apply_many<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, count: u64) -> u64 {
        let at = |len, register| {
            let find = if register == Gpr::RSI {
                source
            } else {
                destination
            };
            whole(cpu.state(), op, register, len, find)
        };
        let size = W::BYTES as u64;
        let (Some(from), Some(to)) = (at(size, Gpr::RSI), at(size, Gpr::RDI)) else {
            return 0;
        };
        let mut room = (PAGE - from % PAGE).min(PAGE - to % PAGE);
        // What lies ahead of the source, be it through another mapping of its page, may be read again only after it was written.
        let ahead = to.wrapping_sub(from) % PAGE;
        if ahead != 0 {
            room = room.min(ahead);
        }
        let count = count.min(room / size);
        let len = count * size;
        let fits = at(len, Gpr::RSI).is_some() && at(len, Gpr::RDI).is_some();
        if count >= MANY && fits && cpu.copy(from, to, len as usize) {
            count
        } else {
            0
        }
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
    fn apply_many<W: Word, C: Cpu>(cpu: &mut C, op: &Op<C>, count: u64) -> u64 {
        let at = |len| whole(cpu.state(), op, Gpr::RDI, len, destination);
        let size = W::BYTES as u64;
        let Some(to) = at(size) else {
            return 0;
        };
        let count = count.min((PAGE - to % PAGE) / size);
        let len = count * size;
        let element = read_register::<W>(cpu.state(), RAX).zero_extend();
        let pattern = element.wrapping_mul(u64::MAX / (u64::MAX >> (64 - W::BITS)));
        if count >= MANY && at(len).is_some() && cpu.fill(to, pattern, len as usize) {
            count
        } else {
            0
        }
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

/// Returns the linear address of `len` bytes, if they neither wrap nor fault.
fn whole<C: Cpu>(
    state: &State,
    op: &Op<C>,
    register: Gpr,
    len: u64,
    find: fn(&State, &Op<C>, usize, Access) -> Result<u64, Stop>,
) -> Option<u64> {
    let first = op.truncate(state.get(register));
    let last = first.checked_add(len.checked_sub(1)?)?;
    if op.truncate(last) != last {
        return None;
    }
    let access = if register == Gpr::RSI {
        Access::Read
    } else {
        Access::Write
    };
    find(state, op, len as usize, access).ok()
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

/// Moves the index registers by a number of elements.
#[inline(always)]
fn step<W: Word, K: Element, C: Cpu>(state: &mut State, op: &Op<C>, count: u64) {
    let up = count.wrapping_mul(W::BYTES as u64);
    let by = if state.flags.contains(Flags::DF) {
        up.wrapping_neg()
    } else {
        up
    };
    if K::SOURCE {
        advance(state, op, Gpr::RSI, by);
    }
    if K::DESTINATION {
        advance(state, op, Gpr::RDI, by);
    }
}

fn once<W: Word, K: Element, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    K::apply::<W, C>(cpu, op)?;
    step::<W, K, C>(cpu.state_mut(), op, 1);
    Ok(())
}

fn repeat<W: Word, K: Element, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let count = op.truncate(cpu.state().get(Gpr::RCX));
    let limit = if cpu.state().flags.contains(Flags::TF) {
        1
    } else {
        AT_ONCE
    };
    let mut left = count.min(limit);
    // An element by itself may make the next ones possible at once: its page is known then.
    let mut attempts = 2;
    while left > 0 {
        let mut done = 0;
        if left >= MANY && attempts > 0 && !cpu.state().flags.contains(Flags::DF) {
            done = K::apply_many::<W, C>(cpu, op, left);
            attempts -= 1;
        }
        if done == 0 {
            K::apply::<W, C>(cpu, op)?;
            done = 1;
        } else {
            attempts = 2;
        }
        let state = cpu.state_mut();
        step::<W, K, C>(state, op, done);
        advance(state, op, Gpr::RCX, done.wrapping_neg());
        left -= done;
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
