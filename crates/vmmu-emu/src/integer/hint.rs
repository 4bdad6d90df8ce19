//! Instructions without an effect that the emulator shows: NOPs and hints, fences, prefetches, cache line flushes; and those that are never valid.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Exception, Stop};
use crate::op::{Op, Run};
use crate::operand::{M, Operand};

fn nothing<C: Cpu>(_: &mut C, _: &Op<C>) -> Result<(), Stop> {
    Ok(())
}

/// CLFLUSH and its kin: checked like a load of one byte (AMD APM vol. 3, "CLFLUSH").
fn flush_line<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Result<(), Stop> {
    M::get::<u8, C>(cpu, op).map(|_| ())
}

fn undefined<C: Cpu>(_: &mut C, _: &Op<C>) -> Result<(), Stop> {
    Err(Exception::UNDEFINED.into())
}

/// Finds the function of an instruction of this family. Bounds checks and shadow stacks are NOPs on processors that don't have them.
///
/// Every load and store of the emulator is complete when its instruction is, and in program order with those of its processor that come before, so a
/// fence has nothing to add.
pub(crate) fn select<C: Cpu>(instruction: &Instruction) -> Option<Run<C>> {
    match instruction.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Pause
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Cldemote
        | Mnemonic::Bndcl
        | Mnemonic::Bndcn
        | Mnemonic::Bndcu
        | Mnemonic::Bndldx
        | Mnemonic::Bndmk
        | Mnemonic::Bndmov
        | Mnemonic::Bndstx
        | Mnemonic::Lfence
        | Mnemonic::Mfence
        | Mnemonic::Sfence
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1 => Some(nothing::<C>),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Some(flush_line::<C>),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Some(undefined::<C>),
        _ => None,
    }
}
