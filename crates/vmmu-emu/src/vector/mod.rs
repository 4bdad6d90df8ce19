//! SSE, SSE2, MMX and x87 instructions, by family.

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::Run;

/// Finds the function of a vector or floating-point instruction.
pub(crate) fn select<C: Cpu>(_: &Instruction) -> Option<Run<C>> {
    None
}
