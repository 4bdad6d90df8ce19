// The writer. EBP: the number of the round, from 1 on. EBX: random bits, never 0.

.pushsection .text.guest, "ax"
.code16
trampoline:
    cli
    cld
    xor %ax, %ax
    mov %ax, %ds
    lgdtl trampoline_pointer - trampoline + TRAMPOLINE
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $CODE, $write
.balign 4
trampoline_pointer: .word 23
.long gdt
trampoline_end:

.code32
write:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $1, %ebp
    mov $0x2545f491, %ebx
    // The entry of an odd round is that of page 1.
1:  mov $PAGE_1 + LARGE, %eax
    test $1, %ebp
    jnz 2f
    mov $PAGE_0 + LARGE, %eax
2:  mov %eax, INITIAL_COUNT
    mov %ebp, ready
3:  cmp %ebp, begun
    je 4f
    pause
    jmp 3b
    // Up to 2,047 steps, by xorshift with 13, 17 and 5.
4:  mov %ebx, %eax
    shl $13, %eax
    xor %eax, %ebx
    mov %ebx, %eax
    shr $17, %eax
    xor %eax, %ebx
    mov %ebx, %eax
    shl $5, %eax
    xor %eax, %ebx
    mov %ebx, %ecx
    and $0x7ff, %ecx
    inc %ecx
5:  dec %ecx
    jnz 5b
    // The write: whoever emulates the read of the device emulates all of the instruction.
    mov $INITIAL_COUNT, %esi
    mov $directory + 8, %edi
    movsl
    mov %ebp, written
    inc %ebp
    cmp rounds, %ebp
    jbe 1b
6:  hlt
    jmp 6b
.popsection
