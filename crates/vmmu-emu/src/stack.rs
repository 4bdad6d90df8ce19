//! The stack: its pointer's width, and pushes and pops.
//!
//! Key trait: [`Stack`], of [`Stack64`] (64-bit code) and [`StackSegment`] (other code: SS says how wide the pointer is and what the limit is).

use crate::address::linear;
use crate::cpu::{Access, Cpu, Stop};
use crate::op::Seg;
use crate::state::{Gpr, SegmentName, State};
use crate::word::Word;

/// How the stack is addressed.
pub(crate) trait Stack {
    /// How addresses are formed.
    const SEG: Seg;

    /// Returns the bits of the stack pointer that count (AMD APM vol. 2, section 4.7.3: the D/B bit of SS).
    fn mask(state: &State) -> u64;

    /// Returns the stack pointer.
    #[inline(always)]
    fn pointer(state: &State) -> u64 {
        state.get(Gpr::RSP) & Self::mask(state)
    }

    /// Sets the bits of the stack pointer that count.
    #[inline(always)]
    fn set_pointer(state: &mut State, pointer: u64) {
        let mask = Self::mask(state);
        let rest = state.get(Gpr::RSP) & !mask;
        state.set(Gpr::RSP, rest | pointer & mask);
    }

    /// Returns the linear address of `len` bytes at a stack offset.
    #[inline(always)]
    fn linear(state: &State, offset: u64, len: usize, access: Access) -> Result<u64, Stop> {
        linear(state, Self::SEG, offset & Self::mask(state), len, access)
    }
}

/// 64-bit code's stack.
pub(crate) struct Stack64;

impl Stack for Stack64 {
    const SEG: Seg = Seg::FlatStack;
    #[inline(always)]
    fn mask(_: &State) -> u64 {
        u64::MAX
    }
}

/// The stack of other code.
pub(crate) struct StackSegment;

impl Stack for StackSegment {
    const SEG: Seg = Seg::Ss;
    #[inline(always)]
    fn mask(state: &State) -> u64 {
        if state.segment(SegmentName::Ss).attributes & 1 << 10 != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }
}

/// Pushes a value.
#[inline(always)]
pub(crate) fn push<W: Word, S: Stack, C: Cpu>(cpu: &mut C, value: W) -> Result<(), Stop> {
    let pointer = S::pointer(cpu.state()).wrapping_sub(W::BYTES as u64);
    let at = S::linear(cpu.state(), pointer, W::BYTES, Access::Write)?;
    cpu.store(at, value, Access::Write)?;
    S::set_pointer(cpu.state_mut(), pointer);
    Ok(())
}

/// Reads the value `depth` bytes below the top of the stack.
#[inline(always)]
pub(crate) fn peek<W: Word, S: Stack, C: Cpu>(cpu: &mut C, depth: u64) -> Result<W, Stop> {
    let state = cpu.state();
    let offset = S::pointer(state).wrapping_add(depth);
    let at = S::linear(state, offset, W::BYTES, Access::Read)?;
    cpu.load(at, Access::Read)
}

/// Takes bytes off the stack.
#[inline(always)]
pub(crate) fn discard<S: Stack>(state: &mut State, bytes: u64) {
    S::set_pointer(state, S::pointer(state).wrapping_add(bytes));
}
