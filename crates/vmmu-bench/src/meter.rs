//! The measured region.
//!
//! Key types: [`Meter`], [`Reading`]. callgrind is told to count inside of `measured` only; wall time is taken around it.

use core::hint::black_box;
use core::time::Duration;
use std::time::Instant;

/// The pattern of `measured`'s name, for callgrind's `--toggle-collect`.
pub const MEASURED: &str = "*vmmu_bench::meter::measured*";

/// What a meter has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Measured regions.
    pub calls: u64,
    /// Time spent in them, the time of looking at the clock included.
    pub time: Duration,
}

/// Counts regions while it is on.
#[derive(Debug, Default)]
pub struct Meter {
    is_on: bool,
    reading: Reading,
}

impl Meter {
    /// Starts counting, from zero.
    pub fn start(&mut self) {
        *self = Self {
            is_on: true,
            reading: Reading::default(),
        };
    }

    /// Stops counting.
    pub fn stop(&mut self) -> Reading {
        self.is_on = false;
        self.reading
    }

    /// Runs `work`, in a measured region if the meter is on.
    #[inline]
    pub fn run<R>(&mut self, work: impl Fn() -> R) -> R {
        if !self.is_on {
            return work();
        }
        let begin = Instant::now();
        let result = measured(work);
        self.reading.time += begin.elapsed();
        self.reading.calls += 1;
        result
    }
}

/// Runs `work`: the function by whose name callgrind knows what to count.
#[inline(never)]
fn measured<R>(work: impl Fn() -> R) -> R {
    black_box(work())
}
