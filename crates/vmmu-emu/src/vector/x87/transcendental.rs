//! FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1.

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::Run;

/// Finds the function of an instruction of this family.
pub(super) fn select<C: Cpu>(_: &Instruction) -> Option<Run<C>> {
    None
}
