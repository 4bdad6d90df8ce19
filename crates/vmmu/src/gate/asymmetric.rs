//! The opening pays a heavy barrier, writes pay none.
//!
//! Key types: [`Asymmetric`], [`HeavyBarrier`].
//!
//! While pages exist, writers see the count whatever they do: a count that is not 0 does not hide in a store buffer for longer than the barrier of
//! the creator that raised it. So only the step from 0 has to reach writers that are about to read, and the creator makes it by a barrier on *their* processors. What
//! such a barrier costs is bounded: when the last page goes, the word stays ARMED, and the next creator relies on that; meanwhile writes fence, as in
//! [`super::Fenced`], and [`Asymmetric::PATIENCE`] of them close the gate. So a gate that opens and closes all the time pays no heavy barriers, and each one that
//! is paid has saved as many fences as it cost.

use core::sync::atomic::compiler_fence;

use super::{ARMED, Strategy, Word};
use crate::sync::{AtomicU32, Ordering, fence};

/// A barrier on every processor that may perform guest writes.
pub trait HeavyBarrier: Send + Sync + core::fmt::Debug {
    /// Returns after each such processor has executed a full barrier since the call: an interrupt to all CPUs that is acknowledged, or
    /// membarrier(2) if all writers are threads of the process. No lock is held.
    fn heavy(&self);
}

/// A creator that opens the gate issues a heavy barrier; a write costs a load.
///
/// The default has no heavy barrier and does what [`super::Fenced`] does: for embedders that find out at start that they have none.
#[derive(Debug)]
pub struct Asymmetric<B> {
    barrier: Option<B>,
    /// Writes that found no page while the word was ARMED.
    idle: AtomicU32,
}

impl<B: HeavyBarrier> Asymmetric<B> {
    /// Writes without a page to find after which the gate closes: their fences (14 to 36 ns each on the machines measured) come to what a heavy barrier costs.
    pub const PATIENCE: u32 = 256;

    /// Uses `barrier`.
    pub fn new(barrier: B) -> Self {
        Self {
            barrier: Some(barrier),
            idle: AtomicU32::new(0),
        }
    }

    /// Says whether there is no heavy barrier, so that both sides fence.
    pub const fn falls_back(&self) -> bool {
        self.barrier.is_none()
    }

    /// The word is ARMED, without a page: a creator relies on that and issues no heavy barrier, so this side has to fence.
    #[cold]
    fn is_open_when_idle(&self, word: &Word) -> bool {
        // Full barrier: pairs with the creator's. Without it the read of the count could precede the store of the gPTE.
        fence(Ordering::SeqCst);
        let seen = word.0.load(Ordering::Acquire);
        if seen == ARMED && self.idle.fetch_add(1, Ordering::Relaxed) >= Self::PATIENCE {
            self.idle.store(0, Ordering::Relaxed);
            // If a creator came in between, that is as well: the gate is in use, and ARMED saves the next one its barrier.
            let _ = word
                .0
                .compare_exchange(ARMED, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        seen & !ARMED != 0
    }
}

impl<B> Default for Asymmetric<B> {
    fn default() -> Self {
        Self {
            barrier: None,
            idle: AtomicU32::new(0),
        }
    }
}

impl<B: HeavyBarrier> Strategy for Asymmetric<B> {
    const NAME: &'static str = "asymmetric";

    fn create(&self, word: &Word) {
        // Acquire: who sees ARMED relies on the barrier of the creator that set it; pairs with the Release below.
        let before = word.0.fetch_add(1, Ordering::AcqRel);
        // Full barrier: pairs with the one of a writer that finds the gate ARMED and idle.
        fence(Ordering::SeqCst);
        if let Some(barrier) = &self.barrier
            && before & ARMED == 0
        {
            // Whatever the count was: a creator before this one may still wait for its own barrier (scenario G5).
            barrier.heavy();
            // Release: after the barrier has completed, and while this creator's own count keeps the word from 0.
            word.0.fetch_or(ARMED, Ordering::Release);
        }
    }

    fn destroy(&self, word: &Word) {
        // Release: the emptying comes before the count drops; pairs with the Acquire in `is_open`. ARMED stays: see the module.
        word.0.fetch_sub(1, Ordering::AcqRel);
    }

    #[inline]
    fn is_open(&self, word: &Word) -> bool {
        if self.barrier.is_none() {
            fence(Ordering::SeqCst);
        } else {
            // Binds the compiler; the processor is bound by the heavy barrier, when it matters.
            compiler_fence(Ordering::SeqCst);
        }
        let seen = word.0.load(Ordering::Acquire);
        if seen == 0 {
            return false;
        }
        seen & !ARMED != 0 || self.is_open_when_idle(word)
    }
}
