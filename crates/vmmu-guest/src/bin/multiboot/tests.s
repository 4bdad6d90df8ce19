// Tests that hold in every mode: memory at many addresses, a block copy, code that rewrites itself, exceptions.

.section .text.guest, "ax"
.code32

run_tests:
    call test_memory
    call test_block
    call test_own_code
    call test_traps
    ret

// Every address of the list gets a value of its own, then its complement, and finally what it held before. All
// values stand at once, so two addresses that reach the same memory are found.
test_memory:
    pushad
    mov ebx, offset test_addresses
    mov edi, offset saved_values
2:  call next_address
    jc 3f
    mov eax, [edx]
    mov [edi], eax
    add edi, 4
    mov eax, edx
    xor eax, 0xa5a5a5a5
    mov [edx], eax
    jmp 2b
3:  mov ebx, offset test_addresses
4:  call next_address
    jc 5f
    mov eax, edx
    xor eax, 0xa5a5a5a5
    cmp [edx], eax
    jne 8f
    not dword ptr [edx]
    jmp 4b
5:  mov ebx, offset test_addresses
    mov edi, offset saved_values
6:  call next_address
    jc 7f
    mov eax, edx
    xor eax, 0x5a5a5a5a
    cmp [edx], eax
    jne 8f
    mov eax, [edi]
    mov [edx], eax
    add edi, 4
    jmp 6b
7:  popad
    ret
8:  mov eax, edx
    call put_hex
    fail " holds another value than was stored"

// EDX = the next address of the list at EBX that lies in RAM; CF at its end. The entry 1 stands for the last
// four bytes of RAM.
next_address:
    mov edx, [ebx]
    add ebx, 4
    cmp edx, 0
    je 4f
    cmp edx, 1
    jne 2f
    mov edx, [ram_end]
    sub edx, 4
    clc
    ret
2:  lea eax, [edx + 8]
    cmp eax, [ram_end]
    ja next_address
    clc
    ret
4:  stc
    ret

// 64 KiB are filled, copied and compared by string instructions.
test_block:
    pushad
    mov edi, offset block
    mov ecx, 0x4000
    mov eax, 0x01234567
2:  stosd
    imul eax, eax, 1664525
    add eax, 1013904223
    loop 2b
    mov esi, offset block
    mov edi, offset block + 0x10000
    mov ecx, 0x4000
    rep movsd
    mov esi, offset block
    mov edi, offset block + 0x10000
    mov ecx, 0x4000
    repe cmpsd
    je 2f
    fail "a copied block differs"
2:  popad
    ret

// An instruction of the guest's own is rewritten and then executed.
test_own_code:
    mov byte ptr [4f + 1], 0x11
    call 3f
    cmp eax, 0x11
    jne 2f
    mov byte ptr [4f + 1], 0x22
    call 3f
    cmp eax, 0x22
    jne 2f
    ret
2:  fail "rewritten code is not executed"
3:  xor eax, eax
4:  mov al, 0
    ret

// Exceptions reach the guest's own handlers.
test_traps:
    pushad
    expect 6, after_ud2
    ud2
    expect_end after_ud2, "UD2"
    expect 0, after_division
    xor eax, eax
    xor edx, edx
    div eax
    expect_end after_division, "division by zero"
    expect 13, after_selector
    mov eax, 0xf8
    mov fs, eax
    expect_end after_selector, "selector outside the GDT"
    cmp dword ptr [trap_error], 0xf8
    je 2f
    fail "error code of #GP"
2:  popad
    ret

// Fills the IDT: each vector's stub tells it to `trap`.
init_traps:
    mov edi, offset idt
    mov edx, offset trap_stubs
    mov ecx, 32
2:  mov eax, edx
    mov [edi], ax
    mov word ptr [edi + 2], CODE32
    mov word ptr [edi + 4], 0x8e00
    shr eax, 16
    mov [edi + 6], ax
    add edi, 8
    add edx, 16
    loop 2b
    lidt [idt_pointer]
    ret

// Resumes where `expect` says, if this is the exception that it names; otherwise the run fails.
trap:
    pop eax
    cmp eax, [trap_vector]
    jne 2f
    pop eax
    mov [trap_error], eax
    mov esp, [trap_stack]
    jmp [trap_resume]
2:  say "exception "
    call put_hex
    say " stack "
    pop eax
    call put_hex
    say " "
    pop eax
    call put_hex
    say " cr2 "
    mov eax, cr2
    call put_hex
    fail " unexpected exception"

.balign 16
trap_stubs:
.set vector, 0
.rept 32
    .balign 16
    push vector
    jmp trap
    .set vector, vector + 1
.endr

.pushsection .rodata.guest, "a"
.balign 4
// The low memory, both sides of the 2 MiB and 4 MiB borders, across them, the middle, the end.
test_addresses:
    .long 0x00009000, 0x00050004, 0x0008fff0, 0x001ff000, 0x001ffffe, 0x00200800, 0x003ffffd, 0x00400010
    .long 0x005ffffc, 0x00600000, 0x007fffff, 0x00800ffe, 0x00a12344, 0x00c00000, 0x00fffffc, 0x01000000
    .long 0x01fffffe, 0x02345678, 0x03fffff8, 0x04000000, 0x08000000, 0x0ffffffe, 0x20000000, 0x40000000
    .long 1, 0
.popsection

.pushsection .data.guest, "aw"
.balign 4
idt_pointer:
    .word 255
    .long idt
.balign 4
trap_vector: .long -1
.popsection

.pushsection .bss.guest, "aw", @nobits
.balign 4096
block: .skip 0x20000
idt: .skip 256
saved_values: .skip 128
trap_resume: .skip 4
trap_stack: .skip 4
trap_error: .skip 4
.popsection
