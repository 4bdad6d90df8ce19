//! The multiboot guest: 32-bit code that a multiboot-1 loader starts with paging off.
//!
//! It checks what the loader hands over (magic number, command line, modules, memory map), prints it on the debug
//! console and the first serial port, then does what its command line says:
//!
//! | option | meaning |
//! |---|---|
//! | `exit=N` | end the run with N (decimal, or hexadecimal with 0x); default 0 |
//! | `mode=unpaged` | memory and exception tests with paging off (the default) |
//! | `mode=legacy32` | the same and paging tests in the 32-bit format (4 KiB and 4 MiB pages), then paging off again |
//! | `mode=pae` | the same in the PAE format (4 KiB and 2 MiB pages) |
//! | `mode=long` | the same in compatibility mode, and some 64-bit code |
//! | `mode=real` | a trip to real mode and back |
//! | `mode=crash` | a triple fault with paging off |
//! | `mode=crash64` | a triple fault in 64-bit mode: a read of the unmapped address 0x123456789000 |
//! | `mode=hang` | an endless loop |
//! | `mode=halt` | HLT with interrupts off |
//! | `mode=reset`, `reset92`, `resetcf9` | a reset through port 0x64, 0x92 or 0xcf9 |
//!
//! After the work it prints `ok <mode>`. A check that fails prints `FAIL <what>` and ends the run with 125; an unknown
//! mode with 124. It needs 16 MiB.
//!
//! The program is the assembly in the files beside this one. Rust's part is to build and link it: as an ELF64, which
//! [`vmmu_guest::elf32`] repackages as the ELF32 that loaders demand.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::panic::PanicInfo;

global_asm!(
    include_str!("macros.s"),
    include_str!("start.s"),
    include_str!("console.s"),
    include_str!("options.s"),
    include_str!("tests.s"),
    include_str!("paging.s"),
    include_str!("modes.s"),
);

/// Demanded of every program without the standard library; no Rust code runs here, so the linker drops it.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
