//! The other processors: from INIT and SIPI through real mode to a function in 64-bit mode.
//!
//! A processor starts in real mode at a page below 1 MiB, where [`start_others`] has put the trampoline. It goes through
//! protected mode to 64-bit mode under the bootstrap tables, takes the next number, and the stack of that number.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use vmmu_guest::machine::{Port, local_apic};

/// The most processors that a run uses.
pub(crate) const MOST: usize = 8;

/// Where the trampoline is put: the page number is the vector of the startup message.
const TRAMPOLINE: u64 = 0x8000;
/// Bytes of a processor's stack.
const STACK: usize = 16_384;

/// The stacks of all processors but the first.
#[repr(C, align(16))]
struct Stacks([[u8; STACK]; MOST - 1]);
static mut STACKS: Stacks = Stacks([[0; STACK]; MOST - 1]);

/// How many of the others have a number already.
static STARTED: AtomicUsize = AtomicUsize::new(0);
/// The function that they go to.
static MAIN: AtomicUsize = AtomicUsize::new(0);

global_asm!(
    ".code16",
    "smp_trampoline:",
    "cli",
    "cld",
    "xor %ax, %ax",
    "mov %ax, %ds",
    "lgdtl smp_pointer - smp_trampoline + {trampoline}",
    "mov %cr0, %eax",
    "or $1, %al",
    "mov %eax, %cr0",
    "ljmpl $24, $(smp_protected - smp_trampoline + {trampoline})",
    ".code32",
    "smp_protected:",
    "mov $16, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    // The registers as `long_mode_entry!` sets them.
    "mov $0x620, %eax",
    "mov %eax, %cr4",
    "mov $0x1000, %eax",
    "mov %eax, %cr3",
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "or $0x900, %eax",
    "wrmsr",
    "mov $0x80010033, %eax",
    "mov %eax, %cr0",
    "mov $smp_long, %eax",
    "ljmp $8, $(smp_far - smp_trampoline + {trampoline})",
    ".code64",
    "smp_far: jmp *%rax",
    ".balign 8",
    "smp_table: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff",
    "smp_pointer: .word 31",
    ".long smp_table - smp_trampoline + {trampoline}",
    "smp_trampoline_end:",
    "smp_long:",
    "mov $1, %edi",
    "lock xadd %rdi, {started}(%rip)",
    "inc %rdi",
    "mov %rdi, %rax",
    "imul ${stack}, %rax, %rax",
    "lea {stacks}(%rip), %rsp",
    "add %rax, %rsp",
    "xor %ebp, %ebp",
    "call *{main}(%rip)",
    "ud2",
    trampoline = const TRAMPOLINE,
    started = sym STARTED,
    stack = const STACK,
    stacks = sym STACKS,
    main = sym MAIN,
    options(att_syntax),
);

unsafe extern "C" {
    static smp_trampoline: u8;
    static smp_trampoline_end: u8;
}

/// Starts the processors 1 to `count` - 1, one after the other: each calls `main` with its number.
///
/// A processor that isn't there is waited for, for ever.
pub(crate) fn start_others(count: usize, main: extern "C" fn(usize) -> !) {
    prepare(main);
    for number in 1..count {
        start(number);
    }
}

/// Makes `main` what a processor that is started calls.
pub(crate) fn prepare(main: extern "C" fn(usize) -> !) {
    MAIN.store(main as usize, Ordering::SeqCst);
    let (from, to) = (&raw const smp_trampoline, &raw const smp_trampoline_end);
    for offset in 0..to as usize - from as usize {
        let target = (TRAMPOLINE as usize + offset) as *mut u8;
        // SAFETY: between the two symbols lies the code.
        let byte = unsafe { ptr::read_volatile(from.wrapping_add(offset)) };
        // SAFETY: the page below 1 MiB is used for nothing else.
        unsafe { ptr::write_volatile(target, byte) };
    }
}

/// Forgets those that were started, which do nothing any more until they are started again.
pub(crate) fn forget() {
    STARTED.store(0, Ordering::SeqCst);
}

/// Starts one processor (Intel SDM vol. 3, section 9.4.4: INIT, 10 ms, and SIPI, a second time if the first was lost).
pub(crate) fn start(number: usize) {
    let other = number as u8;
    local_apic::send_init(other);
    wait_microseconds(200);
    while STARTED.load(Ordering::SeqCst) < number {
        local_apic::send_startup(other, (TRAMPOLINE >> 12) as u8);
        for _ in 0..1_000 {
            if STARTED.load(Ordering::SeqCst) >= number {
                break;
            }
            wait_microseconds(10);
        }
    }
}

fn wait_microseconds(count: u32) {
    (0..count).for_each(|_| Port::DELAY.write_u8(0));
}
