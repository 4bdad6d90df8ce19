//! Memory that Rust does not own: tables that the processor walks, and what the boot loader left.
//!
//! Invariants:
//! 1. [`GuestRam`](super::guest_ram::GuestRam) and [`Frames`] are made by `claim` from one [`Layout`](crate::layout::Layout), so that
//!    they overlap neither each other, nor the image, nor the heap.
//! 2. Tables are reached by atomic accesses to single words only.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "image")]
use vmmu::addr::Hpa;
use vmmu::addr::{Index, PAGE_SIZE, Pfn};

#[cfg(feature = "image")]
use super::guest_ram::GuestRam;

/// A 64-bit word that the processor, or the guest, changes at any time.
#[derive(Clone, Copy, Debug)]
pub struct TableWord<'a>(&'a AtomicU64);

impl<'a> TableWord<'a> {
    pub(super) const fn new(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// Loads (Acquire).
    #[inline]
    pub fn load(self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
    /// Stores (Release).
    #[inline]
    pub fn store(self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
    /// Exchanges (AcqRel).
    #[inline]
    pub fn exchange(self, value: u64) -> u64 {
        self.0.swap(value, Ordering::AcqRel)
    }
    /// Replaces `current` by `new` (AcqRel), or returns what is there (Acquire).
    ///
    /// # Errors
    /// The value found.
    #[inline]
    pub fn compare_exchange(self, current: u64, new: u64) -> Result<u64, u64> {
        self.0
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// Frames for tables, and the words in them.
#[derive(Debug)]
pub struct Frames {
    range: Range<u64>,
}

impl Frames {
    /// Returns the numbers of the first frame and of the one after the last.
    pub fn range(&self) -> Range<Pfn> {
        Pfn::new(self.range.start)..Pfn::new(self.range.end)
    }

    /// Returns the word of a table.
    ///
    /// # Panics
    /// If the table isn't one of these frames: that is a bug of the hypervisor.
    #[inline]
    pub fn word(&self, table: Pfn, slot: Index) -> TableWord<'_> {
        let frame = table.get();
        assert!(
            frame >= self.range.start && frame < self.range.end,
            "table {table} lies outside the frames for tables"
        );
        let pointer = (frame * PAGE_SIZE + slot.get() as u64 * 8) as *mut u64;
        // SAFETY:
        // - The frame is one of those that the layout set apart for tables, and mapped; the word is aligned and inside it.
        // - Tables are reached by atomic accesses only, and by `clear` before they are anybody's.
        TableWord(unsafe { AtomicU64::from_ptr(pointer) })
    }

    /// Fills a frame with zeros.
    ///
    /// # Panics
    /// As [`Frames::word`].
    pub fn clear(&self, table: Pfn) {
        let pointer = self.word(table, Index::truncate(0)).0.as_ptr();
        // SAFETY:
        // - The frame was checked; nobody walks a frame that is being allocated.
        unsafe { pointer.write_bytes(0, 512) }
    }
}

/// Takes possession of what a layout gives to the guest, to tables and to the heap.
#[cfg(feature = "image")]
pub(crate) fn claim(layout: crate::layout::Layout) -> (GuestRam, Frames) {
    use core::sync::atomic::AtomicBool;
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    assert!(
        !CLAIMED.swap(true, Ordering::Relaxed),
        "memory is claimed once"
    );
    super::heap::extend(layout.heap.clone());
    let range = layout.tables.start.get() / PAGE_SIZE..layout.tables.end.get() / PAGE_SIZE;
    // SAFETY:
    // - The layout gives these pieces to the guest alone; it is divided among its parts once.
    let ram = unsafe { GuestRam::new(layout.guest) };
    (ram, Frames { range })
}

/// Copies bytes that the boot loader left in memory.
#[cfg(feature = "image")]
pub(crate) fn copy_out(from: Hpa, bytes: &mut [u8]) {
    for (offset, byte) in bytes.iter_mut().enumerate() {
        let pointer = (from.get() as *const u8).wrapping_add(offset);
        // SAFETY:
        // - The first 4 GiB are mapped, and reading RAM has no effect; volatile, because address 0 may be among them.
        *byte = unsafe { pointer.read_volatile() };
    }
}

/// Returns the module that the boot loader left in memory.
#[cfg(feature = "image")]
pub(crate) fn module(range: Range<Hpa>) -> &'static [u8] {
    // SAFETY:
    // - The start info says that the module is there; the layout reserves it, so that nobody writes to it.
    unsafe {
        core::slice::from_raw_parts(
            range.start.get() as *const u8,
            (range.end.get() - range.start.get()) as usize,
        )
    }
}

/// Returns where the image lies.
#[cfg(feature = "image")]
pub(crate) fn image_range() -> Range<Hpa> {
    let range = super::entry::image_range();
    Hpa::new(range.start)..Hpa::new(range.end)
}

/// Installs the host's descriptor tables, and the guard below its stack.
#[cfg(feature = "image")]
pub(crate) fn install_descriptors() {
    super::descriptor::install_first(super::entry::stub);
    super::mapping::unmap(Hpa::new(super::entry::stack_guard()));
}

/// Makes what [`super::apic::LocalApic::reset`] needs; there is memory to allocate.
#[cfg(feature = "image")]
pub(crate) fn install_discarding() {
    super::descriptor::install_discarding(super::entry::stub, super::entry::discard());
}

#[cfg(test)]
impl Frames {
    /// Makes frames on the test's heap, never given back.
    pub(crate) fn on_heap(count: usize) -> Self {
        #[derive(Clone)]
        #[repr(align(4096))]
        #[expect(dead_code, reason = "it is reached by its address")]
        struct Frame([u8; 4096]);
        let memory = alloc::vec![Frame([0; 4096]); count].leak();
        let start = memory.as_mut_ptr() as u64 / PAGE_SIZE;
        Self {
            range: start..start + count as u64,
        }
    }
}
