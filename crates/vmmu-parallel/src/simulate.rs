//! More vCPUs than the machine has: recorded faults played in virtual time, by a model of what accesses cost.
//!
//! Key types: [`Access`], [`Costs`]; key function: [`play`]. docs/parallel.md states the model and its limits.
//!
//! Each processor executes its faults' accesses in order. A line that another processor wrote has to come from there, and comes to one processor at a time.
//! Loads and atomics wait for it; stores wait in the store buffer, which is in order, and atomics, barriers and the leaving of a lock come after it. Locks are
//! spin locks as the library's: who waits sees the lock free when its line has come, and then tries; whoever had it may be faster and take it again. A lock
//! that moves brings the lines that it guards along.
//!
//! Invariant:
//! 1. The result is a function of the traces, the costs and the seed.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// One access of a trace; lines and locks are numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load of a line.
    Load(usize),
    /// A store to a line.
    Store(usize),
    /// An atomic read-modify-write of a line.
    Update(usize),
    /// A full barrier.
    Fence,
    /// Taking a lock.
    Lock(usize),
    /// Leaving it.
    Unlock(usize),
}

/// What accesses cost, in picoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Costs {
    /// Computing that goes with each access.
    pub work: u64,
    /// What a full barrier and an atomic read-modify-write cost besides.
    pub atomic: u64,
    /// A line that comes from another processor.
    pub transfer: u64,
    /// How many lines a lock guards that come along when another processor held it last.
    pub guarded: u64,
    /// Between two faults: the world switch, and the guest.
    pub between: u64,
}

impl Costs {
    /// Sets `work` so that a fault of `trace` takes `fault` picoseconds on a processor of its own.
    #[must_use]
    pub fn calibrated(self, trace: &[Access], fault: u64) -> Self {
        let atomics = trace
            .iter()
            .filter(|access| matches!(access, Access::Update(_) | Access::Fence | Access::Lock(_)))
            .count() as u64;
        let left = fault.saturating_sub(atomics * self.atomic);
        Self {
            work: left / (trace.len() as u64).max(1),
            ..self
        }
    }
}

/// A line of memory.
#[derive(Clone, Copy, Default)]
struct Line {
    /// Which processors have it.
    holders: u128,
    /// Whether the one that has it has written it.
    written: bool,
    /// Until when it is on its way.
    busy: u64,
}

/// A lock.
#[derive(Default)]
struct Lock {
    holder: Option<usize>,
    last: Option<usize>,
    waiting: Vec<usize>,
}

/// What a processor that waits for a lock pauses at most before it looks again, in picoseconds.
const PAUSE: u64 = 15_000;

/// A vCPU: the accesses of its faults, one fault after the other.
pub type Faults = Vec<Vec<Access>>;

/// Returns how long it takes until every vCPU has had its faults, in picoseconds.
#[must_use]
pub fn play(traces: &[Faults], costs: &Costs, seed: u64) -> u64 {
    let mut player = Player::new(traces, *costs, seed);
    while let Some(Reverse((now, cpu))) = player.ready.pop() {
        player.step(now, cpu);
    }
    player.end
}

/// A simulation under way.
struct Player<'t> {
    traces: &'t [Faults],
    costs: Costs,
    random: u64,
    /// When each vCPU goes on, the earliest first.
    ready: BinaryHeap<Reverse<(u64, usize)>>,
    /// The fault and the access that come next.
    at: Vec<(usize, usize)>,
    /// When each vCPU's store buffer is empty.
    drained: Vec<u64>,
    lines: FxHashMap<usize, Line>,
    locks: FxHashMap<usize, Lock>,
    end: u64,
}

impl<'t> Player<'t> {
    fn new(traces: &'t [Faults], costs: Costs, seed: u64) -> Self {
        let mut player = Self {
            traces,
            costs,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            ready: BinaryHeap::new(),
            at: vec![(0, 0); traces.len()],
            drained: vec![0; traces.len()],
            lines: FxHashMap::default(),
            locks: FxHashMap::default(),
            end: 0,
        };
        for cpu in 0..traces.len() {
            // Nobody starts at exactly the same moment.
            let start = player.jitter(costs.between + 50_000);
            player.ready.push(Reverse((start, cpu)));
        }
        player
    }

    /// Returns something below `most`: xorshift.
    fn jitter(&mut self, most: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % most.max(1)
    }

    /// Lets a vCPU make its next access.
    fn step(&mut self, now: u64, cpu: usize) {
        let (fault, access) = self.at[cpu];
        let Some(trace) = self.traces[cpu].get(fault) else {
            self.end = self.end.max(now);
            return;
        };
        let Some(next) = trace.get(access) else {
            self.at[cpu] = (fault + 1, 0);
            // A tenth more or less, or lockstep would decide.
            let tenth = self.costs.between / 10;
            let between = self.costs.between - tenth + self.jitter(2 * tenth + 1);
            self.ready.push(Reverse((now + between, cpu)));
            return;
        };
        self.at[cpu] = (fault, access + 1);
        let now = now + self.costs.work;
        let visible = now.max(self.drained[cpu]);
        let done = match *next {
            Access::Load(line) => self.fetch(now, cpu, line, false),
            Access::Store(line) => {
                self.drained[cpu] = self.fetch(visible, cpu, line, true);
                now
            }
            Access::Update(line) => self.fetch(visible, cpu, line, true) + self.costs.atomic,
            Access::Fence => visible + self.costs.atomic,
            Access::Unlock(lock) => {
                self.drained[cpu] = self.unlock(visible, cpu, lock);
                now
            }
            Access::Lock(lock) => match self.lock(visible, cpu, lock) {
                Some(done) => done,
                None => {
                    // Whoever leaves the lock lets it try again.
                    self.at[cpu] = (fault, access);
                    return;
                }
            },
        };
        self.ready.push(Reverse((done, cpu)));
    }

    /// Has a line, and returns when.
    fn fetch(&mut self, now: u64, cpu: usize, number: usize, write: bool) -> u64 {
        let transfer = self.costs.transfer;
        let line = self.lines.entry(number).or_default();
        let own = 1 << cpu;
        let others = line.holders & !own != 0;
        let has = line.holders & own != 0;
        let must_come = if write { others } else { !has && line.written };
        let mut done = now;
        if must_come {
            done = now.max(line.busy) + transfer;
            line.busy = done;
        }
        if write {
            (line.holders, line.written) = (own, true);
        } else {
            line.written &= has;
            line.holders |= own;
        }
        done
    }

    /// Takes a lock, and returns when, or waits.
    fn lock(&mut self, now: u64, cpu: usize, number: usize) -> Option<u64> {
        let lock = self.locks.entry(number).or_default();
        if lock.holder.is_some() {
            lock.waiting.push(cpu);
            return None;
        }
        lock.holder = Some(cpu);
        let moved = lock.last.is_some_and(|last| last != cpu);
        lock.last = Some(cpu);
        let lines = if moved { 1 + self.costs.guarded } else { 0 };
        Some(now + self.costs.atomic + lines * self.costs.transfer)
    }

    /// Leaves a lock, and returns when. Who waits has the line: it has to come back first, and then goes to each of them.
    fn unlock(&mut self, now: u64, cpu: usize, number: usize) -> u64 {
        let lock = self.locks.entry(number).or_default();
        debug_assert_eq!(lock.holder, Some(cpu));
        lock.holder = None;
        let waiting = core::mem::take(&mut lock.waiting);
        if waiting.is_empty() {
            return now;
        }
        let free = now + self.costs.transfer;
        for next in waiting {
            let seen = free + self.costs.transfer + self.jitter(PAUSE);
            self.ready.push(Reverse((seen, next)));
        }
        free
    }
}

#[cfg(test)]
mod playing {
    use super::{Access, Costs, play};

    const COSTS: Costs = Costs {
        work: 2_000,
        atomic: 6_000,
        transfer: 22_000,
        guarded: 1,
        between: 0,
    };

    fn fault(lock: usize, line: usize) -> Vec<Access> {
        vec![
            Access::Lock(lock),
            Access::Load(line),
            Access::Update(line),
            Access::Unlock(lock),
        ]
    }

    fn gain(cpus: usize, lock: impl Fn(usize) -> usize) -> f64 {
        let traces: Vec<_> = (0..cpus)
            .map(|cpu| vec![fault(lock(cpu), 1000 + lock(cpu)); 500])
            .collect();
        let one = play(&traces[..1], &COSTS, 1) as f64;
        cpus as f64 * one / play(&traces, &COSTS, 1) as f64
    }

    #[test]
    fn what_is_apart_scales_and_what_is_shared_does_not() {
        assert!(gain(16, |cpu| cpu) > 15.5);
        assert!(gain(16, |_| 0) < 1.0);
    }

    #[test]
    fn one_seed_gives_one_result() {
        let traces = vec![vec![fault(0, 1); 50]; 4];
        let costs = Costs {
            between: 100_000,
            ..COSTS
        };
        assert_eq!(play(&traces, &costs, 7), play(&traces, &costs, 7));
        assert_ne!(play(&traces, &costs, 7), play(&traces, &costs, 8));
    }

    #[test]
    fn calibration_makes_a_lone_fault_as_long_as_it_was_measured() {
        let trace = fault(0, 1);
        let costs = COSTS.calibrated(&trace, 100_000);
        let alone = play(&[vec![trace; 1000]], &costs, 1) / 1000;
        assert!((99_000..=101_000).contains(&alone), "{alone}");
    }
}
