// The program of the first process and its children. It runs at the lowest address of a process, in user mode, wherever this file is
// linked: no absolute address of its own, no data but registers, heap and stack. System calls: RAX is the number, RDI and RSI are arguments,
// RAX is the answer, every other register stays.
//
// R12 is the process's number: 0 is the first process, 1 to 8 are its children. Page p of the heap holds p, and after a child wrote
// it (p a multiple of 4) the child's number in the upper half.

.set HEAP, {heap}
.set AREA, {area}
.set PAGES, 256
.set CHILDREN, 8
.set TURNS, 100
.set ROUNDS, 20
.set AREA_PAGES, 64

.macro SYSTEM number
    mov eax, \number
    int3
.endm

.macro PHASE number, operations
    mov edi, \number
    mov esi, \operations
    SYSTEM {phase}
.endm

demo_program:
    PHASE 1, PAGES
    xor r12d, r12d
    movabs rbx, HEAP
    xor ecx, ecx
2:  mov [rbx], rcx
    add rbx, 4096
    inc ecx
    cmp ecx, PAGES
    jne 2b

    PHASE 2, CHILDREN
    mov r12d, 1
2:  SYSTEM {fork}
    test rax, rax
    jz demo_child
    inc r12d
    cmp r12d, CHILDREN + 1
    jne 2b
    xor r12d, r12d

    PHASE 3, CHILDREN * PAGES / 4
    push rax
    pop rax
    SYSTEM {turn}

    PHASE 4, TURNS * (CHILDREN + 1)
    call demo_take_turns

    PHASE 5, ROUNDS * AREA_PAGES
    mov r13d, ROUNDS
3:  xor edi, edi
    mov esi, AREA_PAGES
    SYSTEM {map}
    movabs rbx, AREA
    mov ecx, AREA_PAGES
2:  mov [rbx], r13
    add rbx, 4096
    dec ecx
    jnz 2b
    cmp [rbx - 4096], r13
    jne demo_bad
    xor edi, edi
    mov esi, AREA_PAGES
    SYSTEM {unmap}
    dec r13d
    jnz 3b

    PHASE 6, CHILDREN
2:  SYSTEM {wait}
    cmp rax, -1
    je 3f
    test rax, rax
    jz 2b
    jmp demo_bad
3:  call demo_check
    PHASE 0, 0
    jmp demo_good

demo_child:
    push rax
    pop rax
    movabs rbx, HEAP
    xor ecx, ecx
2:  mov rax, r12
    shl rax, 32
    or rax, rcx
    mov [rbx], rax
    add rbx, 4 * 4096
    add ecx, 4
    cmp ecx, PAGES
    jb 2b
    SYSTEM {turn}
    call demo_take_turns
    call demo_check
demo_good:
    xor edi, edi
    SYSTEM {exit}
demo_bad:
    mov edi, 1
    SYSTEM {exit}

// Looks at four pages each turn, then lets the others go on.
demo_take_turns:
    mov r13d, TURNS
2:  mov ecx, r13d
    shl ecx, 2
    and ecx, PAGES - 4
    mov r14d, 4
3:  call demo_look
    inc ecx
    dec r14d
    jnz 3b
    SYSTEM {turn}
    dec r13d
    jnz 2b
    ret

// Looks at every page.
demo_check:
    xor ecx, ecx
2:  call demo_look
    inc ecx
    cmp ecx, PAGES
    jne 2b
    ret

// Looks at page ECX.
demo_look:
    mov rdx, rcx
    test cl, 3
    jnz 2f
    mov rdx, r12
    shl rdx, 32
    or rdx, rcx
2:  mov rax, rcx
    shl rax, 12
    movabs rbx, HEAP
    cmp [rbx + rax], rdx
    jne demo_bad
    ret
demo_program_end:
