//! Counts and simulations as one value, which crosses from the program that counts to the command that prints.
//!
//! Key types: [`Report`], [`Simulated`]; with the feature `count` also `report`, which makes one.

use crate::load::Load;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The largest number of vCPUs, at most 64.
    pub cpus: u64,
    /// Pages of the large VM.
    pub pages: u64,
    /// What the simulation draws from.
    pub seed: u64,
    /// Nanoseconds of a fault on a processor of its own.
    pub fault: u64,
    /// Nanoseconds of a line from one processor to another.
    pub transfer: u64,
}

/// What a fault costs on average; every figure is per fault.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Counted {
    /// The load.
    pub load: Load,
    /// Locks taken.
    pub locks: f64,
    /// Atomic read-modify-writes, those of locks not counted.
    pub updates: f64,
    /// Full barriers.
    pub fences: f64,
    /// Locks of two threads that somebody held, if there are two processors.
    pub contended: Option<f64>,
}

/// The most entries that were dealt with from taking a lock until none was held, by what was done to very many pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Holds {
    /// Pages that were mapped.
    pub pages: u64,
    /// Mapping them, prefetched.
    pub map: u64,
    /// Zapping everything.
    pub zap: u64,
    /// Having writes logged.
    pub protect: u64,
    /// Taking the log.
    pub harvest: u64,
}

/// What many vCPUs do as a multiple of one.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Simulated {
    /// The load.
    pub load: Load,
    /// Nanoseconds between two faults of a vCPU.
    pub between: u64,
    /// How many vCPUs.
    pub cpus: u64,
    /// With the library's own locks.
    pub own: f64,
    /// With one lock.
    pub one: f64,
}

/// All of it.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Counts by load.
    pub counted: Vec<Counted>,
    /// The longest holds.
    pub holds: Holds,
    /// Simulations.
    pub simulated: Vec<Simulated>,
}

#[cfg(feature = "count")]
mod making {
    use super::{Asked, Report, Simulated};
    use crate::Trouble;
    use crate::counts::{count, holds, traces};
    use crate::load::Load;
    use crate::rig::Locking;
    use crate::simulate::{Costs, Faults, play};

    /// Nanoseconds between two faults: none, and what a world switch with some of the guest's own work takes.
    const BETWEEN: [u64; 2] = [0, 1000];
    /// Picoseconds of a full barrier or an atomic read-modify-write.
    const ATOMIC: u64 = 6_000;
    /// Lines that a lock guards, that its last holder wrote and its next one needs: the reverse map, or the state of the table.
    const GUARDED: u64 = 1;

    /// Counts and simulates.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn report(asked: &Asked) -> Result<Report, Trouble> {
        let mut simulated = Vec::new();
        for load in Load::ALL {
            simulated.extend(simulate(load, asked)?);
        }
        Ok(Report {
            counted: Load::ALL.into_iter().map(count).collect::<Result<_, _>>()?,
            holds: holds(asked.pages)?,
            simulated,
        })
    }

    fn simulate(load: Load, asked: &Asked) -> Result<Vec<Simulated>, Trouble> {
        let alone = [
            traces(load, 1, Locking::Own)?,
            traces(load, 1, Locking::One)?,
        ];
        let known = Costs {
            work: 0,
            atomic: ATOMIC,
            transfer: asked.transfer * 1000,
            guarded: GUARDED,
            between: 0,
        };
        let typical = alone[0].first().and_then(|faults| faults.last());
        let calibrated = typical.map_or(known, |trace| known.calibrated(trace, asked.fault * 1000));
        let mut all = Vec::new();
        let mut cpus = 2;
        while cpus <= asked.cpus {
            let many = [
                traces(load, cpus, Locking::Own)?,
                traces(load, cpus, Locking::One)?,
            ];
            for between in BETWEEN {
                let costs = Costs {
                    between: between * 1000,
                    ..calibrated
                };
                let gain = |at: usize| gain(&alone[at], &many[at], &costs, asked.seed);
                all.push(Simulated {
                    load,
                    between,
                    cpus,
                    own: gain(0),
                    one: gain(1),
                });
            }
            cpus *= 2;
        }
        Ok(all)
    }

    /// Returns what `many` do in a second as a multiple of `alone`.
    fn gain(alone: &[Faults], many: &[Faults], costs: &Costs, seed: u64) -> f64 {
        let rate = |traces: &[Faults]| {
            let faults: usize = traces.iter().map(Vec::len).sum();
            faults as f64 / play(traces, costs, seed).max(1) as f64
        };
        rate(many) / rate(alone)
    }
}

#[cfg(feature = "count")]
pub use making::report;
