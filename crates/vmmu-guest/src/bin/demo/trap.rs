//! The way into the kernel and back: one entry for system calls and page faults, one for what must not happen.
//!
//! Key types: [`Trap`] (a process's registers), [`Cause`].
//!
//! Invariants:
//! 1. The kernel runs with interrupts off on one stack, from an entry to the next [`enter`]; it raises no exception itself.
//! 2. What it does to the [`Trap`] it was given is what the process sees.
#![allow(unsafe_code)]

use core::arch::global_asm;

use vmmu_guest::machine::segment::{Stacks, USER_CODE, USER_DATA, install_segments};
use vmmu_guest::machine::{Gate, Va, install_gates};

use crate::{Failure, kernel};

/// The registers of a process, in the order in which the entry pushes them, the last first.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Trap {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

/// Why a process entered the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A system call, with its number and two arguments.
    Call(u64, [u64; 2]),
    /// A page fault, with its error code (AMD APM vol. 2, section 8.4.2).
    PageFault(u64),
}

impl Trap {
    /// Returns the registers of a process that begins at `code` with its stack's top at `stack`.
    pub(crate) fn new(code: Va, stack: u64) -> Self {
        Self {
            rip: code.value(),
            cs: USER_CODE,
            flags: 2,
            rsp: stack,
            ss: USER_DATA,
            ..Self::default()
        }
    }

    /// Returns why the process entered.
    pub(crate) fn cause(&self) -> Cause {
        if self.vector == PAGE_FAULT {
            Cause::PageFault(self.error)
        } else {
            Cause::Call(self.rax, [self.rdi, self.rsi])
        }
    }

    /// Makes the process issue its system call once more when it goes on.
    pub(crate) fn repeat_call(&mut self) {
        // INT3 is one byte; RAX still holds the number.
        self.rip -= 1;
    }

    /// Sets what a system call returns.
    pub(crate) fn answer(&mut self, value: u64) {
        self.rax = value;
    }
}

const PAGE_FAULT: u64 = 14;
const BREAKPOINT: usize = 3;

global_asm!(
    // A system call is INT3: it needs no registers and works from any mode. No error code: push one.
    "demo_call:",
    "push 0",
    "push {call}",
    "jmp 2f",
    "demo_page_fault:",
    "push {page_fault}",
    "2:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handle}",
    "mov rdi, rsp",
    // enter(RDI: the registers)
    "demo_enter:",
    "mov rsp, rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "demo_unexpected:",
    "mov eax, {unexpected}",
    "mov edx, 0xf4",
    "out dx, eax",
    "cli",
    "hlt",
    // The stack, aligned as the ABI demands of calls: the processor aligns by 16, and 22 words are pushed.
    ".pushsection .bss.demo_stack, \"aw\", @nobits",
    ".balign 16",
    ".skip 16384",
    "demo_stack_top:",
    ".popsection",
    call = const BREAKPOINT,
    page_fault = const PAGE_FAULT,
    unexpected = const Failure::Exception as u32,
    handle = sym handle,
);

unsafe extern "C" {
    fn demo_call();
    fn demo_page_fault();
    fn demo_unexpected();
    fn demo_enter(trap: &Trap) -> !;
    static demo_stack_top: u8;
}

extern "C" fn handle(trap: &mut Trap) {
    kernel::serve(trap);
}

/// Installs gates, segments and the kernel's stack.
pub(crate) fn install() {
    let mut gates = [Gate::new(demo_unexpected); 32];
    gates[BREAKPOINT] = Gate::new(demo_call).for_user();
    gates[PAGE_FAULT as usize] = Gate::new(demo_page_fault);
    // SAFETY: the handlers restore all registers and pop the error code, or do not return. The call raises no exception.
    unsafe { install_gates(gates) };
    let stacks = Stacks {
        kernel: &raw const demo_stack_top as u64,
        ..Stacks::default()
    };
    // SAFETY: the stack is this module's own, inside the image, which every root maps.
    unsafe { install_segments(stacks) };
}

/// Goes on with a process.
pub(crate) fn enter(trap: &Trap) -> ! {
    // SAFETY: a `Trap` names user segments only, so nothing of the kernel runs with these registers; the current root is the
    // process's (the caller saw to it), and it maps the image, where the registers lie.
    unsafe { demo_enter(trap) }
}
