//! Whole-MMU schedules: vCPUs and the host work on one MMU, shuttle decides who goes on, and every translation that is used is judged.
//!
//! ```text
//! cargo xtask shuttle           # what CI runs
//! cargo xtask shuttle --long    # half an hour for each kind under each scheduler
//! VMMU_SHUTTLE_SEED=7 cargo xtask shuttle
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `program` | the kinds of programs, and how one is executed |
//! | `guest` | the guest of each kind, and what it does, at random |
//! | `pressure` | what the host does meanwhile, at random |
//! | `processor`, `tlb` | a vCPU's thread: what its processor keeps, its guest's accesses and writes |
//! | `host`, `state` | the embedder: tables with poison, guest memory as a history, frames that move |
//! | `judge`, `usage` | what an access may show, by the specification; the dirty log; what ageing has to tell |
//!
//! A batch has a seed, which is printed before it runs: the seed decides program and schedule, so that the batch fails again when it is run alone.
//!
//! Invariants:
//! 1. Whoever touches tables or guest memory passes a point where the scheduler may choose somebody else; nothing else but the library's own atomics and
//!    locks does.
//! 2. What `State` guards is looked at between two such points: what is compared belongs to one moment.
#![cfg(shuttle)]
#![forbid(unsafe_code)]

mod guest;
mod host;
mod judge;
mod pressure;
mod processor;
mod program;
mod state;
mod tlb;
mod usage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use judge::Counts;
use program::Program;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Schedules of a batch.
const BATCH: usize = 20;
/// How often the probabilistic scheduler lets a lower priority go first.
const DEPTHS: [usize; 3] = [2, 3, 5];
/// Seconds for each test, if VMMU_SHUTTLE_SECONDS does not say otherwise.
const SECONDS: u64 = 8;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(3_000_000);
    // The seed is shorter.
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Runs batches for some time, or the one whose seed is asked for.
fn explore<S: Scheduler + 'static>(name: &str, program: Program, scheduler: impl Fn(u64) -> S) {
    let time = Duration::from_secs(number("VMMU_SHUTTLE_SECONDS").unwrap_or(SECONDS));
    let only = number("VMMU_SHUTTLE_SEED");
    let (start, mut seed, mut schedules) = (Instant::now(), only.unwrap_or(1), 0);
    let counts = Arc::new(Counts::default());
    loop {
        println!("{program:?}, {name}: seed {seed}");
        let counts = Arc::clone(&counts);
        schedules +=
            Runner::new(scheduler(seed), config()).run(move || program::run(program, &counts));
        seed += 1;
        if only.is_some() || start.elapsed() > time {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f32();
    println!("{program:?}, {name}: {schedules} schedules in {seconds:.1} s; {counts}");
}

/// Schedules in which anybody may go on at each point.
fn explore_random(program: Program) {
    explore("random", program, |seed| {
        RandomScheduler::new_from_seed(seed, BATCH)
    });
}

/// Schedules in which a few points decide.
fn explore_pct(program: Program) {
    explore("pct", program, |seed| {
        let depth = DEPTHS[seed as usize % DEPTHS.len()];
        PctScheduler::new_from_seed(seed, depth, BATCH)
    });
}

#[test]
fn random_schedules_show_nothing_stale() {
    explore_random(Program::Small);
}

#[test]
fn schedules_with_few_surprises_show_nothing_stale() {
    explore_pct(Program::Small);
}

#[test]
fn random_schedules_show_nothing_stale_with_large_pages() {
    explore_random(Program::Large);
}

#[test]
fn schedules_with_few_surprises_show_nothing_stale_with_large_pages() {
    explore_pct(Program::Large);
}

#[test]
fn random_schedules_show_nothing_stale_in_nested_tables() {
    explore_random(Program::Nested);
}

#[test]
fn schedules_with_few_surprises_show_nothing_stale_in_nested_tables() {
    explore_pct(Program::Nested);
}
