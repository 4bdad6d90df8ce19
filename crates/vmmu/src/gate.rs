//! The gate: the count of indirect shadow pages that lets a guest write skip all shadow work while it is 0 (design of the gate: docs/architecture.md).
//!
//! | word | meaning | who changes it |
//! |---|---|---|
//! | 0 | no indirect page: a write has nothing to do | `create` leaves it |
//! | n > 0 | n pages exist or are being made | `create` adds one, `destroy` takes one off |
//!
//! Two orders must hold (store buffering): a creator counts, full barrier, re-reads the gPTE; a writer stores the gPTE, full barrier, reads the
//! count. One of the two sees the other. This is the *fenced* strategy.
//!
//! Invariant:
//! 1. The count drops only after the page's entries are removed and flushed: a reader that still sees it wastes a look-up.

use crate::sync::{AtomicU64, Ordering, fence};

/// The count of indirect shadow pages.
#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU64,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
        }
    }

    /// Counts a page that is about to be made; every gPTE that its entries derive from is read after this.
    pub(crate) fn create(&self) {
        self.word.fetch_add(1, Ordering::Relaxed);
        // Full barrier: pairs with the one in `is_open`. Without it the re-read of the gPTE could precede the count, and the writer's
        // read of the count precede its store: a lost update.
        fence(Ordering::SeqCst);
    }

    /// Takes a page off that is unhashed, emptied and flushed.
    pub(crate) fn destroy(&self) {
        // Release: the emptying comes before the count drops; pairs with the Acquire in `is_open`.
        self.word.fetch_sub(1, Ordering::AcqRel);
    }

    /// Tells a writer, after its store, whether there may be a page that it hit.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        // Full barrier: pairs with the one in `create`.
        fence(Ordering::SeqCst);
        self.word.load(Ordering::Acquire) != 0
    }

    /// Returns the count, for the auditor and for heuristics: no order is implied.
    pub(crate) fn count(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }
}
