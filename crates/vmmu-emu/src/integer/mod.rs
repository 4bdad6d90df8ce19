//! Integer instructions, by family. Each family's `select` finds the function for an instruction it knows.

#[macro_use]
mod forms;

mod alu;
mod bit;
mod branch;
mod decimal;
mod exchange;
mod flag;
mod frame;
mod hint;
mod mov;
mod multiply;
mod push;
mod shift;
mod status;
mod string;
mod string_port;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::op::Run;

/// Finds the function of an integer instruction.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    alu::select(instruction)
        .or_else(|| mov::select(instruction))
        .or_else(|| branch::select(instruction))
        .or_else(|| push::select(instruction))
        .or_else(|| shift::select(instruction))
        .or_else(|| bit::select(instruction))
        .or_else(|| multiply::select(instruction))
        .or_else(|| string::select(instruction))
        .or_else(|| exchange::select(instruction))
        .or_else(|| string_port::select(instruction))
        .or_else(|| frame::select(instruction))
        .or_else(|| status::select(instruction))
        .or_else(|| decimal::select(instruction))
        .or_else(|| flag::select(instruction))
        .or_else(|| hint::select(instruction))
}
