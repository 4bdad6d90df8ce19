//! Instructions that push or pop many values: PUSHA, POPA, ENTER; and LEAVE.
//!
//! All stores are found possible, in their order, before the first is done.

use iced_x86::{Code, CodeSize, Instruction};

use crate::cpu::{Access, Cpu, Stop};
use crate::op::{Op, Run};
use crate::operand::{read_register, write_register};
use crate::stack::{Stack, Stack64, StackSegment, discard, peek};
use crate::state::{Gpr, State};
use crate::system::writes::Writes;
use crate::word::Word;

const RSP: u8 = Gpr::RSP.number();
const RBP: u8 = Gpr::RBP.number();

/// Pushes to come: at most 32, of an ENTER with 31 levels.
struct Pushes {
    writes: Writes<32>,
    pointer: u64,
}

impl Pushes {
    fn new<S: Stack>(state: &State) -> Self {
        Self {
            writes: Writes::new(),
            pointer: S::pointer(state),
        }
    }

    fn push<W: Word, S: Stack>(&mut self, cpu: &mut impl Cpu, value: W) -> Result<(), Stop> {
        let pointer = self.pointer.wrapping_sub(W::BYTES as u64);
        let at = S::linear(cpu.state(), pointer, W::BYTES, Access::Write)?;
        cpu.check_write(at, W::BYTES, Access::Write)?;
        self.writes
            .add(at, value.zero_extend(), W::BYTES, Access::Write)?;
        self.pointer = pointer;
        Ok(())
    }

    fn commit<S: Stack, C: Cpu>(&self, cpu: &mut C) -> Result<(), Stop> {
        self.writes.commit(cpu)?;
        S::set_pointer(cpu.state_mut(), self.pointer);
        Ok(())
    }
}

/// PUSHA: RSP as it was before.
fn push_all<W: Word, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let mut pushes = Pushes::new::<StackSegment>(cpu.state());
    for register in 0..8 {
        let value: W = read_register(cpu.state(), register);
        pushes.push::<W, StackSegment>(cpu, value)?;
    }
    pushes.commit::<StackSegment, C>(cpu)
}

/// POPA: the value for RSP is passed over.
fn pop_all<W: Word, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let mut values = [W::default(); 8];
    let mut depth = 0;
    for value in values.iter_mut().rev() {
        *value = peek::<W, StackSegment, C>(cpu, depth)?;
        depth += W::BYTES as u64;
    }
    let state = cpu.state_mut();
    discard::<StackSegment>(state, depth);
    for (register, value) in (0..).zip(values) {
        if register != RSP {
            write_register(state, register, value);
        }
    }
    Ok(())
}

/// ENTER (AMD APM vol. 3, "ENTER"): the outer frames' pointers are copied from the old frame, which the new one may overlap.
fn enter<W: Word, S: Stack, C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    let size = op.imm & 0xffff;
    let levels = op.imm >> 32 & 31;
    let mut pushes = Pushes::new::<S>(cpu.state());
    let top = pushes.pointer;
    let mut pushed = [0u8; 32 * 8];
    let old_frame: W = read_register(cpu.state(), RBP);
    pushes.push::<W, S>(cpu, old_frame)?;
    record(&mut pushed, 1, old_frame);
    // All of the stack pointer, also where only a part of it counts.
    let frame =
        cpu.state().get(Gpr::RSP) & !S::mask(cpu.state()) | pushes.pointer & S::mask(cpu.state());
    for level in 1..levels {
        let below = cpu.state().get(Gpr::RBP);
        let from = below.wrapping_sub(level * W::BYTES as u64) & S::mask(cpu.state());
        let at = S::linear(cpu.state(), from, W::BYTES, Access::Read)?;
        let found = cpu.load::<W>(at, Access::Read)?.zero_extend();
        let value = overlaid(found, &pushed, top.wrapping_sub(from), W::BYTES, level);
        pushes.push::<W, S>(cpu, W::truncate(value))?;
        record(&mut pushed, level + 1, W::truncate(value));
    }
    if levels > 0 {
        pushes.push::<W, S>(cpu, W::truncate(frame))?;
    }
    pushes.pointer = pushes.pointer.wrapping_sub(size);
    let at = S::linear(cpu.state(), pushes.pointer, W::BYTES, Access::Write)?;
    cpu.check_write(at, W::BYTES, Access::Write)?;
    pushes.commit::<S, C>(cpu)?;
    write_register(cpu.state_mut(), RBP, W::truncate(frame));
    Ok(())
}

/// Notes the `count`th push: `pushed` is the top of the stack upside down.
fn record<W: Word>(pushed: &mut [u8; 256], count: u64, value: W) {
    let end = count as usize * W::BYTES;
    let bytes = value.zero_extend().to_be_bytes();
    pushed[end - W::BYTES..end].copy_from_slice(&bytes[8 - W::BYTES..]);
}

/// Returns a value read `depth` bytes below the old top of the stack, with those of its bytes that have been pushed since.
fn overlaid(found: u64, pushed: &[u8; 256], depth: u64, bytes: usize, count: u64) -> u64 {
    let mut value = found.to_le_bytes();
    for (distance, byte) in (0..).zip(&mut value[..bytes]) {
        let place = depth.wrapping_sub(distance + 1);
        if place < count * bytes as u64 {
            *byte = pushed[place as usize & 255];
        }
    }
    u64::from_le_bytes(value)
}

fn leave<W: Word, S: Stack, C: Cpu>(cpu: &mut C, _: &Op<C>) -> Result<(), Stop> {
    let before = cpu.state().get(Gpr::RSP);
    let frame = cpu.state().get(Gpr::RBP);
    S::set_pointer(cpu.state_mut(), frame);
    let value = peek::<W, S, C>(cpu, 0);
    let value = value.inspect_err(|_| cpu.state_mut().set(Gpr::RSP, before))?;
    let state = cpu.state_mut();
    discard::<S>(state, W::BYTES as u64);
    write_register(state, RBP, value);
    Ok(())
}

/// Finds the function of an instruction of this family.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    let is_64 = instruction.code_size() == CodeSize::Code64;
    match instruction.code() {
        Code::Pushaw => Some(push_all::<u16, C>),
        Code::Pushad => Some(push_all::<u32, C>),
        Code::Popaw => Some(pop_all::<u16, C>),
        Code::Popad => Some(pop_all::<u32, C>),
        Code::Enterw_imm16_imm8 if is_64 => Some(enter::<u16, Stack64, C>),
        Code::Enterw_imm16_imm8 => Some(enter::<u16, StackSegment, C>),
        Code::Enterd_imm16_imm8 => Some(enter::<u32, StackSegment, C>),
        Code::Enterq_imm16_imm8 => Some(enter::<u64, Stack64, C>),
        Code::Leavew if is_64 => Some(leave::<u16, Stack64, C>),
        Code::Leavew => Some(leave::<u16, StackSegment, C>),
        Code::Leaved => Some(leave::<u32, StackSegment, C>),
        Code::Leaveq => Some(leave::<u64, Stack64, C>),
        _ => None,
    }
}

#[cfg(test)]
mod pushed_frames {
    use super::{overlaid, record};

    #[test]
    fn are_seen_by_reads_that_overlap_them() {
        let mut pushed = [0; 256];
        record(&mut pushed, 1, 0x1122_3344_u32);
        record(&mut pushed, 2, 0x5566_7788_u32);
        // Four bytes below the old top lies the first.
        assert_eq!(overlaid(0, &pushed, 4, 4, 2), 0x1122_3344);
        assert_eq!(overlaid(0, &pushed, 8, 4, 2), 0x5566_7788);
        assert_eq!(overlaid(0, &pushed, 6, 4, 2), 0x3344_5566);
        // Partly above the top, partly below what has been pushed.
        assert_eq!(overlaid(0xaabb_ccdd, &pushed, 2, 4, 2), 0xaabb_1122);
        assert_eq!(overlaid(0xaabb_ccdd, &pushed, 10, 4, 2), 0x7788_ccdd);
        assert_eq!(overlaid(0xaabb_ccdd, &pushed, 8, 4, 1), 0xaabb_ccdd);
    }
}
