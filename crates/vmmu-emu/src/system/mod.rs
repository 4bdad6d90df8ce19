//! System instructions and the delivery of interrupts and exceptions, by family.
//!
//! - [`features`]: what a processor offers. [`control`], [`msr`]: registers with rules of their own, for embedders too.
//! - `descriptor`, `segment`, `tables`: segmentation. `stack`, `writes`: what makes an instruction of several stores all or nothing.
//! - `registers`, `machine`, `ports`, `probe`: one instruction, one effect.
//! - `far`, `far_return`, `task`, `syscall`: where control goes to another segment, level or task.
//! - [`event`]: what an embedder delivers. `interrupt`, `gate`: how it is delivered, for software interrupts too. `debug`: what traps.

pub mod control;
mod debug;
mod descriptor;
pub mod event;
mod far;
mod far_return;
pub mod features;
mod gate;
mod interrupt;
mod machine;
pub mod msr;
pub(crate) mod ports;
mod probe;
mod registers;
mod segment;
mod stack;
mod syscall;
mod tables;
mod task;
pub(crate) mod writes;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Exception, Stop};
use crate::op::Run;
use crate::state::State;

/// Finds the function of a system instruction.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    registers::select(instruction)
        .or_else(|| segment::select(instruction))
        .or_else(|| ports::select(instruction))
        .or_else(|| machine::select(instruction))
        .or_else(|| tables::select(instruction))
        .or_else(|| far::select(instruction))
        .or_else(|| far_return::select(instruction))
        .or_else(|| interrupt::select(instruction))
        .or_else(|| syscall::select(instruction))
        .or_else(|| probe::select(instruction))
}

/// Says whether an instruction may change what decides how the following ones are decoded, fetched or interrupted.
pub(crate) fn changes_anything(instruction: &Instruction) -> bool {
    use iced_x86::Register;
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Pop => {
            let to = instruction.op0_register();
            to.is_cr() || to.is_dr() || to == Register::SS
        }
        Mnemonic::Lss => true,
        Mnemonic::In | Mnemonic::Out => true,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => true,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => true,
        Mnemonic::Lmsw | Mnemonic::Clts | Mnemonic::Clac | Mnemonic::Stac => true,
        Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => true,
        Mnemonic::Wrmsr | Mnemonic::Hlt | Mnemonic::Mwait => true,
        Mnemonic::Invlpg | Mnemonic::Invpcid | Mnemonic::Invd | Mnemonic::Wbinvd => true,
        Mnemonic::Vmmcall | Mnemonic::Vmcall | Mnemonic::Wrpkru => true,
        Mnemonic::Jmp | Mnemonic::Call => is_far(instruction),
        Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => true,
        Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Int1 => true,
        Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => true,
        Mnemonic::Sysenter | Mnemonic::Sysexit | Mnemonic::Sysexitq => true,
        _ => false,
    }
}

/// Says whether a jump or call names a code segment.
pub(crate) fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
}

/// Raises #GP outside privilege level 0.
fn require_outermost(state: &State) -> Result<(), Stop> {
    if state.cpl == 0 {
        Ok(())
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Raises #UD in real and virtual-8086 mode.
fn require_protected(state: &State) -> Result<(), Stop> {
    if state.is_real() || state.is_virtual_8086() {
        Err(Exception::UNDEFINED.into())
    } else {
        Ok(())
    }
}

/// Raises #GP where CR4.UMIP keeps an instruction from the outer levels (AMD APM vol. 2, section 3.1.3).
fn require_umip(state: &State) -> Result<(), Stop> {
    if state.cr4 & control::cr4::UMIP != 0 && state.cpl != 0 {
        Err(Exception::GENERAL_PROTECTION.into())
    } else {
        Ok(())
    }
}
