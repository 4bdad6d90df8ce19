//! SSE, SSE2, MMX and x87 instructions, by family.

mod bank;
mod compare;
mod control;
mod convert;
mod float;
mod guard;
mod horizontal;
mod image;
mod lane;
mod moves;
mod packed;
mod shuffle;
mod x87;

pub(crate) use x87::opcode;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::Run;

/// Finds the function of a vector or floating-point instruction.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    moves::select(instruction)
        .or_else(|| packed::select(instruction))
        .or_else(|| horizontal::select(instruction))
        .or_else(|| shuffle::select(instruction))
        .or_else(|| float::select(instruction))
        .or_else(|| compare::select(instruction))
        .or_else(|| convert::select(instruction))
        .or_else(|| x87::select(instruction))
        .or_else(|| control::select(instruction))
        .or_else(|| image::select(instruction))
}
