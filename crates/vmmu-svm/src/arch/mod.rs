//! Everything that needs `unsafe`: instructions that Rust has no words for, and memory that Rust does not own.
//!
//! | module | what it offers as safe functions |
//! |---|---|
//! | [`port`] | I/O ports |
//! | [`register`] | model-specific and control registers, CPUID, the time-stamp counter |
//! | `descriptor` | the host's GDT, TSS and IDT |
//! | [`guest_ram`], [`physical`] | guest memory and tables as bytes and atomic words, never as Rust references |
//! | `compare` | which words of a guest table differ from a copy |
//! | [`apic`] | the local APIC of the processor that asks |
//! | `start` | starting the other processors |
//! | [`world`] | VMRUN with a full register switch |
//! | [`idle`] | waiting for the guest's interrupts |
//! | `entry`, `memory`, `heap`, `mapping` | the image's first instructions, memory functions, allocator, own tables (feature `image`) |
//!
//! Invariants:
//! 1. The host is identity-mapped: a physical address that the start info calls RAM is a valid pointer.
//! 2. The host runs with GIF = 0 and interrupts off: nothing interrupts it but its own bugs.
//! 3. The host uses XMM registers freely, x87 and YMM registers never; [`world`] keeps the guest's.
#![allow(unsafe_code)]

pub mod apic;
mod compare;
#[cfg(feature = "image")]
mod descriptor;
#[cfg(feature = "image")]
mod entry;
pub mod guest_ram;
#[cfg(feature = "image")]
pub mod heap;
pub mod idle;
#[cfg(feature = "image")]
pub mod mapping;
#[cfg(feature = "image")]
mod memory;
pub mod physical;
pub mod port;
pub mod register;
#[cfg(feature = "image")]
pub mod start;
pub mod world;
