//! Memory as a processor's walker reaches it: what it stores in guest tables, the observer is told, and whoever decoded instructions from there.
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
        let result = self.observer.store(hpa, 8, exchange);
        self.memory.wrote(hpa);
        result
    }
    #[inline]
    fn walk_load32(&self, hpa: Hpa, since: Moment) -> Result<u32, Unusable> {
        self.memory.walk_load32(hpa, since)
    }
    #[inline]
    fn compare_exchange32(&self, hpa: Hpa, current: u32, new: u32) -> Result<u32, u32> {
        let exchange = || self.memory.compare_exchange32(hpa, current, new);
        let result = self.observer.store(hpa, 4, exchange);
        self.memory.wrote(hpa);
        result
    }
}

#[cfg(test)]
mod a_bit_that_the_walker_sets {
    use super::{Arc, Hpa, Memory, Physical, Walked};

    /// A guest may execute what it also uses as a table.
    #[test]
    fn makes_instructions_be_decoded_anew() {
        let memory = Arc::new(Memory::new(3).expect("three frames"));
        let walked = Walked::new(Arc::clone(&memory), Arc::new(()));
        let at = Hpa::new(0x1008);
        let decode = || memory.decode_from(at.frame()).0;
        let before = decode();
        assert_eq!(walked.compare_exchange(at, 0, 0x20), Ok(0));
        assert_ne!(memory.version(at.frame()), before);
        let before = decode();
        assert_eq!(walked.compare_exchange32(at, 0x20, 0x60), Ok(0x20));
        assert_ne!(memory.version(at.frame()), before);
    }
}
