//! The bare machine, seen from 64-bit mode: everything here that is `unsafe` inside, and nothing else is.
//!
//! Key types: [`Port`] (I/O ports), [`Frame`] and [`Entry`] (page tables in RAM), [`Va`] (addresses that a
//! guest maps for itself), the register functions of [`register`], [`install_gates`] (exception handlers), and
//! [`long_mode_entry!`](crate::long_mode_entry), which makes a program of a function.
//!
//! A guest owns its whole machine, so most of what needs `unsafe` in an ordinary program is safe here as
//! long as these hold:
//!
//! 1. The image, its stack and so every Rust object lie in [`IMAGE`], identity-mapped from the first
//!    instruction of `main` on, in every root that a guest loads.
//! 2. A [`Frame`] lies in [`TABLES_AND_DATA`], outside the image. Only volatile accesses go there.
//! 3. A [`Va`] is at or above [`Va::LOWEST`]: a part of the address space where no Rust object lives. What
//!    it maps to is a [`Frame`].
//! 4. What several processors use at once is an atomic, or memory that only volatile accesses go to.
#![allow(unsafe_code)]

mod command_line;
mod entry;
mod interrupt;
pub mod local_apic;
mod memory;
mod port;
pub mod register;
pub mod segment;

pub use command_line::CommandLine;
pub use interrupt::{Gate, Gates, gates_address, install_gates, use_gates_at};
pub use memory::{Entry, Frame, FramePool, IMAGE, LARGE_PAGE, Level, TABLES_AND_DATA, Va};
pub use port::{Port, end_run};
