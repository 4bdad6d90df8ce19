//! From the loader's hand-over (32-bit protected mode, paging off) to a function in 64-bit mode.

/// Makes `$main` (an `extern "C" fn(&'static CommandLine) -> !`) the program: emits `_start`, the PVH note that names it, a
/// stack and the bootstrap tables' set-up.
///
/// What `$main` finds: 64-bit mode, interrupts off, CR4 = PAE | OSFXSR | OSXMMEXCPT, CR0 with PG, WP, MP and PE, EFER with
/// LME and NXE; PML4 at 0x1000, PDPT at 0x2000, page directory at 0x3000 mapping the first 64 MiB one to one with
/// supervisor-only 2 MiB pages (A and D set); selectors 8 (code) and 16 (data); a stack of 16 KiB. SSE works, since
/// the prebuilt `core` uses it.
#[macro_export]
macro_rules! long_mode_entry {
    ($main:path) => {
        core::arch::global_asm!(
            // The PVH note: owner "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), the physical entry address.
            ".pushsection .note.pvh, \"a\", @note",
            ".balign 4",
            ".long 4, 8, 18",
            ".asciz \"Xen\"",
            ".quad _start",
            ".popsection",
            ".pushsection .bss.stack, \"aw\", @nobits",
            ".balign 16",
            ".skip 16384",
            "boot_stack_top:",
            "boot_command_line: .skip {capacity}",
            ".popsection",
            ".pushsection .text.entry, \"ax\"",
            ".code32",
            ".globl _start",
            "_start:",
            "cli",
            "cld",
            "mov $boot_stack_top, %esp",
            // The command line lies where the tables go. EBX: the start info, if its magic number is right; the
            // command line's address is at offset 24 of it (Xen, public/arch-x86/hvm/start_info.h).
            "cmpl $0x336ec578, (%ebx)",
            "jne 5f",
            "mov 24(%ebx), %esi",
            "test %esi, %esi",
            "jz 5f",
            "mov $boot_command_line, %edi",
            "mov ${capacity} - 1, %ecx",
            "4: lodsb",
            "stosb",
            "test %al, %al",
            "loopnz 4b",
            "5:",
            "mov $0x1000, %edi",
            "xor %eax, %eax",
            "mov $3072, %ecx",
            "rep stosl",
            "movl $0x2007, 0x1000",
            "movl $0x3007, 0x2000",
            "mov $0x3000, %edi",
            "mov $0xe3, %eax",
            "mov $32, %ecx",
            "2: movl %eax, (%edi)",
            "add $0x200000, %eax",
            "add $8, %edi",
            "loop 2b",
            "mov %cr4, %eax",
            "or $0x620, %eax",
            "mov %eax, %cr4",
            "mov $0x1000, %eax",
            "mov %eax, %cr3",
            "mov $0xc0000080, %ecx",
            "rdmsr",
            "or $0x900, %eax",
            "wrmsr",
            "mov %cr0, %eax",
            "and $0xfffffff3, %eax",
            "or $0x80010003, %eax",
            "mov %eax, %cr0",
            "lgdt boot_gdt_pointer",
            "ljmp $8, $3f",
            ".code64",
            "3: mov $16, %eax",
            "mov %eax, %ds",
            "mov %eax, %es",
            "mov %eax, %ss",
            "xor %ebp, %ebp",
            "mov $boot_command_line, %edi",
            "call {main}",
            "ud2",
            ".balign 8",
            "boot_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
            "boot_gdt_pointer: .word 23",
            ".long boot_gdt",
            ".popsection",
            main = sym $main,
            capacity = const $crate::machine::CommandLine::CAPACITY,
            options(att_syntax),
        );
    };
}
