//! Executes single instructions of user code on the processor that the program runs on, to compare the emulator with it.
//!
//! For development only: x86-64 Linux, where any process may do this. Elsewhere the crate is empty.
//!
//! - [`Sandbox`]: code and data pages at fixed addresses, and [`Sandbox::run`], which executes an instruction there with all registers given.
//! - [`emulate`]: the same by the emulator.
//! - [`Registers`]: general registers, flags, and the FXSAVE image of x87, MMX and SSE registers.
//! - [`End`]: how the instruction ended, exceptions included.
//! - [`Generator`]: random instructions with operands in the data pages. [`compare_integer`] runs one by both and says what differs, [`undefined`] what
//!   may.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod compare;
mod emulated;
mod generate;
mod integer;
mod registers;
mod trampoline;
pub mod undefined;

pub use compare::{Coverage, Difference, Outcome, compare_integer};
pub use emulated::emulate;
pub use generate::{Case, Generator};
pub use integer::is_integer;
pub use registers::{CodeMode, End, Fx, Registers};
pub use trampoline::{CODE, CODE_LEN, DATA, DATA_LEN, GS_BASE, Sandbox};
