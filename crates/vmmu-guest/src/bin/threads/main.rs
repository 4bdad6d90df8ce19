//! A program for Linux whose threads change the address space that they share, on all processors at once.
//!
//! An operating system has to tell the other processors of each translation that it takes away, by interrupts; a hypervisor has to carry these
//! out before it acknowledges them. Busybox has no threads: this program is what makes a kernel do so, in two ways side by side.
//!
//! | thread | what it does | what it demands |
//! |---|---|---|
//! | 0 | replaces the page at an address that all know, by `mmap` over it or by `MADV_DONTNEED`; stores the next number there; then publishes the number | |
//! | the others, each round | reads the number that is published, then the page | no older one: the page is empty, or holds that number or a later one |
//! | | maps some pages of its own, writes each, protects one, reads all, unmaps them | what it wrote |
//!
//! Once `mmap` and `madvise` return no processor may use the old page (the kernel's promise to every program), so that an older number is a stale translation.
//!
//! `threads N` runs N threads (2 to 16). It ends with status 0 and one line, or with 1 after saying what it saw.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod system;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use system::{Protection, advise_unneeded, end, give_way, map, protect, say, start_thread, unmap};

const PAGE: usize = 4096;
/// Where the page that all know is.
const SHARED: usize = 0x2000_0000_0000;
const MOST_THREADS: usize = 16;
/// How often the page is replaced.
const REPLACEMENTS: u64 = 500;
/// Pages that a thread maps at once.
const PAGES: usize = 8;

/// The number that the page holds at least, for who reads this before the page.
static PUBLISHED: AtomicU64 = AtomicU64::new(0);
/// Threads that have ended.
static ENDED: AtomicUsize = AtomicUsize::new(0);
/// Rounds of all threads but the first.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Called with the stack as the kernel left it: the number of words of the command line, then their addresses.
///
/// # Safety
/// `stack` is what the kernel gave the program.
#[unsafe(no_mangle)]
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the kernel puts the count there.
    let words = unsafe { *stack };
    let threads = if words > 1 {
        let place = stack.wrapping_add(2);
        // SAFETY: behind the count there are as many addresses.
        let text = unsafe { *place } as *const u8;
        // SAFETY: each is of a text that ends with 0.
        unsafe { number(text) }
    } else {
        0
    };
    if !(2..=MOST_THREADS).contains(&threads) {
        fail("usage: threads N, with N from 2 to 16\n");
    }
    if map(SHARED, PAGE) != Some(SHARED) {
        fail("the page can't be mapped\n");
    }
    for number in 1..threads {
        if !start_thread(number, reader) {
            fail("a thread can't be started\n");
        }
    }
    replace();
    while ENDED.load(Ordering::SeqCst) != threads - 1 {
        give_way();
    }
    if ROUNDS.load(Ordering::SeqCst) == 0 {
        fail("no thread has looked at the page\n");
    }
    say("threads hold\n");
    end(0)
}

/// Reads a decimal number.
///
/// # Safety
/// `text` ends with 0.
unsafe fn number(mut text: *const u8) -> usize {
    let mut number: usize = 0;
    // SAFETY: nothing behind the first byte that is no digit is read.
    while let digit @ b'0'..=b'9' = unsafe { *text } {
        number = number
            .wrapping_mul(10)
            .wrapping_add(usize::from(digit - b'0'));
        text = text.wrapping_add(1);
    }
    number
}

fn fail(what: &str) -> ! {
    say(what);
    end(1)
}

fn shared() -> &'static AtomicU64 {
    // SAFETY: the address is aligned, and mapped from before the first thread starts to the program's end.
    unsafe { AtomicU64::from_ptr(SHARED as *mut u64) }
}

/// The first thread.
fn replace() {
    for number in 1..=REPLACEMENTS {
        let replaced = if number % 2 == 0 {
            map(SHARED, PAGE) == Some(SHARED)
        } else {
            advise_unneeded(SHARED, PAGE)
        };
        if !replaced {
            fail("the page can't be replaced\n");
        }
        if shared().load(Ordering::SeqCst) != 0 {
            fail("a page that was replaced is not empty\n");
        }
        shared().store(number, Ordering::SeqCst);
        PUBLISHED.store(number, Ordering::SeqCst);
    }
}

/// The other threads.
extern "C" fn reader(number: usize) -> ! {
    let mut round = 0;
    loop {
        let published = PUBLISHED.load(Ordering::SeqCst);
        let found = shared().load(Ordering::SeqCst);
        if found != 0 && found < published {
            fail("stale: a page that was replaced is read\n");
        }
        if published == REPLACEMENTS {
            break;
        }
        round += 1;
        map_and_unmap((number as u64) << 32 | round);
    }
    ROUNDS.fetch_add(round, Ordering::SeqCst);
    ENDED.fetch_add(1, Ordering::SeqCst);
    loop {
        give_way();
    }
}

/// Maps pages, uses them, and unmaps them.
fn map_and_unmap(stamp: u64) {
    let Some(base) = map(0, PAGES * PAGE) else {
        fail("pages can't be mapped\n");
    };
    // SAFETY: the pages are this thread's own until it unmaps them.
    let word = |page: usize| unsafe { AtomicU64::from_ptr((base + page * PAGE) as *mut u64) };
    for page in 0..PAGES {
        if word(page).load(Ordering::SeqCst) != 0 {
            fail("stale: a fresh page is not empty\n");
        }
        word(page).store(stamp + page as u64, Ordering::SeqCst);
    }
    let kept = stamp as usize % PAGES;
    let done = protect(base + kept * PAGE, PAGE, Protection::Read);
    for page in 0..PAGES {
        if word(page).load(Ordering::SeqCst) != stamp + page as u64 {
            fail("a page does not hold what was stored\n");
        }
    }
    if !done || !unmap(base, PAGES * PAGE) {
        fail("pages can't be protected or unmapped\n");
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail("panic\n")
}
