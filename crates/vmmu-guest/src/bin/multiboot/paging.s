// Paging in the three formats that 32-bit code can turn on, and the tests of it.
//
// Every format maps 4 GiB one to one with large pages, but for a window at 3 GiB: one page table, whose entries
// the tests change. PAE and long mode share their tables.

.section .text.guest, "ax"
.code32

.set WINDOW, 0xc0000000

// 32-bit format: CR4.PSE, 4 MiB pages.
legacy32_on:
    mov edi, offset directories
    mov eax, 0x83
    mov ecx, 1024
2:  mov [edi], eax
    add eax, 0x400000
    add edi, 4
    loop 2b
    mov eax, offset page_table
    or eax, 3
    mov [directories + 768 * 4], eax
    mov dword ptr [entry_size], 4
    mov eax, 0x10
    mov cr4, eax
    mov eax, offset directories
    mov cr3, eax
    jmp paging_on

// PAE format: four directories of 2 MiB pages.
pae_on:
    call fill_directories
    mov eax, 0x20
    mov cr4, eax
    mov eax, offset pdpt
    mov cr3, eax
    jmp paging_on

// Long mode: the same directories; entries of the upper levels need W. Leaves the processor in compatibility mode.
long_on:
    call fill_directories
    or dword ptr [pdpt], 2
    or dword ptr [pdpt + 8], 2
    or dword ptr [pdpt + 16], 2
    or dword ptr [pdpt + 24], 2
    mov eax, offset pdpt
    or eax, 3
    mov [pml4], eax
    mov eax, 0x20
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov eax, 0x100
    call set_efer

paging_on:
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
    jmp 2f
2:  ret

// From any format back to paging off.
paging_off:
    mov eax, cr0
    and eax, 0x7ffeffff
    mov cr0, eax
    jmp 2f
2:  xor eax, eax
    mov cr3, eax
    mov cr4, eax
    ret

// EFER = EAX.
set_efer:
    push ecx
    push edx
    xor edx, edx
    mov ecx, 0xc0000080
    wrmsr
    pop edx
    pop ecx
    ret

fill_directories:
    mov edi, offset directories
    mov eax, 0x83
    mov ecx, 2048
2:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 0x200000
    add edi, 8
    loop 2b
    mov eax, offset page_table
    or eax, 3
    mov [directories + 3 * 4096], eax
    mov edi, offset pdpt
    mov eax, offset directories + 1
    mov ecx, 4
2:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 4096
    add edi, 8
    loop 2b
    mov dword ptr [entry_size], 8
    ret

// Tests of the window, in whatever format is on. The low 32 bits of an entry are all that they need.
test_window:
    pushad
    mov ebx, [entry_size]
    // Two window pages lead to two frames of the block, crosswise.
    mov eax, offset block + 0x1003
    mov [page_table], eax
    mov eax, offset block + 0x0003
    mov [page_table + ebx], eax
    mov dword ptr [block], 0x11111111
    mov dword ptr [block + 0x1000], 0x22222222
    cmp dword ptr [WINDOW], 0x22222222
    jne 8f
    cmp dword ptr [WINDOW + 0x1000], 0x11111111
    jne 8f
    mov dword ptr [WINDOW + 0x1004], 0x33333333
    cmp dword ptr [block + 4], 0x33333333
    jne 8f
    // Read: A alone. Written: A and D.
    mov al, [page_table]
    and al, 0x60
    cmp al, 0x20
    jne 7f
    mov al, [page_table + ebx]
    and al, 0x60
    cmp al, 0x60
    jne 7f
    // A new frame, after INVLPG.
    mov eax, offset block + 0x2003
    mov [page_table], eax
    invlpg [WINDOW]
    mov dword ptr [WINDOW + 8], 0x44444444
    cmp dword ptr [block + 0x2008], 0x44444444
    jne 8f
    // Across the border of two pages whose frames are no neighbours.
    mov dword ptr [WINDOW + 0xffe], 0x55667788
    cmp word ptr [block + 0x2ffe], 0x7788
    jne 8f
    cmp word ptr [block], 0x5566
    jne 8f
    // Read-only (CR0.WP is set): a write faults, a read does not.
    and dword ptr [page_table], -3
    invlpg [WINDOW]
    cmp dword ptr [WINDOW + 8], 0x44444444
    jne 8f
    expect 14, after_write
    mov dword ptr [WINDOW + 12], 1
    expect_end after_write, "write to a read-only page"
    mov eax, 3
    mov edx, WINDOW + 12
    call check_fault
    // Not present.
    mov dword ptr [page_table], 0
    invlpg [WINDOW]
    expect 14, after_read
    mov al, [WINDOW + 20]
    expect_end after_read, "read of a page that is not present"
    xor eax, eax
    mov edx, WINDOW + 20
    call check_fault
    // Present again: no flush is needed.
    mov eax, offset block + 0x3003
    mov [page_table], eax
    mov dword ptr [WINDOW], 0x66666666
    cmp dword ptr [block + 0x3000], 0x66666666
    jne 8f
    popad
    ret
7:  fail "accessed or dirty bit"
8:  fail "the window shows other memory"

// The last page fault had error code EAX and address EDX.
check_fault:
    cmp [trap_error], eax
    jne 2f
    mov eax, cr2
    cmp eax, edx
    jne 3f
    ret
2:  fail "error code of a page fault"
3:  fail "address of a page fault"

.pushsection .bss.guest, "aw", @nobits
.balign 4096
directories: .skip 4 * 4096
page_table: .skip 4096
pdpt: .skip 4096
pml4: .skip 4096
entry_size: .skip 4
.popsection
