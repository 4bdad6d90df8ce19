//! Starting the host's other processors: from INIT and start-up, in real mode, to 64-bit Rust.
//!
//! Processors are started one after the other, so that one place names the stack of the one that is coming up. The first
//! instructions are copied below 1 MiB, where a start-up finds them; they lead to the image, which is mapped already.

use alloc::boxed::Box;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use vmmu::addr::Hpa;

use super::apic::{LocalApic, Signal};
use super::register::tsc;

/// The page that processors start in. It is RAM that nobody uses: the layout leaves out all below 1 MiB.
const PAGE: u8 = 8;
/// How long a processor may take, in cycles: some seconds.
const PATIENCE: u64 = 30_000_000_000;
/// After how many cycles each it is told again.
const AGAIN: u64 = 50_000_000;

global_asm!(
    ".text",
    ".code16",
    ".globl vmmu_start_up",
    "vmmu_start_up:",
    "cli",
    "cld",
    "mov %cs, %ax",
    "mov %ax, %ds",
    "lgdtl vmmu_boot_gdtr_copy - vmmu_start_up",
    "mov %cr0, %eax",
    "or $1, %eax",
    "mov %eax, %cr0",
    "ljmpl $24, $vmmu_start_32",
    ".balign 4",
    "vmmu_boot_gdtr_copy: .word 31",
    ".long vmmu_boot_gdt",
    ".globl vmmu_start_up_end",
    "vmmu_start_up_end:",
    ".code32",
    "vmmu_start_32:",
    "mov $16, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    // As the boot processor: PAE, OSFXSR, OSXMMEXCPT; LME, NXE; PG, WP, NE, MP on; EM, TS, CD, NW off.
    "mov %cr4, %eax",
    "or $0x620, %eax",
    "mov %eax, %cr4",
    "mov $vmmu_boot_tables, %eax",
    "mov %eax, %cr3",
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "or $0x900, %eax",
    "wrmsr",
    "mov %cr0, %eax",
    "and $0x9fffffff & ~0xc, %eax",
    "or $0x80010023, %eax",
    "mov %eax, %cr0",
    "ljmp $8, $4f",
    ".code64",
    "4:",
    "mov $16, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    "xor %eax, %eax",
    "mov %eax, %fs",
    "mov %eax, %gs",
    "mov {stack}(%rip), %rsp",
    "movzbl {number}(%rip), %edi",
    "xor %ebp, %ebp",
    "call vmmu_started",
    "ud2",
    stack = sym STACK_TOP,
    number = sym NUMBER,
    options(att_syntax)
);

unsafe extern "C" {
    static vmmu_start_up: u8;
    static vmmu_start_up_end: u8;
}

/// The stack of the processor that is coming up.
static STACK_TOP: AtomicU64 = AtomicU64::new(0);
/// Its number.
static NUMBER: AtomicU8 = AtomicU8::new(0);
/// The number of the last one that is up.
static UP: AtomicU8 = AtomicU8::new(0);

/// A processor's stack; its lowest page is taken away.
#[repr(C, align(4096))]
struct Stack([u8; 0x41000]);

/// Starts the processor with this number, which is its local APIC's identifier too. It calls [`crate::image::started`].
///
/// Returns whether it came up.
pub(crate) fn start(apic: LocalApic, number: u8) -> bool {
    let stack = Box::leak(Box::<Stack>::new_uninit());
    let lowest = stack.as_ptr() as u64;
    super::mapping::unmap(Hpa::new(lowest));
    STACK_TOP.store(lowest + size_of::<Stack>() as u64, Ordering::Relaxed);
    NUMBER.store(number, Ordering::Relaxed);
    copy_first_instructions();
    apic.send(number, Signal::Init);
    let begin = tsc();
    let mut told = begin;
    apic.send(number, Signal::StartUp(PAGE));
    while UP.load(Ordering::Acquire) != number {
        let now = tsc();
        if now.wrapping_sub(begin) > PATIENCE {
            return false;
        }
        // A start-up that comes while the INIT is under way is lost.
        if now.wrapping_sub(told) > AGAIN {
            apic.send(number, Signal::StartUp(PAGE));
            told = now;
        }
        core::hint::spin_loop();
    }
    true
}

fn copy_first_instructions() {
    let from = &raw const vmmu_start_up;
    let length = (&raw const vmmu_start_up_end) as usize - from as usize;
    let to = (u64::from(PAGE) << 12) as *mut u8;
    for offset in 0..length {
        // SAFETY:
        // - The instructions lie in the image.
        let byte = unsafe { from.wrapping_add(offset).read_volatile() };
        // SAFETY:
        // - The page is RAM below 1 MiB, which the layout gives to nobody; what the boot loader left there was copied before.
        unsafe { to.wrapping_add(offset).write_volatile(byte) }
    }
}

#[unsafe(no_mangle)]
extern "C" fn vmmu_started(number: u32) -> ! {
    super::descriptor::install_another(super::entry::stub);
    let number = number as u8;
    crate::image::started(number, || UP.store(number, Ordering::Release))
}
