//! RFLAGS as a whole, and the interrupt flag: PUSHF, POPF, CLI, STI.
//!
//! Who may change IF: privilege level 0 and real mode; others up to IOPL. Virtual-8086 mode with CR4.VME, and level 3 with CR4.PVI, have VIF in its
//! place (AMD APM vol. 2, section 8.10).

use iced_x86::{Code, CodeSize, Instruction, Mnemonic};

use crate::cpu::{Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::{Op, Run};
use crate::stack::{Stack, Stack64, StackSegment, discard, peek, push};
use crate::state::State;
use crate::word::Word;

const CR4_VME: u64 = 1 << 0;
const CR4_PVI: u64 = 1 << 1;

/// Who governs interrupts for the current code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// IF is this code's.
    Real,
    /// VIF stands for it.
    Virtual,
    /// Neither.
    None,
}

/// Returns the rule for CLI and STI.
fn rule(state: &State) -> Rule {
    if state.is_virtual_8086() {
        return rule_in_virtual_8086(state);
    }
    if state.is_real() || state.cpl <= state.flags.iopl() {
        Rule::Real
    } else if state.cpl == 3 && state.cr4 & CR4_PVI != 0 {
        Rule::Virtual
    } else {
        Rule::None
    }
}

fn rule_in_virtual_8086(state: &State) -> Rule {
    if state.flags.iopl() == 3 {
        Rule::Real
    } else if state.cr4 & CR4_VME != 0 {
        Rule::Virtual
    } else {
        Rule::None
    }
}

fn cli<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    match rule(state) {
        Rule::Real => state.flags.remove(Flags::IF),
        Rule::Virtual => state.flags.remove(Flags::VIF),
        Rule::None => return Err(Exception::GENERAL_PROTECTION.into()),
    }
    Ok(())
}

/// STI: interrupts stay off for one more instruction, if they were.
fn sti<C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state_mut();
    match rule(state) {
        Rule::Real => {
            state.interrupt_shadow |= !state.flags.contains(Flags::IF);
            state.flags.insert(Flags::IF);
        }
        Rule::Virtual if !state.flags.contains(Flags::VIP) => state.flags.insert(Flags::VIF),
        Rule::Virtual | Rule::None => return Err(Exception::GENERAL_PROTECTION.into()),
    }
    Ok(())
}

/// PUSHF: VM and RF read as clear.
fn push_flags<W: Word, S: Stack, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let state = cpu.state();
    let mut flags = state.flags.difference(Flags::VM.union(Flags::RF)) | Flags::ONE;
    if state.is_virtual_8086() {
        match rule_in_virtual_8086(state) {
            Rule::Real => {}
            Rule::Virtual if W::BYTES == 2 => {
                flags.set(Flags::IF, state.flags.contains(Flags::VIF));
                flags.insert(Flags::IOPL);
            }
            Rule::Virtual | Rule::None => return Err(Exception::GENERAL_PROTECTION.into()),
        }
    }
    push::<W, S, C>(cpu, W::truncate(flags.bits()))
}

fn pop_flags<W: Word, S: Stack, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let value = peek::<W, S, C>(cpu, 0)?.zero_extend();
    let popped = Flags::from_bits_retain(value);
    let flags = after_pop::<W>(cpu.state(), popped)?;
    let state = cpu.state_mut();
    discard::<S>(state, W::BYTES as u64);
    state.flags = flags;
    Ok(())
}

/// Returns RFLAGS after a POPF: what the current code may not change stays, and RF is clear.
fn after_pop<W: Word>(state: &State, popped: Flags) -> Result<Flags, Stop> {
    let old = state.flags;
    let mut mask = Flags::ARITHMETIC | Flags::TF | Flags::DF | Flags::NT;
    if W::BYTES > 2 {
        mask |= Flags::AC | Flags::ID;
    }
    if !state.is_virtual_8086() {
        mask.set(Flags::IOPL, state.cpl == 0);
        mask.set(Flags::IF, state.cpl <= old.iopl() || state.cpl == 0);
    } else {
        match rule_in_virtual_8086(state) {
            Rule::Real => mask |= Flags::IF,
            Rule::Virtual if W::BYTES == 2 => return after_virtual_pop(old, popped, mask),
            Rule::Virtual | Rule::None => return Err(Exception::GENERAL_PROTECTION.into()),
        }
    }
    let flags = old.difference(mask) | popped & mask;
    Ok(flags.difference(Flags::RF))
}

/// POPF in virtual-8086 mode under CR4.VME: IF goes to VIF; an interrupt that waits for it, or a trap, is the monitor's business.
fn after_virtual_pop(old: Flags, popped: Flags, mask: Flags) -> Result<Flags, Stop> {
    let enables = popped.contains(Flags::IF);
    if popped.contains(Flags::TF) || enables && old.contains(Flags::VIP) {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let mut flags = old.difference(mask) | popped & mask;
    flags.set(Flags::VIF, enables);
    Ok(flags.difference(Flags::RF))
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let is_64 = instruction.code_size() == CodeSize::Code64;
    match instruction.code() {
        Code::Pushfw if is_64 => Some(push_flags::<u16, Stack64, C>),
        Code::Pushfw => Some(push_flags::<u16, StackSegment, C>),
        Code::Pushfd => Some(push_flags::<u32, StackSegment, C>),
        Code::Pushfq => Some(push_flags::<u64, Stack64, C>),
        Code::Popfw if is_64 => Some(pop_flags::<u16, Stack64, C>),
        Code::Popfw => Some(pop_flags::<u16, StackSegment, C>),
        Code::Popfd => Some(pop_flags::<u32, StackSegment, C>),
        Code::Popfq => Some(pop_flags::<u64, Stack64, C>),
        _ => match instruction.mnemonic() {
            Mnemonic::Cli => Some(cli::<C>),
            Mnemonic::Sti => Some(sti::<C>),
            _ => None,
        },
    }
}
