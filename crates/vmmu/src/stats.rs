//! What the MMU did: counters, and the trait that observes single events.
//!
//! Key types: [`Event`] (what is counted), [`Stats`] (a snapshot), [`Observer`].
//!
//! Invariant:
//! 1. A vCPU's counters have one writer, its claimant, so that counting is a load and a store; the shared ones use an atomic addition.

use crate::addr::Gfn;
use crate::sync::{Counter, KINDS, Ordering};

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(usize)]
        #[non_exhaustive]
        pub enum Event { $($(#[$doc])* $name,)* }

        impl Event {
            /// All events, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// Returns the event's name as reports print it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

events! {
    /// A fault was handed in.
    FaultTaken => "faults_taken",
    /// A fault installed or widened an entry.
    FaultFixed => "faults_fixed",
    /// A fault was the guest's own.
    FaultInjected => "faults_injected",
    /// A fault found its entry in place.
    FaultSpurious => "faults_spurious",
    /// A fault was answered with an access to emulate.
    FaultEmulated => "faults_emulated",
    /// A fault lost a race and was left to happen again.
    FaultRetried => "faults_retried",
    /// An entry was installed before it was asked for.
    Prefetch => "prefetches",
    /// An unsync page was made clean.
    Sync => "syncs",
    /// An entry was removed or narrowed while a page was made clean.
    SyncChanged => "sync_changed",
    /// The pages of a guest table became unsync.
    Unsync => "unsyncs",
    /// Pages were zapped because their table was written often without being used.
    Flood => "floods",
    /// A page was zapped.
    Zap => "zaps",
    /// A page was zapped for the limit.
    Reclaim => "reclaims",
    /// An entry made room in the reverse maps for another one.
    Recycle => "recycles",
    /// A page was created.
    Create => "pages_created",
    /// A root was loaded that was at hand.
    RootCached => "roots_cached",
    /// A root was looked up or created.
    RootLoaded => "roots_loaded",
    /// The unsync pages were made clean for a root load or a link.
    RootSynced => "roots_synced",
    /// A 4 KiB leaf was installed.
    Leaf4K => "leaves_4k",
    /// A 2 MiB leaf was installed.
    Leaf2M => "leaves_2m",
    /// A 1 GiB leaf was installed.
    Leaf1G => "leaves_1g",
    /// All TLBs were flushed.
    Flush => "flushes",
    /// A CPU was taken out of its guest.
    Kick => "kicks",
    /// A guest write was reported while the gate was open.
    GuestWrite => "guest_writes",
    /// A guest frame was unprotected by zapping its pages.
    Unprotect => "unprotects",
    /// A single address was invalidated.
    Invlpg => "invlpgs",
    /// A host invalidation ran.
    Invalidation => "invalidations",
    /// A table lock was taken.
    LockTable => "locks_table",
    /// A gfn lock was taken.
    LockGfn => "locks_gfn",
    /// A VM-wide leaf lock was taken.
    LockLeaf => "locks_leaf",
}

/// How many events there are.
pub const EVENTS: usize = Event::ALL.len();

/// One writer's counters.
#[derive(Debug)]
pub(crate) struct Counters([Counter; EVENTS]);

impl Counters {
    pub(crate) fn new() -> Self {
        Self(core::array::from_fn(|_| Counter::new(0)))
    }
    /// Adds for the only writer.
    #[inline]
    pub(crate) fn add_alone(&self, event: Event, n: u64) {
        let c = &self.0[event as usize];
        c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
    /// Adds beside other writers.
    #[inline]
    pub(crate) fn add_shared(&self, event: Event, n: u64) {
        self.0[event as usize].fetch_add(n, Ordering::Relaxed);
    }
    pub(crate) fn add_to(&self, stats: &mut Stats) {
        for (sum, c) in stats.counts.iter_mut().zip(&self.0) {
            *sum = sum.wrapping_add(c.load(Ordering::Relaxed));
        }
    }
}

/// The events that count lock acquisitions, by kind.
pub(crate) const LOCK_EVENTS: [Event; KINDS] = [Event::LockTable, Event::LockGfn, Event::LockLeaf];

/// A snapshot of all counters, and what the bookkeeping takes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    counts: [u64; EVENTS],
    /// Shadow pages in use.
    pub pages: u64,
    /// Bytes of bookkeeping for pages, tables themselves not counted.
    pub page_bytes: u64,
    /// Bytes of records by guest frame.
    pub frame_bytes: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            counts: [0; EVENTS],
            pages: 0,
            page_bytes: 0,
            frame_bytes: 0,
        }
    }
}

impl Stats {
    /// Returns how often `event` happened.
    pub fn get(&self, event: Event) -> u64 {
        self.counts[event as usize]
    }
    /// Returns every event with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Event, u64)> + '_ {
        Event::ALL.iter().map(|e| (*e, self.get(*e)))
    }
}

/// Told of every event, as it happens; the default does nothing and costs nothing.
///
/// Called from any thread, sometimes under locks: it must not block, nor call the library.
pub trait Observer: Send + Sync {
    /// Observes `event`, about `gfn` where it is about one.
    #[inline]
    fn observe(&self, event: Event, gfn: Option<Gfn>) {
        let _ = (event, gfn);
    }
}

impl Observer for () {}

#[cfg(all(test, not(loom)))]
mod bookkeeping_stays_small;
