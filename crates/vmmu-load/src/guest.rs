//! What is loaded, and how it starts.

use vmmu::addr::Gpa;

/// A guest to load.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The modules, in order; the first is Linux's initrd.
    pub modules: &'a [&'a [u8]],
    /// The command line.
    pub command_line: &'a str,
    /// ACPI's root pointer, for kernels that can be told of it; the others look for it below 1 MiB.
    pub rsdp: Option<Gpa>,
}

/// How the bootstrap processor starts. Interrupts are off, direction is up, the other registers are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// 64-bit mode: CR0.PE and PG, CR4.PAE, EFER.LME and LMA are set.
    Long {
        /// The first instruction.
        rip: u64,
        /// What RSI holds: the zero page.
        rsi: u64,
        /// The root table: the first 4 GiB, one to one.
        cr3: Gpa,
        /// The descriptor table of 32 bytes, with 64-bit code at 10h (CS) and flat data at 18h (DS, ES, SS).
        gdt: Gpa,
    },
    /// 32-bit protected mode with paging off (CR0.PE alone) and flat segments: code in CS, data in the others. No descriptor
    /// table is promised; TR holds a busy 32-bit task state with a limit of 67h.
    Protected {
        /// The first instruction.
        eip: u32,
        /// What EAX holds.
        eax: u32,
        /// What EBX holds.
        ebx: u32,
    },
}
