// What `mode=` names.

.section .text.guest, "ax"
.code32

mode_unpaged:
    jmp run_tests

mode_legacy32:
    call legacy32_on
    jmp paged_tests

mode_pae:
    call pae_on

paged_tests:
    call run_tests
    call test_window
    call paging_off
    jmp run_tests

// Compatibility mode, 64-bit mode, compatibility mode. Exceptions in long mode take 16-byte gates, so the tests
// that raise some are left to the other modes and to the 64-bit guests.
mode_long:
    call long_on
    call test_memory
    call test_block
    far_jump CODE64, long_code
.code64
long_code:
    mov rax, 0x1122334455667788
    mov r8, rax
    mov r15, offset block
    mov [r15 + 16], r8
    not r8
    mov rcx, [r15 + 16]
    add rcx, r8
    inc rcx
    setz byte ptr [worked]
    mov eax, CODE32
    push rax
    mov eax, offset long_return
    push rax
    retfq
.code32
long_return:
    cmp byte ptr [worked], 1
    je 2f
    fail "64-bit arithmetic"
2:  call paging_off
    xor eax, eax
    call set_efer
    jmp run_tests

// The processor finds no gate for the first exception, none for the double fault: it shuts down.
mode_crash:
    say "crashing\n"
    lidt [no_idt]
    ud2

mode_crash64:
    call long_on
    say "crashing\n"
    lidt [no_idt]
    far_jump CODE64, long_crash
.code64
long_crash:
    mov rax, 0x123456789000
    mov rax, [rax]
    ud2
.code32

mode_hang:
    say "hanging\n"
2:  jmp 2b

mode_halt:
    say "halting\n"
2:  cli
    hlt
    jmp 2b

mode_reset:
    say "resetting\n"
    mov al, 0xfe
    out 0x64, al
    jmp not_reset

mode_reset92:
    say "resetting\n"
    mov al, 1
    out 0x92, al
    jmp not_reset

mode_resetcf9:
    say "resetting\n"
    mov dx, 0xcf9
    mov al, 2
    out dx, al
    mov al, 6
    out dx, al

// A reset may take a moment.
not_reset:
    mov ecx, 100000000
2:  loop 2b
    fail "still here"

// The 16-bit code runs at REAL; what lies there is put back afterwards.
.set REAL, 0x7000
.set REAL_DATA, 0x8000
mode_real:
    mov esi, REAL
    mov edi, offset saved_code
    mov ecx, 64
    rep movsd
    push dword ptr [REAL_DATA]
    mov esi, offset real_code
    mov edi, REAL
    mov ecx, 64
    rep movsd
    mov [saved_stack], esp
    lidt [real_idt]
    far_jump CODE16, REAL
real_return:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, [saved_stack]
    lidt [idt_pointer]
    mov esi, offset saved_code
    mov edi, REAL
    mov ecx, 64
    rep movsd
    mov eax, [REAL_DATA]
    pop dword ptr [REAL_DATA]
    cmp eax, 0x5ea15ea1
    je 2f
    fail "a store in real mode"
2:  jmp run_tests

.pushsection .rodata.guest, "a"
.balign 4
.code16
real_code:
    mov ax, DATA16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    // A far jump: to segment 0, the next instruction's offset.
    .byte 0xea
    .word 2f - real_code + REAL
    .word 0
2:  xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, REAL
    mov ax, REAL_DATA >> 4
    mov es, ax
    call 3f
    mov eax, cr0
    or al, 1
    mov cr0, eax
    // A far jump with 32-bit offset: back to the 32-bit code segment.
    .byte 0x66, 0xea
    .long real_return
    .word CODE32
3:  mov dword ptr es:[0], 0x5ea15ea1
    mov al, 'r'
    out 0xe9, al
    mov al, '\n'
    out 0xe9, al
    ret
    .balign 256
.code32
no_idt:
    .word 0
    .long 0
real_idt:
    .word 0x3ff
    .long 0
.popsection

.pushsection .bss.guest, "aw", @nobits
.balign 4
saved_code: .skip 256
saved_stack: .skip 4
worked: .skip 1
.popsection
