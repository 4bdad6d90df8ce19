//! Time spent: of the wall clock, and of processors by this process and the children it waited for.
//!
//! Key type: [`Spent`].

use core::error::Error;
use core::time::Duration;
use std::time::Instant;

/// The ticks of `/proc/self/stat` in a second, on every x86 Linux (proc(5), `USER_HZ`).
const TICKS: u32 = 100;

/// What something took.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) wall: Duration,
    /// To 10 ms.
    pub(crate) processor: Duration,
}

impl Spent {
    /// Does something and takes its time.
    pub(crate) fn on<T>(
        what: impl FnOnce() -> Result<T, Box<dyn Error>>,
    ) -> Result<(Self, T), Box<dyn Error>> {
        let (start, before) = (Instant::now(), processor()?);
        let value = what()?;
        let spent = Self {
            wall: start.elapsed(),
            processor: processor()?.saturating_sub(before),
        };
        Ok((spent, value))
    }

    /// Returns what is left without `other`.
    pub(crate) fn without(self, other: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(other.wall),
            processor: self.processor.saturating_sub(other.processor),
        }
    }
}

/// Returns the processor time so far, in user and in kernel mode (proc(5), fields 14 to 17 of `stat`).
fn processor() -> Result<Duration, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no name in stat")?;
    let mut ticks = 0;
    for field in fields.split(' ').skip(11).take(4) {
        ticks += field.parse::<u32>()?;
    }
    Ok(Duration::from_secs(1) * ticks / TICKS)
}
