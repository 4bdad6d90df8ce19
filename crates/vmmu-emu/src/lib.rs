//! An x86 instruction emulator: decodes by iced-x86, executes one instruction, completely or not at all.
//!
//! It serves three callers with the same code: a software processor that interprets whole guests, its hypervisor that emulates what exits, and a
//! bare-metal hypervisor that emulates writes to guest tables and device accesses. What an instruction reaches beyond registers is one trait.
//!
//! - [`State`]: the registers. [`Cpu`]: the trait. [`Stop`]: why an instruction did not complete.
//! - [`Op`]: an instruction decoded once and executed often: a function, specialised for its operands, and what it needs.
//! - [`decode`] makes one of bytes; [`Op::execute`] runs it; [`step`] does both for one instruction.
//!
//! Invariants
//! 1. An instruction that stops leaves registers, memory, ports and flags as they were. A repeated string instruction is one instruction for each
//!    element: what it did before it stopped stays, and its registers say so. An unmasked SIMD exception leaves its flags in MXCSR, for the handler.
//! 2. Memory is read once per operand: what was checked is what is used.
//! 3. Nothing that a guest can do makes it panic.
//!
//! # Known gaps
//! SSE4, AVX and later vector extensions, XSAVE, CET, SGX, TSX: they are answered with [`Stop::Unsupported`]. x87's transcendental functions are good
//! to the last bit of 64, but not the same as any processor's in it.

#![no_std]
#![forbid(unsafe_code)]

mod address;
mod arith;
mod condition;
mod cpu;
mod decode;
mod flags;
mod float;
mod fpu;
mod integer;
mod op;
mod operand;
mod stack;
mod state;
pub mod system;
mod vector;
mod word;

pub use cpu::{Access, Control, Cpu, Exception, Invalidation, Stop};
pub use decode::{DecodeError, LONGEST, Mode, decode};
pub use flags::Flags;
pub use fpu::{Extended, Fpu};
pub use op::{After, Op};
pub use state::{Gpr, Segment, SegmentName, State, Table};
pub use system::event::{Delivery, Event, Merged, deliver, merge, raise};
pub use system::features::{Features, Instructions};
pub use word::Word;

/// Decodes and executes the instruction in `bytes`, which begin at the state's RIP.
///
/// # Errors
/// Why it did not complete; the state is as before. Bytes that end before the instruction does are [`Stop::Unsupported`].
pub fn step<C: Cpu>(cpu: &mut C, bytes: &[u8]) -> Result<After, Stop> {
    match decode::<C>(bytes, Mode::of(cpu.state())) {
        Ok(op) => op.execute(cpu).map(|()| op.after()),
        Err(DecodeError::Invalid) => Err(Exception::UNDEFINED.into()),
        Err(DecodeError::TooLong) => Err(Exception::GENERAL_PROTECTION.into()),
        Err(DecodeError::CutShort | DecodeError::NotOffered | DecodeError::Unsupported) => {
            Err(Stop::Unsupported)
        }
    }
}
