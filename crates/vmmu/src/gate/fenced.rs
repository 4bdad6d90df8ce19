//! Both sides a full barrier.
//!
//! Key type: [`Fenced`].

use super::{Strategy, Word};
use crate::sync::{Ordering, fence};

/// Creators and writers both execute a full barrier: nothing is asked of the embedder. The choice when in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fenced;

impl Strategy for Fenced {
    const NAME: &'static str = "fenced";

    fn create(&self, word: &Word) {
        word.0.fetch_add(1, Ordering::Relaxed);
        // Full barrier: pairs with the one in `is_open`. Without it the re-read of the gPTE could precede the count, and the writer's
        // read of the count precede its store: a lost update.
        if !mutant!(CreatorUnfenced) {
            fence(Ordering::SeqCst);
        }
    }

    fn destroy(&self, word: &Word) {
        // Release: the emptying comes before the count drops; pairs with the Acquire in `is_open`.
        word.0.fetch_sub(1, Ordering::AcqRel);
    }

    #[inline]
    fn is_open(&self, word: &Word) -> bool {
        // Full barrier: pairs with the one in `create`.
        if !mutant!(WriterUnfenced) {
            fence(Ordering::SeqCst);
        }
        word.0.load(Ordering::Acquire) != 0
    }
}
