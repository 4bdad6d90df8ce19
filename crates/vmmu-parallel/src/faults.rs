//! Rounds of measurements: the library, one lock round it, and a control that shares nothing, on one and two threads.
//!
//! Key types: [`Plan`], [`Row`] (what a load came to), [`Arm`] (one way to lock).
//!
//! The machine's processors are not always there: other guests of the same host use them. So everything that is compared is measured within
//! milliseconds, and a round in which the control gains too little, or more than there is to gain, says nothing. A measurement during which a thread lost
//! its processor is made again at once.

use core::time::Duration;
use std::time::Instant;

use crate::Trouble;
use crate::crew::{Meeting, line_transfer, processors, together};
use crate::load::{Load, Size};
use crate::rig::{Locking, Rig, Worker};
use crate::spread::Spread;

/// What two threads that share nothing have to do as a multiple of one, for a round to count.
pub const LEAST_GAIN: f64 = 1.8;
/// What they cannot do, unless the one was disturbed.
pub const MOST_GAIN: f64 = 2.2;
/// The part of its time that a worker may be without its processor.
const MAY_LOSE: f64 = 0.01;
/// How often a measurement is made before the round is given up.
const TRIES: usize = 40;

/// How long to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Pages that each worker touches in one measurement, a multiple of 512.
    pub pages: u64,
    /// Rounds to keep, for each load.
    pub rounds: usize,
    /// The time after which a load ends with what it has.
    pub limit: Duration,
    /// What passes between two faults of a vCPU besides: the world switch, and the guest.
    pub between: Duration,
}

impl Plan {
    /// Lets time pass between two faults of a vCPU; of fewer pages, so that a measurement is as short.
    #[must_use]
    pub fn pausing(self, between: Duration) -> Self {
        let pages = if between == Duration::ZERO {
            self.pages
        } else {
            (self.pages / 4).max(512)
        };
        Self {
            pages,
            between,
            ..self
        }
    }
}

/// One way to lock, on one and two threads.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Arm {
    /// Faults per second of one thread.
    pub one: Spread,
    /// Faults per second of two.
    pub two: Spread,
    /// The second over the first.
    pub gain: Spread,
    /// The gain over the control's in the same round.
    pub share: Spread,
}

/// What a load came to.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Row {
    /// The load.
    pub load: Load,
    /// Nanoseconds between two faults.
    pub between: u64,
    /// Nanoseconds that a cache line took from one processor to the other, before.
    pub transfer: u64,
    /// Two MMUs that share nothing.
    pub control: Option<Arm>,
    /// The library.
    pub own: Option<Arm>,
    /// The library behind one lock.
    pub locked: Option<Arm>,
    /// Rounds that count.
    pub kept: usize,
    /// Rounds in which the control's gain was not from [`LEAST_GAIN`] to [`MOST_GAIN`], or a thread lost its processor again and again.
    pub discarded: usize,
}

/// The rates of one way to lock in one round.
#[derive(Clone, Copy, Debug)]
struct Rates {
    one: f64,
    two: f64,
}

impl Rates {
    fn gain(self) -> f64 {
        self.two / self.one
    }
}

/// Everything of one round: control, own locks, one lock.
type Round = [Rates; 3];

/// Measures a load.
///
/// # Errors
/// [`Trouble`].
pub fn measure(load: Load, plan: &Plan) -> Result<Row, Trouble> {
    let cpus = processors(2)?;
    let transfer = line_transfer(&cpus)?.as_nanos() as u64;
    let bench = Bench::new(load, plan, cpus)?;
    let begun = Instant::now();
    let (mut kept, mut discarded) = (Vec::new(), 0);
    for number in 1.. {
        if kept.len() == plan.rounds || begun.elapsed() > plan.limit {
            break;
        }
        let round = bench.round(number)?;
        match round.filter(|round| (LEAST_GAIN..=MOST_GAIN).contains(&round[0].gain())) {
            Some(round) => kept.push(round),
            None => discarded += 1,
        }
    }
    let arm = |at: usize| {
        let all = |value: &dyn Fn(&Round) -> f64| Spread::of(kept.iter().map(value).collect());
        Some(Arm {
            one: all(&|r| r[at].one)?,
            two: all(&|r| r[at].two)?,
            gain: all(&|r| r[at].gain())?,
            share: all(&|r| r[at].gain() / r[0].gain())?,
        })
    };
    Ok(Row {
        load,
        between: plan.between.as_nanos() as u64,
        transfer,
        control: arm(0),
        own: arm(1),
        locked: arm(2),
        kept: kept.len(),
        discarded,
    })
}

/// What is measured, and on which processors.
struct Bench {
    shared: Rig,
    apart: [Rig; 2],
    cpus: Vec<usize>,
    pages: u64,
    passes: u64,
    between: Duration,
}

impl Bench {
    fn new(load: Load, plan: &Plan, cpus: Vec<usize>) -> Result<Self, Trouble> {
        let size = Size {
            workers: 2,
            pages: plan.pages,
        };
        let new = || {
            let rig = Rig::new(load, size)?;
            (0..size.workers).try_for_each(|worker| rig.worker(worker, Locking::Own)?.warm_up())?;
            Ok::<_, Trouble>(rig)
        };
        Ok(Self {
            shared: new()?,
            apart: [new()?, new()?],
            cpus,
            pages: plan.pages,
            passes: load.passes(),
            between: plan.between,
        })
    }

    /// Measures everything once; which comes first changes from round to round.
    ///
    /// `None` if threads lose their processors all the time.
    fn round(&self, number: usize) -> Result<Option<Round>, Trouble> {
        let nothing = Rates { one: 0.0, two: 0.0 };
        let mut round = [nothing; 3];
        for step in 0..3 {
            let at = (number + step) % 3;
            let two_first = number.is_multiple_of(2);
            let Some(first) = self.rate(at, if two_first { 2 } else { 1 })? else {
                return Ok(None);
            };
            let Some(second) = self.rate(at, if two_first { 1 } else { 2 })? else {
                return Ok(None);
            };
            let (one, two) = if two_first {
                (second, first)
            } else {
                (first, second)
            };
            round[at] = Rates { one, two };
        }
        Ok(Some(round))
    }

    /// Returns the faults per second of a way to lock on `threads` threads.
    fn rate(&self, at: usize, threads: usize) -> Result<Option<f64>, Trouble> {
        let rig_of = |worker: usize| match at {
            0 => &self.apart[worker],
            _ => &self.shared,
        };
        let locking = if at == 2 { Locking::One } else { Locking::Own };
        let workers = (0..threads)
            .map(|worker| {
                let worker = rig_of(worker).worker(worker as u64, locking)?;
                Ok(worker.pausing(self.between))
            })
            .collect::<Result<Vec<_>, Trouble>>()?;
        let mut time = Duration::ZERO;
        for _ in 0..self.passes {
            let Some(pass) = self.pass(&workers)? else {
                return Ok(None);
            };
            time += pass;
        }
        let faults = self.pages * threads as u64;
        Ok(Some(faults as f64 / time.as_secs_f64()))
    }

    /// Lets the workers touch their pages once, undisturbed.
    fn pass(&self, workers: &[Worker<'_>]) -> Result<Option<Duration>, Trouble> {
        for _ in 0..TRIES {
            let meeting = Meeting::of(workers.len());
            let span = together(
                &self.cpus[..workers.len()],
                |worker| workers[worker as usize].renew(workers.len() as u64),
                |worker| workers[worker as usize].run(|| meeting.attend()),
            )?;
            if span.lost <= span.time.mul_f64(MAY_LOSE) {
                return Ok(Some(span.time));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod a_measurement {
    use super::{Plan, measure};
    use crate::Trouble;
    use crate::load::Load;
    use core::time::Duration;

    #[test]
    fn counts_every_round_as_kept_or_discarded() {
        let plan = Plan {
            pages: 4096,
            rounds: 2,
            limit: Duration::from_millis(500),
            between: Duration::ZERO,
        };
        match measure(Load::SharedTable, &plan) {
            Ok(row) => {
                assert!(row.kept + row.discarded > 0);
                assert_eq!(row.own.is_some(), row.kept > 0);
            }
            Err(Trouble::OneProcessor) => {}
            Err(trouble) => panic!("{trouble}"),
        }
    }
}
