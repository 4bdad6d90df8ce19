//! The image's allocator: a small arena in the image until memory is laid out, then a range of RAM.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use talc::{ClaimOnOom, Span, Talc, Talck};
use vmmu::addr::Hpa;

const EARLY: usize = 256 << 10;

/// Memory that only the allocator touches, through the pointer that it is given.
struct Arena(UnsafeCell<[u8; EARLY]>);
// SAFETY:
// - The allocator's lock keeps threads apart.
unsafe impl Sync for Arena {}
static ARENA: Arena = Arena(UnsafeCell::new([0; EARLY]));

/// Talc behind a spin lock, and a count of the bytes in use.
struct Heap {
    talc: Talck<spin::Mutex<()>, ClaimOnOom>,
    used: AtomicUsize,
}

#[global_allocator]
static HEAP: Heap = Heap {
    // SAFETY:
    // - The arena is used by nothing else.
    talc: Talc::new(unsafe { ClaimOnOom::new(Span::from_array(ARENA.0.get())) }).lock(),
    used: AtomicUsize::new(0),
};

// SAFETY:
// - Talc keeps the promises of an allocator; the count beside it touches no memory that it hands out.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.used.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY:
        // - The caller's promises are passed on.
        unsafe { self.talc.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY:
        // - The caller's promises are passed on.
        unsafe { self.talc.dealloc(pointer, layout) }
    }
}

/// Gives the allocator a range of RAM.
pub(crate) fn extend(range: Range<Hpa>) {
    let span = Span::new(range.start.get() as *mut u8, range.end.get() as *mut u8);
    // SAFETY:
    // - The layout gives this range to the heap alone; it is RAM and mapped.
    let claimed = unsafe { HEAP.talc.lock().claim(span) };
    assert!(claimed.is_ok(), "the heap range {range:?} is too small");
}

/// Returns how many bytes are in use.
pub(crate) fn used() -> usize {
    HEAP.used.load(Ordering::Relaxed)
}
