//! Integer instructions, by family. Each family's `select` finds the function for an instruction it knows.

pub(crate) mod alu;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::Run;

/// Finds the function of an integer instruction.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    alu::select(instruction)
}
