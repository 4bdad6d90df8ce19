//! Exceptions, interrupts, and accesses that may fault.
//!
//! An access is an instruction of its own ([`load`], [`store`]). The page-fault handler lets it return with the error code and
//! CR2; any other exception ends the run. Interrupts of other processors come on a stack of their own, since compiled code
//! uses memory below its stack pointer.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use vmmu_guest::machine::register::Control;
use vmmu_guest::machine::segment::{Segments, Stacks};
use vmmu_guest::machine::{Gate, Gates, Va, local_apic, register};

use crate::shoot_down;
use crate::startup::MOST;

/// The vector by which processors ask each other for a flush.
pub(crate) const FLUSH_VECTOR: u8 = 0x31;
/// The vector of interrupts that vanished.
pub(crate) const SPURIOUS_VECTOR: u8 = 0x3f;
const VECTORS: usize = 64;
/// Bytes of the stack of interrupts and of that of double faults.
const STACK: usize = 8_192;

/// An access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: u64,
    pub(crate) address: u64,
}

impl Fault {
    /// The page was present.
    pub(crate) const PRESENT: u64 = 1 << 0;
    /// It was a write.
    pub(crate) const WRITE: u64 = 1 << 1;
}

/// What an access returns: in RAX the value or CR2, in RDX 0 or the error code with [`FAULTED`].
#[repr(C)]
struct Done {
    rax: u64,
    rdx: u64,
}

/// Set in [`Done::rdx`] after a fault.
const FAULTED: u64 = 1 << 63;

global_asm!(
    "smp_load: mov rax, [rdi]",
    "xor edx, edx",
    "ret",
    "smp_store: mov [rdi], rsi",
    "xor edx, edx",
    "smp_faulted: ret",
    // On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    "smp_trap:",
    "cmp dword ptr [rsp], 14",
    "jne 2f",
    "push rax",
    "lea rax, [rip + smp_load]",
    "cmp [rsp + 24], rax",
    "je 3f",
    "lea rax, [rip + smp_store]",
    "cmp [rsp + 24], rax",
    "je 3f",
    "pop rax",
    "2: mov rdi, [rsp]",
    "mov rsi, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rcx, cr2",
    "and rsp, -16",
    "call {unexpected}",
    "ud2",
    "3: lea rax, [rip + smp_faulted]",
    "mov [rsp + 24], rax",
    "mov rdx, [rsp + 16]",
    "bts rdx, 63",
    "add rsp, 24",
    "mov rax, cr2",
    "iretq",
    // Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code; the others get 0.
    ".balign 16",
    "smp_stubs:",
    ".set smp_vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (0x60227d00 >> smp_vector) & 1 == 0",
    "push 0",
    ".endif",
    "push smp_vector",
    "jmp smp_trap",
    ".set smp_vector, smp_vector + 1",
    ".endr",
    "smp_interrupt:",
    "cld",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, 512",
    "and rsp, -16",
    "fxsave64 [rsp]",
    "call {interrupt}",
    "fxrstor64 [rsp]",
    "mov rsp, rbp",
    "pop rbp",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "smp_vanished: iretq",
    unexpected = sym unexpected,
    interrupt = sym interrupt,
);

unsafe extern "C" {
    fn smp_load(address: u64) -> Done;
    fn smp_store(address: u64, value: u64) -> Done;
    fn smp_stubs();
    fn smp_interrupt();
    fn smp_vanished();
}

/// Loads 64 bits.
pub(crate) fn load(address: Va) -> Result<u64, Fault> {
    // SAFETY: a `Va` names no Rust object; a fault comes back as `Done`.
    outcome(unsafe { smp_load(address.value()) })
}

/// Stores 64 bits.
pub(crate) fn store(address: Va, value: u64) -> Result<(), Fault> {
    // SAFETY: as in `load`.
    outcome(unsafe { smp_store(address.value(), value) }).map(|_| ())
}

fn outcome(done: Done) -> Result<u64, Fault> {
    if done.rdx & FAULTED == 0 {
        return Ok(done.rax);
    }
    Err(Fault {
        code: done.rdx & !FAULTED,
        address: done.rax,
    })
}

/// An exception that nothing here means to raise: the guest itself is broken, or what is below it.
extern "C" fn unexpected(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    panic!(
        "processor {}: exception {vector} error {error:#x} at {rip:#x}, cr2 {cr2:#x}",
        number()
    )
}

/// Another processor asks for a flush.
extern "C" fn interrupt() {
    shoot_down::serve(number());
    local_apic::end_of_interrupt();
}

static GATES: Gates<VECTORS> = Gates::new();
static SEGMENTS: [Segments; MOST] = [const { Segments::new() }; MOST];

/// A processor's stacks: of interrupts, of double faults.
#[repr(C, align(16))]
struct StackSpace(UnsafeCell<[[u8; STACK]; 2]>);
// SAFETY: each is used by the processor alone that installs it.
unsafe impl Sync for StackSpace {}
static STACKS: [StackSpace; MOST] = [const { StackSpace(UnsafeCell::new([[0; STACK]; 2])) }; MOST];

/// The processors' numbers: GS points at its own.
static NUMBERS: [u64; MOST] = {
    let mut numbers = [0; MOST];
    let mut number = 0;
    while number < MOST {
        numbers[number] = number as u64;
        number += 1;
    }
    numbers
};

/// Fills the table of handlers, before any processor uses it.
pub(crate) fn prepare() {
    const STUB_SIZE: usize = 16;
    let mut gates = [Gate::EMPTY; VECTORS];
    for (vector, gate) in gates.iter_mut().take(32).enumerate() {
        *gate = Gate::at(smp_stubs as *const () as u64 + (vector * STUB_SIZE) as u64);
    }
    gates[8] = gates[8].on_stack(2);
    gates[usize::from(FLUSH_VECTOR)] = Gate::new(smp_interrupt).on_stack(1);
    gates[usize::from(SPURIOUS_VECTOR)] = Gate::new(smp_vanished);
    // SAFETY: no processor uses the table yet; the routines preserve all registers, or go back to code that expects its
    // results, or do not return.
    unsafe { GATES.fill(gates) };
}

/// Installs segments, stacks and handlers on this processor, which gets the number `number`, and lets interrupts come.
pub(crate) fn install(number: usize) {
    let stacks = STACKS[number].0.get() as u64;
    let top = |index: usize| stacks + ((index + 1) * STACK) as u64;
    // SAFETY: each processor has a number of its own; the stacks are static and identity-mapped.
    unsafe {
        SEGMENTS[number].install(Stacks {
            kernel: 0,
            interrupt: [top(0), top(1), 0],
        });
    }
    GATES.install();
    register::set_segment_bases(0, &raw const NUMBERS[number] as u64);
    Control::current().union(Control::PGE).load();
    local_apic::enable(SPURIOUS_VECTOR);
    enable_interrupts();
}

/// This processor's number.
pub(crate) fn number() -> usize {
    let number: u64;
    // SAFETY: GS points at the number since `install`.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) number, options(nostack, preserves_flags, readonly, pure))
    };
    number as usize
}

/// Lets interrupts come.
pub(crate) fn enable_interrupts() {
    // SAFETY: `install` set the handlers, which preserve all registers.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps interrupts away until [`enable_interrupts`].
pub(crate) fn disable_interrupts() {
    // SAFETY: it only delays them.
    unsafe { asm!("cli", options(nostack)) };
}
