// The command line: exit=N and mode=NAME.

.section .text.guest, "ax"
.code32

// Sets exit_value, mode_name and mode_routine.
read_options:
    mov esi, offset exit_option
    call find_option
    test eax, eax
    jz 2f
    call parse_number
    mov [exit_value], eax
2:  mov esi, offset mode_option
    call find_option
    test eax, eax
    jnz 2f
    ret
2:  mov ebx, offset modes
3:  mov esi, [ebx]
    test esi, esi
    jz 4f
    call same_word
    je 5f
    add ebx, 8
    jmp 3b
4:  say "FAIL unknown mode\n"
    mov eax, BAD_OPTION
    jmp end_run
5:  mov [mode_name], esi
    mov eax, [ebx + 4]
    mov [mode_routine], eax
    ret

// EAX = where the value of the option whose name (with '=') is at ESI begins, or 0.
find_option:
    push esi
    push edi
    push ebx
    mov ebx, esi
    mov edi, [command_line]
    test edi, edi
    jz 6f
2:  push edi
    mov esi, ebx
3:  mov al, [esi]
    test al, al
    jz 5f
    cmp al, [edi]
    jne 4f
    inc esi
    inc edi
    jmp 3b
4:  pop edi
7:  mov al, [edi]
    test al, al
    jz 6f
    inc edi
    cmp al, ' '
    jne 7b
    jmp 2b
5:  add esp, 4
    mov eax, edi
    jmp 8f
6:  xor eax, eax
8:  pop ebx
    pop edi
    pop esi
    ret

// Compares the text at ESI with the word at EAX, which ends at a space or zero. ZF: the same.
same_word:
    push esi
    push eax
    push ecx
2:  mov cl, [esi]
    test cl, cl
    jz 3f
    cmp cl, [eax]
    jne 4f
    inc esi
    inc eax
    jmp 2b
3:  cmp byte ptr [eax], 0
    je 4f
    cmp byte ptr [eax], ' '
4:  pop ecx
    pop eax
    pop esi
    ret

// EAX = the number at EAX, decimal or 0x and hexadecimal.
parse_number:
    push esi
    push ecx
    push edx
    mov esi, eax
    mov ecx, 10
    cmp word ptr [esi], 0x7830
    jne 2f
    add esi, 2
    mov ecx, 16
2:  xor eax, eax
3:  movzx edx, byte ptr [esi]
    inc esi
    cmp edx, 'a'
    jb 4f
    sub edx, 'a' - '0' - 10
4:  sub edx, '0'
    cmp edx, ecx
    jae 5f
    imul eax, ecx
    add eax, edx
    jmp 3b
5:  pop edx
    pop ecx
    pop esi
    ret

.pushsection .rodata.guest, "a"
exit_option: .asciz "exit="
mode_option: .asciz "mode="
.macro mode name:req, routine:req
    .long name\@, \routine
    .pushsection .rodata.names, "a"
name\@: .asciz "\name"
    .popsection
.endm
.balign 4
modes:
    mode "unpaged", mode_unpaged
    mode "legacy32", mode_legacy32
    mode "pae", mode_pae
    mode "long", mode_long
    mode "real", mode_real
    mode "crash", mode_crash
    mode "crash64", mode_crash64
    mode "hang", mode_hang
    mode "halt", mode_halt
    mode "reset", mode_reset
    mode "reset92", mode_reset92
    mode "resetcf9", mode_resetcf9
    .long 0, 0
default_mode: .asciz "unpaged"
.popsection

.pushsection .data.guest, "aw"
.balign 4
exit_value: .long 0
mode_name: .long default_mode
mode_routine: .long mode_unpaged
.popsection
