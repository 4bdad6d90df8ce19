//! The few system calls of Linux on x86-64 that the program makes (System V ABI, AMD64 supplement, appendix A.2.1; the numbers and flags are
//! the kernel's interface to programs).

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use crate::MOST_THREADS;

global_asm!(
    ".global _start",
    "_start: mov rdi, rsp",
    "xor ebp, ebp",
    "and rsp, -16",
    "call begin",
    "ud2",
    // start(flags, top of the new stack, entry, argument): 0 in neither thread, the new thread's number or an error in the old one.
    "threads_clone: mov r12, rdx",
    "mov r13, rcx",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 1f",
    "mov rdi, r13",
    "xor ebp, ebp",
    "call r12",
    "ud2",
    "1: ret",
);

const WRITE: usize = 1;
const MMAP: usize = 9;
const MPROTECT: usize = 10;
const MUNMAP: usize = 11;
const SCHED_YIELD: usize = 24;
const MADVISE: usize = 28;
const EXIT_GROUP: usize = 231;

/// PROT_READ, PROT_WRITE.
const READ: usize = 1;
const READ_WRITE: usize = 3;
/// MAP_PRIVATE, MAP_ANONYMOUS; MAP_FIXED.
const PRIVATE: usize = 0x22;
const FIXED: usize = 0x10;
/// MADV_DONTNEED.
const UNNEEDED: usize = 4;
/// CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_THREAD, CLONE_SYSVSEM: a thread of this process.
const THREAD: usize = 0x5_0f00;

/// Bytes of a thread's stack.
const STACK: usize = 16 << 10;

#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; MOST_THREADS]>);
// SAFETY: each is used by one thread, and by Rust never.
unsafe impl Sync for Stacks {}
static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MOST_THREADS]));

/// What may be done with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Nothing but reading.
    Read,
}

/// Makes a system call; small negative results are errors.
///
/// # Safety
/// The call changes no memory that Rust relies on.
unsafe fn call(number: usize, arguments: [usize; 6]) -> isize {
    let result;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the kernel preserves all registers but RAX, RCX and R11; the caller vouches for the rest.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Maps fresh pages, writable, at an address, whatever is there, or for 0 somewhere. `bytes` is a multiple of a page.
pub(crate) fn map(address: usize, bytes: usize) -> Option<usize> {
    let flags = PRIVATE | if address == 0 { 0 } else { FIXED };
    // SAFETY: no Rust object is where the program maps anything.
    let result = unsafe { call(MMAP, [address, bytes, READ_WRITE, flags, usize::MAX, 0]) };
    usize::try_from(result).ok()
}

/// Unmaps pages; tells whether that was possible.
pub(crate) fn unmap(address: usize, bytes: usize) -> bool {
    // SAFETY: as in `map`.
    unsafe { call(MUNMAP, [address, bytes, 0, 0, 0, 0]) == 0 }
}

/// Changes what may be done with pages; tells whether that was possible.
pub(crate) fn protect(address: usize, bytes: usize, protection: Protection) -> bool {
    let Protection::Read = protection;
    // SAFETY: as in `map`.
    unsafe { call(MPROTECT, [address, bytes, READ, 0, 0, 0]) == 0 }
}

/// Gives the content of pages up: the next access finds them empty. Tells whether that was possible.
pub(crate) fn advise_unneeded(address: usize, bytes: usize) -> bool {
    // SAFETY: as in `map`.
    unsafe { call(MADVISE, [address, bytes, UNNEEDED, 0, 0, 0]) == 0 }
}

/// Lets others run.
pub(crate) fn give_way() {
    // SAFETY: it changes nothing.
    unsafe { call(SCHED_YIELD, [0; 6]) };
}

/// Writes to standard output.
pub(crate) fn say(text: &str) {
    // SAFETY: the kernel only reads the text.
    unsafe { call(WRITE, [1, text.as_ptr() as usize, text.len(), 0, 0, 0]) };
}

/// Ends all threads with a status.
pub(crate) fn end(status: usize) -> ! {
    loop {
        // SAFETY: nothing runs after it.
        unsafe { call(EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

/// Starts thread `number` at `entry`; tells whether that was possible.
///
/// # Panics
/// If `number` is [`MOST_THREADS`] or more.
pub(crate) fn start_thread(number: usize, entry: extern "C" fn(usize) -> !) -> bool {
    assert!(number < MOST_THREADS, "there is a stack for each");
    let top = STACKS.0.get() as usize + (number + 1) * STACK;
    let result: isize;
    // SAFETY: the new thread has a stack of its own, and enters a function that doesn't return; the routine clobbers what a call may, R12 and R13.
    unsafe {
        asm!("call threads_clone", inlateout("rdi") THREAD => _, inlateout("rsi") top => _, inlateout("rdx") entry as usize => _,
             inlateout("rcx") number => _, lateout("rax") result, lateout("r8") _, lateout("r10") _, lateout("r11") _,
             lateout("r12") _, lateout("r13") _);
    }
    result > 0
}
