//! What a program without an operating system must bring along: the memory functions that compiled code calls, and a
//! panic handler. Each guest includes this file as a module of its own, so that nothing of it reaches a hosted build.
#![allow(unsafe_code)]

use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;

use vmmu_guest::console::DebugConsole;
use vmmu_guest::machine::end_run;

/// The value that a run ends with after a panic.
const PANIC: u32 = 0x7f;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // Writing to the debug console cannot fail.
    let _ = writeln!(DebugConsole, "PANIC {info}");
    end_run(PANIC)
}

/// Copies `length` bytes upwards.
///
/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies `length` bytes between ranges that may overlap.
///
/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: copying upwards never overwrites a byte that is still to be read.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY: `to` lies inside the source range, so copying downwards never overwrites a byte that is still to be
    // read. The length is not 0 here, so the last bytes exist. The direction flag is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") length => _, inout("rdi") to.wrapping_add(length - 1) => _,
             inout("rsi") from.wrapping_add(length - 1) => _, options(nostack));
    }
    to
}

/// Fills `length` bytes.
///
/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") value as u8,
             options(nostack, preserves_flags));
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
        // SAFETY: the caller vouches for this range. Volatile, or the compiler makes this loop a call of itself.
        let a = unsafe { left.wrapping_add(offset).read_volatile() };
        // SAFETY: the caller vouches for this range too.
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
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, length) }
}

/// Prebuilt `core` names it in its unwind tables; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    end_run(PANIC)
}
