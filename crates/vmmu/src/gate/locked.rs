//! Both sides a lock.
//!
//! Key type: [`Locked`].

use super::{Strategy, Word};
use crate::sync::{Ordering, Raw};

/// Creators and writers take one lock of the VM: the baseline, to measure the others against.
#[derive(Debug, Default)]
pub struct Locked(Raw);

impl Strategy for Locked {
    const NAME: &'static str = "locked";

    fn create(&self, word: &Word) {
        // The lock orders: a writer that took it earlier stored its gPTE before the creator's re-read; one that takes it later sees the count.
        let _held = self.0.lock();
        word.0
            .store(word.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn destroy(&self, word: &Word) {
        let _held = self.0.lock();
        word.0
            .store(word.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    #[inline]
    fn is_open(&self, word: &Word) -> bool {
        let _held = self.0.lock();
        word.0.load(Ordering::Relaxed) != 0
    }
}
