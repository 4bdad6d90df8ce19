//! The image's first instructions: from the 32-bit PVH entry to 64-bit Rust, and the stubs of the host's exceptions.
//!
//! The PVH loader enters with paging off, flat segments and EBX pointing at the start info. The code here maps the first 4 GiB
//! one to one with 2 MiB pages, switches SSE and long mode on and calls `vmmu_start`.

use core::arch::global_asm;

global_asm!(
    ".section .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad vmmu_entry",
    ".section .text.entry, \"ax\"",
    ".code32",
    ".globl vmmu_entry",
    "vmmu_entry:",
    "cli",
    "cld",
    "mov $vmmu_boot_stack_top, %esp",
    // Six tables: the root, the level-3 table, four level-2 tables; .bss is zero.
    "mov $vmmu_boot_tables + 0x1003, %eax",
    "mov %eax, vmmu_boot_tables",
    "mov $vmmu_boot_tables + 0x2003, %eax",
    "mov $vmmu_boot_tables + 0x1000, %edi",
    "mov $4, %ecx",
    "2: mov %eax, (%edi)",
    "add $0x1000, %eax",
    "add $8, %edi",
    "loop 2b",
    "mov $vmmu_boot_tables + 0x2000, %edi",
    "mov $0x83, %eax",
    "mov $2048, %ecx",
    "3: mov %eax, (%edi)",
    "add $0x200000, %eax",
    "add $8, %edi",
    "loop 3b",
    // PAE, OSFXSR, OSXMMEXCPT.
    "mov %cr4, %eax",
    "or $0x620, %eax",
    "mov %eax, %cr4",
    "mov $vmmu_boot_tables, %eax",
    "mov %eax, %cr3",
    // LME, NXE.
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "or $0x900, %eax",
    "wrmsr",
    // PG, WP, NE, MP on; EM, TS, CD, NW off.
    "mov %cr0, %eax",
    "and $0x9fffffff & ~0xc, %eax",
    "or $0x80010023, %eax",
    "mov %eax, %cr0",
    "lgdt vmmu_boot_gdtr",
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
    "mov %ebx, %edi",
    "xor %ebp, %ebp",
    "call vmmu_start",
    "5: hlt",
    "jmp 5b",
    ".balign 8",
    "vmmu_boot_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff",
    "vmmu_boot_gdtr: .word 31",
    ".long vmmu_boot_gdt",
    ".section .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    ".globl vmmu_boot_tables",
    "vmmu_boot_tables: .skip 0x6000",
    ".balign 4096",
    // The lowest page of the stack is taken away once tables can be changed.
    ".globl vmmu_boot_stack",
    "vmmu_boot_stack: .skip 0x41000",
    "vmmu_boot_stack_top:",
    ".text",
    options(att_syntax)
);

global_asm!(
    ".text",
    ".globl vmmu_exception_stubs",
    ".balign 16",
    "vmmu_exception_stubs:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    // The vectors whose delivery pushes an error code (AMD APM vol. 2, section 8.2).
    ".if (0x60227d00 >> vector) & 1 == 0",
    "push $0",
    ".endif",
    "push $vector",
    "jmp 2f",
    ".set vector, vector + 1",
    ".endr",
    // An NMI that the host lets in: whoever lets it in, between the two labels below, finds in EAX how many. One that was let in to end a
    // wait, but came before the HLT, skips that.
    ".balign 16",
    ".globl vmmu_nmi_stub",
    "vmmu_nmi_stub: push %rcx",
    "push %rdx",
    "mov 16(%rsp), %rcx",
    "lea vmmu_letting_in(%rip), %rdx",
    "sub %rdx, %rcx",
    "cmp $(vmmu_let_in - vmmu_letting_in), %rcx",
    "ja 3f",
    "inc %eax",
    "cmp $(vmmu_wait_halt - vmmu_letting_in), %rcx",
    "jne 3f",
    "incq 16(%rsp)",
    "3: pop %rdx",
    "pop %rcx",
    "iretq",
    // Lets in the NMIs that wait.
    ".globl vmmu_let_nmis_in",
    "vmmu_let_nmis_in: xor %eax, %eax",
    "vmmu_letting_in: stgi",
    "nop",
    "clgi",
    "ret",
    // Lets interrupts in too, which are discarded.
    ".globl vmmu_let_interrupts_in",
    "vmmu_let_interrupts_in: xor %eax, %eax",
    "stgi",
    "sti",
    "nop",
    "nop",
    "cli",
    "clgi",
    "ret",
    // Waits for an NMI, which is held off before and after.
    ".globl vmmu_wait_for_nmi",
    "vmmu_wait_for_nmi: xor %eax, %eax",
    "stgi",
    "vmmu_wait_halt: hlt",
    "clgi",
    "vmmu_let_in: ret",
    ".globl vmmu_discard",
    ".balign 16",
    "vmmu_discard: iretq",
    "2: mov %rsp, %rdi",
    "and $-16, %rsp",
    "call vmmu_exception",
    "ud2",
    options(att_syntax)
);

/// The vector of NMIs.
const NMI: u8 = 2;

unsafe extern "C" {
    static vmmu_nmi_stub: u8;
    static vmmu_discard: u8;
    static vmmu_exception_stubs: [u8; 32 * 16];
    static vmmu_boot_stack: u8;
    static vmmu_image_start: u8;
    static vmmu_image_end: u8;
}

/// Returns the address of the stub of an exception vector below 32.
pub(super) fn stub(vector: u8) -> u64 {
    if vector == NMI {
        return (&raw const vmmu_nmi_stub) as u64;
    }
    (&raw const vmmu_exception_stubs) as u64 + u64::from(vector & 31) * 16
}

/// Returns the address of the handler that does nothing.
pub(super) fn discard() -> u64 {
    (&raw const vmmu_discard) as u64
}

/// Returns where the image, its stack included, begins and ends in memory.
pub(super) fn image_range() -> core::ops::Range<u64> {
    (&raw const vmmu_image_start) as u64..(&raw const vmmu_image_end) as u64
}

/// Returns the page that the stack must not grow into.
pub(super) fn stack_guard() -> u64 {
    (&raw const vmmu_boot_stack) as u64
}

/// What a stub and the processor push.
#[repr(C)]
#[derive(Debug)]
struct ExceptionFrame {
    vector: u64,
    code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

#[unsafe(no_mangle)]
extern "C" fn vmmu_exception(frame: &ExceptionFrame) -> ! {
    let cr2 = super::register::cr2();
    panic!(
        "the hypervisor took exception {:#x} (error code {:#x}) at {:#x}, stack {:#x}, fault address {cr2}",
        frame.vector, frame.code, frame.rip, frame.rsp
    )
}

#[unsafe(no_mangle)]
extern "C" fn vmmu_start(start_info: u32) -> ! {
    crate::image::start(vmmu::addr::Hpa::new(u64::from(start_info)))
}
