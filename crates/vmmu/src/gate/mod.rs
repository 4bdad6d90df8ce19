//! The gate: the count of indirect shadow pages that lets a guest write skip all shadow work while it is 0 (docs/litmus.md).
//!
//! Key types: [`Gate`], its [`Word`], and the strategies: [`Fenced`] (the default choice), [`Asymmetric`] (the opening pays, writes don't), [`Locked`] (the
//! baseline to measure against).
//!
//! Two orders must hold (store buffering): a creator counts, *then* re-reads the gPTE; a writer stores the gPTE, *then* reads the count. One of the two
//! sees the other. How *then* is enforced is the strategy.
//!
//! | word | meaning | who leaves it |
//! |---|---|---|
//! | 0 | no indirect page: a write has nothing to do | the last destroyer; with ARMED, the write that closes the gate |
//! | n | n pages exist or are being made | a creator adds one, a destroyer takes one off |
//! | n + ARMED | the same, and a heavy barrier has completed since the word was last 0 | [`Asymmetric`] alone, by a creator that is counted |
//! | ARMED | no page, but the next creator will issue no heavy barrier: a write has to fence | the last destroyer under [`Asymmetric`] |
//!
//! Invariants:
//! 1. The count drops only after the page's entries are removed and flushed: a reader that still sees it wastes a look-up.
//! 2. While ARMED is set, every writer that read 0 has executed a full barrier since. So it may be cleared at any time; it is cleared when it has been idle.
//! 3. Whoever finds the gate open takes the frame's lock before it reads any finer structure: that is a second pair of the same kind, and no strategy covers it.

mod asymmetric;
mod fenced;
mod locked;

pub use asymmetric::{Asymmetric, HeavyBarrier};
pub use fenced::Fenced;
pub use locked::Locked;

use crate::sync::{AtomicU64, Ordering};

/// A heavy barrier has completed since the word was last 0.
const ARMED: u64 = 1 << 63;

/// The gate's one word.
#[derive(Debug)]
pub struct Word(AtomicU64);

#[cfg(all(test, loom))]
impl Word {
    /// For proposals that the tests show to be wrong.
    pub(crate) const fn raw(&self) -> &AtomicU64 {
        &self.0
    }
}

/// How a creator's count and a writer's store are ordered. The library's own types implement it; another can only pass calls on to them, for want of access to a [`Word`].
pub trait Strategy: Default + Send + Sync + core::fmt::Debug {
    /// What it is called in reports.
    const NAME: &'static str;

    /// Counts a page that is about to be made; every gPTE that its entries derive from is read after this. No lock is held.
    fn create(&self, word: &Word);

    /// Takes a page off that is unhashed, emptied and flushed.
    fn destroy(&self, word: &Word);

    /// Tells a writer, after its store, whether there may be a page that it hit.
    fn is_open(&self, word: &Word) -> bool;
}

/// The count of indirect shadow pages, and how it is read.
#[derive(Debug)]
pub struct Gate<S> {
    word: Word,
    strategy: S,
}

impl<S: Strategy> Gate<S> {
    /// Makes a gate for a VM without pages.
    pub fn new(strategy: S) -> Self {
        Self {
            word: Word(AtomicU64::new(0)),
            strategy,
        }
    }

    /// Counts a page that is about to be made; every gPTE that its entries derive from is read after this. No lock is held.
    pub fn create(&self) {
        self.strategy.create(&self.word);
    }

    /// Takes a page off that is unhashed, emptied and flushed.
    pub fn destroy(&self) {
        self.strategy.destroy(&self.word);
    }

    /// Tells a writer, after its store, whether there may be a page that it hit.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.strategy.is_open(&self.word)
    }

    /// Returns the count, for the auditor and for heuristics: no order is implied.
    #[inline]
    pub fn count(&self) -> u64 {
        self.word.0.load(Ordering::Relaxed) & !ARMED
    }
}

#[cfg(all(test, not(loom)))]
mod the_count {
    use super::{Asymmetric, Fenced, Gate, HeavyBarrier, Locked, Strategy};
    use core::sync::atomic::{AtomicU32, Ordering};

    fn opens_and_closes<S: Strategy>(strategy: S) {
        let gate = Gate::new(strategy);
        for _ in 0..3 {
            assert!(!gate.is_open());
            gate.create();
            gate.create();
            gate.destroy();
            assert!(gate.is_open());
            assert_eq!(gate.count(), 1);
            gate.destroy();
            assert_eq!(gate.count(), 0);
        }
        assert!(!gate.is_open());
    }

    #[test]
    fn opens_the_gate_in_every_strategy() {
        opens_and_closes(Fenced);
        opens_and_closes(Locked::default());
        opens_and_closes(Asymmetric::<Counting<'_>>::default());
        opens_and_closes(Asymmetric::new(Counting(&AtomicU32::new(0))));
    }

    #[derive(Clone, Copy, Debug)]
    struct Counting<'a>(&'a AtomicU32);

    impl HeavyBarrier for Counting<'_> {
        fn heavy(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn that_comes_and_goes_pays_few_heavy_barriers() {
        let barriers = AtomicU32::new(0);
        let gate = Gate::new(Asymmetric::new(Counting(&barriers)));
        for _ in 0..100 {
            gate.create();
            gate.destroy();
            assert!(!gate.is_open());
        }
        assert_eq!(barriers.load(Ordering::SeqCst), 1);
        // Writes that find nothing close it; then the next opening pays.
        for _ in 0..2 * Asymmetric::<Counting<'_>>::PATIENCE {
            assert!(!gate.is_open());
        }
        gate.create();
        assert!(gate.is_open());
        assert_eq!(barriers.load(Ordering::SeqCst), 2);
    }
}
