//! System instructions and the delivery of interrupts and exceptions, by family.

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::Run;

/// Finds the function of a system instruction.
pub(crate) fn select<C: Cpu>(_: &Instruction) -> Option<Run<C>> {
    None
}
