//! Two threads on two processors, which begin at the same moment.
//!
//! Key function: [`together`]; key type: [`Span`].
//!
//! Invariant:
//! 1. A thread that lost its processor while it worked is known by its processor time, which stood still meanwhile.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;
use std::thread;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::Trouble;
use crate::memory::Apart;

/// Returns the first processors that this process may use, as many as asked for.
///
/// # Errors
/// [`Trouble::OneProcessor`] if there are fewer.
pub fn processors(count: usize) -> Result<Vec<usize>, Trouble> {
    let allowed = sched_getaffinity(None).map_err(|_| Trouble::OneProcessor)?;
    let found: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .take(count)
        .collect();
    if found.len() < count {
        return Err(Trouble::OneProcessor);
    }
    Ok(found)
}

fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // Where it is refused the scheduler does as it likes, and rounds that it spoils are discarded.
    let _ = sched_setaffinity(None, &set);
}

/// What `together` measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// From the first start to the last end.
    pub time: Duration,
    /// The longest time that a worker was without its processor.
    pub lost: Duration,
}

/// Two clocks of a thread: the time, and how long it had a processor.
#[derive(Clone, Copy)]
pub(crate) struct Clocks {
    wall: Instant,
    own: Duration,
}

impl Clocks {
    pub(crate) fn read() -> Self {
        let own = clock_gettime(ClockId::ThreadCPUTime);
        Self {
            wall: Instant::now(),
            own: Duration::new(own.tv_sec as u64, own.tv_nsec as u32),
        }
    }

    pub(crate) fn lost_until(self, end: Self) -> Duration {
        (end.wall - self.wall).saturating_sub(end.own.saturating_sub(self.own))
    }
}

/// Runs `prepare` and then `work` for workers 0 to `processors.len()`, each on a processor of its own; all begin to work at the same moment.
///
/// # Errors
/// The first worker's that failed.
pub fn together(
    processors: &[usize],
    prepare: impl Fn(u64) + Sync,
    work: impl Fn(u64) -> Result<(), Trouble> + Sync,
) -> Result<Span, Trouble> {
    let missing = AtomicUsize::new(processors.len());
    let one = |worker: usize, cpu: usize| {
        stay_on(cpu);
        prepare(worker as u64);
        arrive(&missing);
        let start = Clocks::read();
        let done = work(worker as u64);
        done.map(|()| (start, Clocks::read()))
    };
    let spans: Result<Vec<_>, _> = thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = processors
            .iter()
            .enumerate()
            .map(|(worker, cpu)| scope.spawn(move || one(worker, *cpu)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a worker does not panic"))
            .collect()
    });
    let spans = spans?;
    let start = spans.iter().map(|(start, _)| start.wall).min();
    let end = spans.iter().map(|(_, end)| end.wall).max();
    let lost = spans.iter().map(|(start, end)| start.lost_until(*end));
    Ok(Span {
        time: start
            .zip(end)
            .map_or(Duration::ZERO, |(start, end)| end - start),
        lost: lost.max().unwrap_or_default(),
    })
}

/// Measures how long a cache line takes from one of two processors to the other, both ways on average.
///
/// # Errors
/// None of its own.
pub fn line_transfer(processors: &[usize]) -> Result<Duration, Trouble> {
    const TURNS: u32 = 2000;
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let turn = Apart(AtomicU32::new(0));
        let span = together(
            processors,
            |_| {},
            |worker| {
                for mine in (worker as u32..TURNS).step_by(processors.len()) {
                    while turn.0.load(Ordering::Acquire) != mine {
                        spin_loop();
                    }
                    turn.0.store(mine + 1, Ordering::Release);
                }
                Ok(())
            },
        )?;
        best = best.min(span.time / TURNS);
    }
    Ok(best)
}

/// Where workers wait for each other on the way.
#[derive(Debug)]
pub struct Meeting {
    workers: usize,
    arrived: Apart<AtomicUsize>,
}

impl Meeting {
    /// Makes a meeting of so many workers.
    #[must_use]
    pub fn of(workers: usize) -> Self {
        Self {
            workers,
            arrived: Apart(AtomicUsize::new(0)),
        }
    }

    /// Waits until every worker has come as often as the caller.
    pub fn attend(&self) {
        let mine = self.arrived.0.fetch_add(1, Ordering::AcqRel);
        let all = (mine / self.workers + 1) * self.workers;
        wait_until(|| self.arrived.0.load(Ordering::Acquire) >= all);
    }
}

/// Waits until every worker has come here.
fn arrive(missing: &AtomicUsize) {
    missing.fetch_sub(1, Ordering::AcqRel);
    wait_until(|| missing.load(Ordering::Acquire) == 0);
}

fn wait_until(is_so: impl Fn() -> bool) {
    let mut waited = 0_u32;
    while !is_so() {
        waited += 1;
        if waited.is_multiple_of(1024) {
            thread::yield_now();
        }
        spin_loop();
    }
}

#[cfg(test)]
mod a_crew {
    use super::{processors, together};
    use core::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn runs_each_worker_once() {
        let Ok(cpus) = processors(2) else {
            return;
        };
        let seen = [AtomicU64::new(0), AtomicU64::new(0)];
        let time = together(
            &cpus,
            |_| {},
            |worker| {
                seen[worker as usize].fetch_add(1, Ordering::Relaxed);
                Ok(())
            },
        );
        assert!(time.is_ok());
        assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }
}
