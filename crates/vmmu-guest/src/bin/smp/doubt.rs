//! Stores that a change may have overtaken, so that they came to another frame than the one meant.
//!
//! A store in doubt may even come to a frame that nobody may write: with CR0.WP clear where a table with shared pages takes a region's
//! place between the look at the path and the store. That is the program's doing, not the machine's, and no intrusion.
//!
//! Invariant: a store's doubt is noted before the store, and taken back only once its path has proved to hold from look to
//! store.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::startup::MOST;

/// How many of a processor's last stores are told apart.
const STORES: u64 = 1 << 16;
/// By processor, a bit for each store.
static DOUBTS: [[AtomicU64; STORES as usize / 64]; MOST] =
    [const { [const { AtomicU64::new(0) }; STORES as usize / 64] }; MOST];

/// The value of a processor's store with number `store`: no two have the same.
pub(crate) const fn value(processor: usize, store: u64) -> u64 {
    (processor as u64 + 1) << 56 | store
}

/// The word and the bit of a value's store; nothing for what [`value`] doesn't give.
fn place(value: u64) -> Option<(&'static AtomicU64, u64)> {
    let processor = usize::try_from(value >> 56).ok()?.checked_sub(1)?;
    let store = value % STORES;
    let word = DOUBTS.get(processor)?.get((store / 64) as usize)?;
    Some((word, 1 << (store % 64)))
}

/// Notes that the store of `value`, which is to follow, may be overtaken.
pub(crate) fn note(value: u64) {
    if let Some((word, bit)) = place(value) {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

/// Says that the store of `value` went where it was meant to.
pub(crate) fn take_back(value: u64) {
    if let Some((word, bit)) = place(value) {
        word.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// Whether `value` is of a store that may have been overtaken.
pub(crate) fn is_in_doubt(value: u64) -> bool {
    place(value).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
}
