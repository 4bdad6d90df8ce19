//! What a processor did: counters always, events if asked.
//!
//! Key types: [`Counters`], [`Event`].
//!
//! Invariants:
//! 1. Recording changes no behaviour.

use std::collections::VecDeque;

use crate::addr::{Hpa, Va};
use crate::fault::Fault;
use crate::invalidate::Flush;
use crate::tlb::TlbEntry;

/// How often things happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Accesses tried.
    pub accesses: u64,
    /// Accesses served by the translation lookaside buffer.
    pub hits: u64,
    /// Guest-physical translations served by the translation lookaside buffer.
    pub nested_hits: u64,
    /// Walks of the tables at CR3.
    pub walks: u64,
    /// Walks of nested tables.
    pub nested_walks: u64,
    /// Walks that began at a paging-structure-cache entry.
    pub structure_hits: u64,
    /// Entries whose accessed or dirty bit was set.
    pub marks: u64,
    /// Accesses that faulted.
    pub faults: u64,
    /// Faults raised from a cached translation without a look at the tables.
    pub believed_denials: u64,
    /// Speculative translations.
    pub guesses: u64,
    /// Random evictions.
    pub evictions: u64,
    /// Invalidations of any kind.
    pub flushes: u64,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A cached translation served an access to the address.
    Hit(Va, TlbEntry),
    /// A walk put a translation into the buffer.
    Filled(TlbEntry),
    /// A walk set accessed or dirty bits.
    Marked {
        /// The entry's address.
        hpa: Hpa,
        /// The entry before.
        old: u64,
        /// The entry after.
        new: u64,
    },
    /// An access faulted.
    Faulted(Fault),
    /// An address was translated speculatively.
    Guessed(Va),
    /// Entries were dropped at random.
    Evicted,
    /// Entries were invalidated.
    Flushed(Flush),
}

/// Events on record.
#[derive(Debug)]
pub(crate) struct EventLog {
    events: VecDeque<Event>,
    limit: usize,
    hits: bool,
}

impl EventLog {
    pub(crate) fn everything() -> Self {
        Self {
            events: VecDeque::new(),
            limit: usize::MAX,
            hits: true,
        }
    }

    pub(crate) fn last(limit: usize) -> Self {
        Self {
            events: VecDeque::with_capacity(limit),
            limit,
            hits: false,
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if !self.hits && matches!(event, Event::Hit(..)) || self.limit == 0 {
            return;
        }
        if self.events.len() >= self.limit {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }
}
