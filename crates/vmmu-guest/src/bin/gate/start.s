// The entry point, the tables, and what the two processors share.

.set CODE, 0x08
.set DATA, 0x10

// Below 1 MiB: where the writer starts in real mode; the page number is the vector of the start-up message.
.set TRAMPOLINE, 0x8000

// Two large pages, which hold their number, and the large page of the address space that is one or the other.
.set PAGE_0, 0x400000
.set PAGE_1, 0x600000
.set PROBE, 0x200000

// A link: present, writable, accessed. A large page: the same, dirty and large. So the processor changes no entry.
.set LINK, 0x23
.set LARGE, 0xe3

// The local APIC: interrupt command, and the timer's initial count, which reads as it was written (Intel SDM vol. 3, section 11.4.1).
.set COMMAND_LOW, 0xfee00300
.set COMMAND_HIGH, 0xfee00310
.set INITIAL_COUNT, 0xfee00380

// More than the library's asymmetric gate is patient for.
.set IDLE_WRITES, 300

// The PVH note: owner "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), the physical entry address.
.pushsection .note.pvh, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad _start
.popsection

.pushsection .text.entry, "ax"
.code32
.globl _start
_start:
    cli
    cld
    mov $stack_top, %esp
    call read_rounds
    lgdt gdt_pointer
    ljmp $CODE, $1f
1:  mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    call make_tables
    call start_writer
    jmp make

// The command line is a decimal number. EBX: the start info, the command line's address is at offset 24 of it (Xen, public/arch-x86/hvm/start_info.h).
read_rounds:
    mov 24(%ebx), %esi
    xor %ecx, %ecx
1:  movzbl (%esi), %eax
    sub $'0', %eax
    cmp $9, %eax
    ja 2f
    imul $10, %ecx, %ecx
    add %eax, %ecx
    inc %esi
    jmp 1b
2:  mov %ecx, rounds
    ret

// Four levels: the first 2 MiB one to one, and the page that is written to. The registers are set, but for CR0.PG.
make_tables:
    movl $directory_pointers + LINK, root
    movl $directory + LINK, directory_pointers
    movl $LARGE, directory
    movl $PAGE_0 + LARGE, directory + 8
    movl $0, PAGE_0
    movl $1, PAGE_1
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $root, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    ret

// INIT and a start-up message to the processor with the identifier 1.
start_writer:
    mov $trampoline, %esi
    mov $TRAMPOLINE, %edi
    mov $trampoline_end - trampoline, %ecx
    rep movsb
    movl $1 << 24, COMMAND_HIGH
    movl $0x4500, COMMAND_LOW
    movl $0x4600 + TRAMPOLINE / 4096, COMMAND_LOW
    ret

.balign 8
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer: .word 23
.long gdt
.popsection

.pushsection .bss.guest, "aw", @nobits
.balign 4096
root: .skip 4096
directory_pointers: .skip 4096
directory: .skip 4096
.skip 4096
stack_top:
rounds: .skip 4
stale: .skip 4
idle: .skip 4
// Numbers of rounds: the writer is ready, the round has begun, the entry is written.
.balign 64
ready: .skip 64
begun: .skip 64
written: .skip 64
.popsection
