// The maker. EBP: the number of the round, from 1 on. The entry leads to the page whose number is the last bit of that.

.pushsection .text.guest, "ax"
.code32
make:
    mov $1, %ebp
1:  cmp %ebp, ready
    je 2f
    pause
    jmp 1b
2:  mov %ebp, begun
    // Up to 1,023 steps, by the ten highest bits of a product: so that the write comes first at times.
    imul $0x9e3779b1, %ebp, %ecx
    shr $22, %ecx
    inc %ecx
6:  dec %ecx
    jnz 6b
    // Paging on, in compatibility mode: the code stays what it is.
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    mov PROBE, %eax
3:  cmp %ebp, written
    je 4f
    pause
    jmp 3b
4:  mov %cr3, %eax
    mov %eax, %cr3
    mov PROBE, %eax
    mov %cr0, %ecx
    and $0x7fffffff, %ecx
    mov %ecx, %cr0
    xor %ebp, %eax
    and $1, %eax
    add %eax, stale
    // Half an entry each time: no tables any more.
    mov root, %ax
    mov %ax, root
    mov directory_pointers, %ax
    mov %ax, directory_pointers
    mov directory, %ax
    mov %ax, directory
    // Every sixteenth time: as many emulated writes without any table as make the asymmetric gate close, so that the next round opens it.
    test $15, %ebp
    jnz 8f
    mov $IDLE_WRITES, %edx
7:  mov $INITIAL_COUNT, %esi
    mov $idle, %edi
    movsl
    dec %edx
    jnz 7b
8:  inc %ebp
    cmp rounds, %ebp
    jbe 1b
    mov stale, %eax
    out %eax, $0xf4
5:  hlt
    jmp 5b
.popsection
