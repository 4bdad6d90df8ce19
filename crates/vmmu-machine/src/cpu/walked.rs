//! Memory as a processor's walker reaches it: what it stores in guest tables, the observer is told.
//!
//! Key type: [`Walked`].

use std::sync::Arc;

use vmmu_cpu::{Frame, Hpa, Moment, Physical, Unusable};

use crate::check::Observer;
use crate::memory::Memory;

/// Memory with an observer of stores.
#[derive(Debug)]
pub struct Walked<O> {
    memory: Arc<Memory>,
    observer: Arc<O>,
}

impl<O> Walked<O> {
    /// Ties the two together.
    #[must_use]
    pub const fn new(memory: Arc<Memory>, observer: Arc<O>) -> Self {
        Self { memory, observer }
    }
}

impl<O: Observer> Physical for Walked<O> {
    #[inline]
    fn contains(&self, hpa: Hpa) -> bool {
        self.memory.contains(hpa)
    }
    #[inline]
    fn moment(&self) -> Moment {
        self.memory.moment()
    }
    #[inline]
    fn usable(&self, frame: Frame, since: Moment) -> Result<(), Unusable> {
        self.memory.usable(frame, since)
    }
    #[inline]
    fn walk_load(&self, hpa: Hpa, since: Moment) -> Result<u64, Unusable> {
        self.memory.walk_load(hpa, since)
    }
    #[inline]
    fn compare_exchange(&self, hpa: Hpa, current: u64, new: u64) -> Result<u64, u64> {
        let exchange = || self.memory.compare_exchange(hpa, current, new);
        self.observer.store(hpa, 8, exchange)
    }
    #[inline]
    fn walk_load32(&self, hpa: Hpa, since: Moment) -> Result<u32, Unusable> {
        self.memory.walk_load32(hpa, since)
    }
    #[inline]
    fn compare_exchange32(&self, hpa: Hpa, current: u32, new: u32) -> Result<u32, u32> {
        let exchange = || self.memory.compare_exchange32(hpa, current, new);
        self.observer.store(hpa, 4, exchange)
    }
}
