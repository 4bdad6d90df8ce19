//! The pool of shadow pages: bookkeeping allocated as needed, found by number, reused after a grace period.
//!
//! Key types: [`Pool`]. Neighbours: `page` (what is in it), `retire` (when a page comes back).
//!
//! Invariants:
//! 1. A page's memory is never given back while the VM lives, so that a stale number leads to a page, perhaps a wrong one: whoever
//!    follows a number compares gfn, role and life.
//! 2. The number of pages handed out never exceeds the limit.

use crate::Error;
use crate::page::{PAGE_BYTES, Page, PageId};
use crate::sync::{AtomicU32, Counter, Kind, Lock, Locks, OnceBox, Ordering, SMALL};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// How many pages are allocated at once.
const CHUNK: usize = if SMALL { 4 } else { 16 };

#[derive(Debug, Default)]
struct Free {
    /// The first free page, as number + 1.
    head: u32,
    /// Pages below this number have been handed out before.
    fresh: u32,
}

/// The pages of a VM.
#[derive(Debug)]
pub(crate) struct Pool {
    chunks: Box<[OnceBox<[Page; CHUNK]>]>,
    free: Lock<Free>,
    limit: u32,
    in_use: AtomicU32,
    /// Chunks allocated, for the statistics.
    chunk_count: Counter,
}

/// Why no page was handed out.
#[derive(Debug)]
pub(crate) enum Exhausted {
    /// The limit is reached.
    Limit,
    /// No memory.
    Memory(Error),
}

impl Pool {
    pub(crate) fn new(limit: u32) -> Result<Self, Error> {
        let mut chunks = Vec::new();
        let count = (limit as usize).div_ceil(CHUNK);
        chunks.try_reserve_exact(count)?;
        chunks.resize_with(count, OnceBox::new);
        Ok(Self {
            chunks: chunks.into_boxed_slice(),
            free: Lock::new(Kind::Leaf, Free::default()),
            limit,
            in_use: AtomicU32::new(0),
            chunk_count: Counter::new(0),
        })
    }

    /// Returns the limit on pages.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns how many pages are handed out.
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Returns the bytes that the pages' bookkeeping takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.chunk_count.load(Ordering::Relaxed) * (CHUNK * size_of::<Page>()) as u64
            + (self.chunks.len() * size_of::<OnceBox<[Page; CHUNK]>>()) as u64
    }

    /// Returns what the pages leave of their share for the reverse maps of what they map, in bytes.
    pub(crate) fn spare(&self) -> u64 {
        let share = CHUNK * PAGE_BYTES;
        (self.chunk_count.load(Ordering::Relaxed) * share as u64).saturating_sub(self.bytes())
    }

    /// Returns page `id`, if its memory has been allocated.
    #[inline]
    pub(crate) fn try_get(&self, id: PageId) -> Option<&Page> {
        self.chunks
            .get(id.0 as usize / CHUNK)?
            .get()
            .map(|chunk| &chunk[id.0 as usize % CHUNK])
    }

    /// Returns page `id`.
    #[inline]
    pub(crate) fn get(&self, id: PageId) -> &Page {
        self.try_get(id).expect("page numbers come from this pool")
    }

    /// Takes a page out of the pool. No lock is held.
    pub(crate) fn take(&self, locks: &Locks) -> Result<PageId, Exhausted> {
        locks.assert_none();
        let (id, fresh) = {
            let mut free = self.free.lock(locks);
            if let Some(head) = free.head.checked_sub(1) {
                free.head = self.get(PageId(head)).chain.load(Ordering::Relaxed);
                (PageId(head), false)
            } else if free.fresh < self.limit {
                free.fresh += 1;
                (PageId(free.fresh - 1), true)
            } else {
                return Err(Exhausted::Limit);
            }
        };
        self.in_use.fetch_add(1, Ordering::Relaxed);
        if fresh && let Err(e) = self.provide(id) {
            // The number is not lost: nobody can have it linked yet, but its chunk is missing. Hand the number back.
            self.in_use.fetch_sub(1, Ordering::Relaxed);
            let mut free = self.free.lock(locks);
            if free.fresh == id.0 + 1 {
                free.fresh = id.0;
            }
            return Err(Exhausted::Memory(e));
        }
        Ok(id)
    }

    fn provide(&self, id: PageId) -> Result<(), Error> {
        let cell = &self.chunks[id.0 as usize / CHUNK];
        if cell.get().is_none() {
            let chunk = Page::chunk::<CHUNK>()?;
            // Two threads may race here; the loser's chunk is dropped.
            if cell.set(chunk).is_ok() {
                self.chunk_count.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Puts a page back whose grace period is over.
    pub(crate) fn put(&self, locks: &Locks, id: PageId) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        let mut free = self.free.lock(locks);
        self.get(id).chain.store(free.head, Ordering::Relaxed);
        free.head = id.0 + 1;
    }

    /// Returns every page number that was ever handed out.
    pub(crate) fn numbers(&self, locks: &Locks) -> core::ops::Range<u32> {
        0..self.free.lock(locks).fresh
    }

    /// Returns every page that was ever handed out.
    pub(crate) fn ids(&self, locks: &Locks) -> impl Iterator<Item = PageId> + use<> {
        self.numbers(locks).map(PageId)
    }
}
