//! The gate guest: one processor makes page tables come into use and go again, another writes an entry of them while that happens.
//!
//! Its command line is a number, of rounds. It needs two processors and 8 MiB, and ends with the number of rounds in which it saw a stale translation. A hypervisor that keeps
//! shadow tables counts them, and looks at no guest write while there is none: this guest is made so that it has none when a round begins.
//!
//! | step | the maker (the bootstrap processor) | the writer (started by INIT and SIPI) |
//! |---|---|---|
//! | 0 | waits until the writer is ready; paging is off on both | puts the new entry into a register of its local APIC |
//! | 1 | turns paging on and reads a word through the entry: the first shadow tables are made | waits, each time for another number of instructions |
//! | 2 | waits for the write | copies the register to the entry by MOVSD, and says so |
//! | 3 | loads CR3, which flushes, and reads the word again: the old page is stale | |
//! | 4 | turns paging off, and writes two bytes of each table: the shadow tables go | |
//!
//! Only a hypervisor that emulates the MOVSD of step 2, whose source is a device, performs that write itself: it is *it* that must not overlook the tables of step 1. In step 3 the architecture
//! leaves no choice: the write came before, and loading CR3 drops every translation that is not global (Intel SDM vol. 3, section 4.10.4.1).
//! After every sixteenth round the maker makes some hundred emulated writes while there are no shadow tables, so that a gate that stays armed for a while is not.
//! The entry maps a large page: a 4 KiB leaf's table may be out of step until CR3 is loaded anyway. In step 4 the writes have an odd size, which no kernel gives an entry: a hypervisor
//! may conclude that this is a table no more.
//!
//! Rust's part is to build and link the assembly.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::panic::PanicInfo;

global_asm!(
    include_str!("start.s"),
    include_str!("maker.s"),
    include_str!("writer.s"),
    options(att_syntax),
);

/// Demanded of every program without the standard library; no Rust code runs here, so the linker drops it.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
