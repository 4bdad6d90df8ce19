//! The machine's time.
//!
//! Key type: [`Clock`]. It counts nanoseconds from the machine's start: the host's, or one for each instruction.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use crate::devices::Time;

/// A clock; copies tell the same time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The host's, since the machine started.
    Host(Instant),
    /// Instructions that were done, by all processors; who runs one adds them after each run.
    Instructions(Arc<AtomicU64>),
}

impl Clock {
    /// Makes the host's clock, which starts now.
    #[must_use]
    pub fn host() -> Self {
        Self::Host(Instant::now())
    }

    /// Makes a clock of instructions.
    #[must_use]
    pub fn instructions() -> Self {
        Self::Instructions(Arc::default())
    }

    /// Tells the time, between two runs.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(self.timestamp(0))
    }

    /// Tells the time in nanoseconds, `done` instructions after the begin of a run: also the time-stamp counter, of 1 GHz.
    #[must_use]
    pub fn timestamp(&self, done: u64) -> u64 {
        match self {
            Self::Host(start) => start.elapsed().as_nanos() as u64,
            // Relaxed: a number, which orders nothing.
            Self::Instructions(count) => count.load(Ordering::Relaxed) + done,
        }
    }

    /// Notes that instructions were done, or that time passes with none.
    pub fn pass(&self, nanoseconds: u64) {
        if let Self::Instructions(count) = self {
            count.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }
}
