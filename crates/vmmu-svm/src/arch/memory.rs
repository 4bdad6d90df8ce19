//! The memory functions that compiled code calls, and the two symbols that prebuilt `core` names and nothing calls.

use core::arch::{asm, global_asm};

// 16 bytes a step, so that a frame's worth costs hundreds of instructions and not thousands; the rest byte by byte.
global_asm!(
    ".text",
    ".globl memcpy",
    "memcpy:",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "shr $6, %rcx",
    "jz 3f",
    "2: movups (%rsi), %xmm0",
    "movups 16(%rsi), %xmm1",
    "movups 32(%rsi), %xmm2",
    "movups 48(%rsi), %xmm3",
    "movups %xmm0, (%rdi)",
    "movups %xmm1, 16(%rdi)",
    "movups %xmm2, 32(%rdi)",
    "movups %xmm3, 48(%rdi)",
    "add $64, %rsi",
    "add $64, %rdi",
    "dec %rcx",
    "jnz 2b",
    "3: mov %edx, %ecx",
    "and $63, %ecx",
    "shr $3, %ecx",
    "rep movsq",
    "mov %edx, %ecx",
    "and $7, %ecx",
    "rep movsb",
    "ret",
    ".globl memset",
    "memset:",
    "mov %rdi, %r8",
    "movzx %sil, %eax",
    "mov $0x0101010101010101, %rcx",
    "imul %rcx, %rax",
    "movq %rax, %xmm0",
    "punpcklqdq %xmm0, %xmm0",
    "mov %rdx, %rcx",
    "shr $6, %rcx",
    "jz 3f",
    "2: movups %xmm0, (%rdi)",
    "movups %xmm0, 16(%rdi)",
    "movups %xmm0, 32(%rdi)",
    "movups %xmm0, 48(%rdi)",
    "add $64, %rdi",
    "dec %rcx",
    "jnz 2b",
    "3: mov %edx, %ecx",
    "and $63, %ecx",
    "shr $3, %ecx",
    "rep stosq",
    "mov %edx, %ecx",
    "and $7, %ecx",
    "rep stosb",
    "mov %r8, %rax",
    "ret",
    options(att_syntax)
);

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8;
}

/// Copies `length` bytes between ranges that may overlap.
///
/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    let apart = (to as usize).wrapping_sub(from as usize);
    // Blocks of 64 bytes are read whole before they are written: copying upwards is right for a target below the source too.
    if apart >= length || apart == 0 {
        // SAFETY:
        // - The caller vouches for both ranges; no byte is overwritten before it is read.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY:
    // - `to` lies inside the source range, so that copying downwards never overwrites a byte that is still to be read.
    // - The length is not 0 here, so that the last bytes exist; the direction flag is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") length => _, inout("rdi") to.wrapping_add(length - 1) => _,
             inout("rsi") from.wrapping_add(length - 1) => _, options(nostack));
    }
    to
}

/// Compares `length` bytes.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for offset in 0..length {
        // SAFETY:
        // - The caller vouches for this range. Volatile, or the compiler makes this loop a call of itself.
        let a = unsafe { left.wrapping_add(offset).read_volatile() };
        // SAFETY:
        // - The caller vouches for this range too.
        let b = unsafe { right.wrapping_add(offset).read_volatile() };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Says whether `length` bytes differ.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY:
    // - The caller's promise is the same.
    unsafe { memcmp(left, right, length) }
}

/// Prebuilt `core` names it in its unwind tables; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    super::register::halt()
}
