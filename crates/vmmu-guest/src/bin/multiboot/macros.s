// Assembly shared by all parts: selectors and macros. All code is 32-bit unless it says otherwise;
// routines keep every register but EAX, and EFLAGS; EAX carries arguments and results.

.set CODE32, 0x08
.set DATA, 0x10
.set CODE16, 0x18
.set DATA16, 0x20
.set CODE64, 0x28

// Value of a run whose check failed; of one with an unknown mode.
.set FAILED, 125
.set BAD_OPTION, 124

// Prints a text.
.macro say text:req
    push esi
    mov esi, offset text\@
    call put_text
    pop esi
    .pushsection .rodata.guest, "a"
text\@: .asciz "\text"
    .popsection
.endm

// Jumps from 32-bit code to `target` in the segment `selector`. EAX is lost.
.macro far_jump selector:req, target:req
    mov eax, \selector
    push eax
    mov eax, offset \target
    push eax
    retf
.endm

// Ends the run: a check failed.
.macro fail text:req
    say "FAIL \text"
    jmp failed
.endm

// Runs the instructions up to `expect_end` and demands that they raise exception `vector`. `resume` is a new label.
// Registers but ESP are lost to whatever the instructions did.
.macro expect vector:req, resume:req
    mov dword ptr [trap_vector], \vector
    mov dword ptr [trap_resume], offset \resume
    mov [trap_stack], esp
.endm
.macro expect_end resume:req, text:req
    fail "no exception: \text"
\resume: mov dword ptr [trap_vector], -1
.endm
