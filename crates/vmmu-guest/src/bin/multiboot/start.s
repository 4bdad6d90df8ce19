// The multiboot header, the entry point, what the loader handed over, and the end of the run.

.pushsection .multiboot, "a"
.balign 4
// Flags: modules on page boundaries, memory information wanted.
.long 0x1badb002, 0x00000003, -(0x1badb002 + 0x00000003)
.popsection

.section .text.guest, "ax"
.code32
.globl _start
_start:
    cli
    cld
    mov esp, offset stack_top
    mov [loader_magic], eax
    mov [info], ebx
    lgdt [gdt_pointer]
    far_jump CODE32, reloaded
reloaded:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    call init_console
    call init_traps
    say "multiboot guest\n"
    call check_state
    call show_command_line
    call show_modules
    call show_memory
    call read_options
    call [mode_routine]
    say "ok "
    mov esi, [mode_name]
    call put_text
    call put_line_end
    mov eax, [exit_value]
end_run:
    out 0xf4, eax
    say "port 0xf4 did not end the run\n"
2:  cli
    hlt
    jmp 2b

// The text of the failure has been printed.
failed:
    call put_line_end
    mov eax, FAILED
    jmp end_run

// The loader's promises (Multiboot Specification 0.6.96, section 3.2).
check_state:
    cmp dword ptr [loader_magic], 0x2badb002
    je 2f
    fail "EAX holds no multiboot magic"
2:  mov eax, cr0
    test eax, 0x80000000
    jz 2f
    fail "paging is on at entry"
2:  test eax, 1
    jnz 2f
    fail "protected mode is off at entry"
2:  mov ebx, [info]
    say "info at "
    mov eax, ebx
    call put_hex
    say " flags "
    mov eax, [ebx]
    call put_hex
    call put_line_end
    ret

show_command_line:
    mov ebx, [info]
    test dword ptr [ebx], 1 << 2
    jnz 2f
    say "no command line\n"
    ret
2:  mov eax, [ebx + 16]
    mov [command_line], eax
    say "command line: "
    mov esi, eax
    call put_text
    call put_line_end
    ret

// One line for each module: where, how long, its first 16 bytes, its own command line.
show_modules:
    mov ebx, [info]
    test dword ptr [ebx], 1 << 3
    jz 9f
    mov ebp, [ebx + 20]
    mov edx, [ebx + 24]
2:  test ebp, ebp
    jz 9f
    mov edi, [edx]
    mov ecx, [edx + 4]
    say "module "
    mov eax, edi
    call put_hex
    sub ecx, edi
    say " length "
    mov eax, ecx
    call put_hex
    test edi, 0xfff
    jz 3f
    fail " is not on a page boundary"
3:  say " bytes "
    cmp ecx, 16
    jbe 4f
    mov ecx, 16
4:  jecxz 5f
    mov al, [edi]
    call put_byte
    inc edi
    dec ecx
    jmp 4b
5:  say " text "
    mov esi, [edx + 8]
    test esi, esi
    jz 6f
    call put_text
6:  call put_line_end
    add edx, 16
    dec ebp
    jmp 2b
9:  ret

// The memory map, and where RAM ends below 4 GiB.
show_memory:
    mov ebx, [info]
    test dword ptr [ebx], 1
    jnz 2f
    fail "no memory sizes"
2:  mov eax, [ebx + 8]
    shl eax, 10
    add eax, 0x100000
    mov [ram_end], eax
    say "ram ends at "
    call put_hex
    call put_line_end
    test dword ptr [ebx], 1 << 6
    jnz 2f
    fail "no memory map"
2:  mov edx, [ebx + 48]
    mov edi, edx
    add edi, [ebx + 44]
3:  cmp edx, edi
    jae 4f
    say "memory "
    mov eax, [edx + 8]
    call put_hex
    mov eax, [edx + 4]
    call put_hex
    say " length "
    mov eax, [edx + 16]
    call put_hex
    mov eax, [edx + 12]
    call put_hex
    say " type "
    mov eax, [edx + 20]
    call put_hex
    call put_line_end
    add edx, [edx]
    add edx, 4
    jmp 3b
4:  ret

.pushsection .data.guest, "aw"
.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00009b000000ffff
    .quad 0x000093000000ffff
    .quad 0x00af9b000000ffff
gdt_pointer:
    .word 47
    .long gdt
.balign 4
command_line: .long 0
.popsection

.pushsection .bss.guest, "aw", @nobits
.balign 16
.skip 16384
stack_top:
loader_magic: .skip 4
info: .skip 4
ram_end: .skip 4
.popsection
