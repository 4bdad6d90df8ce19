//! Stores to guest tables in flight: an accessed or dirty bit is set without a lock, and whoever takes the frame back waits for it (rule R13).
//!
//! Key types: [`Marking`] (what one caller is about to store to), [`InFlight`] (while it is). Neighbours: `memory` stores, `invalidate` waits, `retire`
//! has a [`Marking`] beside each guard.
//!
//! The storing side announces the frame's region, full barrier, looks whether the region is being invalidated, stores, takes the announcement back. The
//! invalidating side raises `busy`, full barrier, waits until nobody announces a region of the range. Either the first sees `busy`, or the second sees
//! the announcement.
//!
//! Invariants:
//! 1. Between announcement and end nothing blocks, and no lock is taken but the gfn lock of a slot that logs. That closes no cycle: who waits for an
//!    announcement holds no lock, and who holds a gfn lock waits for no announcement; so the wait is as short as one for a lock.
//! 2. A caller announces one region at a time.

use crate::addr::Gfn;
use crate::region::REGION;
use crate::sync::{AtomicU64, Ordering, fence, pause};

/// The region that a caller may be storing to.
#[derive(Debug, Default)]
pub(crate) struct Marking(AtomicU64);

/// Nothing is stored.
const NOTHING: u64 = 0;

/// An announcement; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight<'m>(&'m AtomicU64);

impl Drop for InFlight<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: the store to the guest's table comes before; pairs with the Acquire in `wait`.
        self.0.store(NOTHING, Ordering::Release);
    }
}

impl Marking {
    /// Announces that the caller will store to the frame, if it is not being taken back.
    #[inline]
    pub(crate) fn announce(&self, gfn: Gfn) -> InFlight<'_> {
        self.0.store(gfn.get() / REGION + 1, Ordering::Relaxed);
        // Full barrier: pairs with the one before `wait`. Without it the caller could see that nothing is invalidated while the invalidation does not
        // see the announcement yet.
        if !mutant!(MarkUnfenced) {
            fence(Ordering::SeqCst);
        }
        InFlight(&self.0)
    }

    /// Waits until the caller stores to no frame of the range any more; after a full barrier that comes after `busy` was raised.
    pub(crate) fn wait(&self, base: Gfn, frames: u64) {
        let first = base.get() / REGION;
        let last = base.get().saturating_add(frames.max(1) - 1) / REGION;
        loop {
            match self.0.load(Ordering::Acquire).checked_sub(1) {
                Some(region) if (first..=last).contains(&region) => {}
                _ => return,
            }
            pause();
        }
    }
}
