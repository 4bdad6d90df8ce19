//! `vmmu bench parallel`: faults of two processors at once, how long they take beside a zap, what they cost, and what 64 processors would do.
//!
//! Key function: [`parallel()`]. The measuring is `vmmu-parallel`'s; `docs/parallel.md` explains the figures.
//!
//! | module | noun |
//! |---|---|
//! | [`counts`] | the program that counts and simulates, built and run |
//! | [`table`] | the tables for people |

pub mod counts;
pub mod table;

use core::time::Duration;
use std::path::Path;

use serde_json::json;
use vmmu_parallel::faults::{self, Plan, Row};
use vmmu_parallel::latency::{self, Latencies, Scale};
use vmmu_parallel::load::Load;
use vmmu_parallel::report::{Asked, Report};

use crate::args::ParallelArgs;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::screen::say;
use crate::signals;
use crate::workspace::Workspace;

const FULL: (Plan, Scale) = (
    Plan {
        pages: 4096,
        rounds: 100,
        limit: Duration::from_secs(8),
        between: Duration::ZERO,
    },
    Scale {
        pages: 1 << 20,
        repeats: 5,
        calm: Duration::from_millis(200),
    },
);
const QUICK: (Plan, Scale) = (
    Plan {
        pages: 1024,
        rounds: 3,
        limit: Duration::from_millis(300),
        between: Duration::ZERO,
    },
    Scale {
        pages: 1 << 14,
        repeats: 1,
        calm: Duration::from_millis(20),
    },
);
/// What stands for the world switch and the guest's own work between two faults.
const PAUSE: Duration = Duration::from_micros(1);
/// What a fault takes if nothing was measured, in nanoseconds.
const USUAL_FAULT: u64 = 110;
const MOST_CPUS: u64 = 64;
const SEED: u64 = 1;

/// Everything that was found.
#[derive(Debug)]
struct Found {
    faults: Vec<Row>,
    latencies: Vec<Latencies>,
    report: Option<Report>,
}

/// Measures and prints.
///
/// # Errors
///
/// [`Error::Unmeasured`] if there is one processor only, or if the library fails; those of building the program that counts; [`Error::File`] for the JSON.
pub fn parallel(args: &ParallelArgs) -> Result<u8> {
    signals::end_soon()?;
    let (plan, scale) = if args.quick { QUICK } else { FULL };
    let faults = faults(&plan)?;
    say(&format!("{}\n", table::faults(&faults)))?;
    let progress = Progress::quiet("timing faults beside a zap of everything");
    let latencies = latency::measure(&scale).map_err(failed)?;
    drop(progress);
    say(&format!("{}\n", table::latencies(&latencies, scale.pages)))?;
    let report = if args.quick {
        None
    } else {
        Some(counted(&faults, scale.pages)?)
    };
    if let Some(report) = &report {
        say(&format!("{}\n", table::counts(report)))?;
        say(&format!("{}\n", table::simulated(report)))?;
    }
    say(&table::goals(&faults, &latencies))?;
    let found = Found {
        faults,
        latencies,
        report,
    };
    if let Some(path) = &args.json {
        write_json(path, &found)?;
    }
    Ok(0)
}

fn faults(plan: &Plan) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for between in [Duration::ZERO, PAUSE] {
        for load in Load::ALL {
            let progress = Progress::quiet(&format!("measuring faults, {}", load.name()));
            rows.push(faults::measure(load, &plan.pausing(between)).map_err(failed)?);
            drop(progress);
        }
    }
    Ok(rows)
}

/// Counts and simulates, with what was measured as the model's costs.
fn counted(faults: &[Row], pages: u64) -> Result<Report> {
    let first = faults.first();
    let fault = first
        .and_then(|row| row.own)
        .map_or(USUAL_FAULT, |arm| (1e9 / arm.one.median) as u64);
    let asked = Asked {
        cpus: MOST_CPUS,
        pages,
        seed: SEED,
        fault,
        transfer: first.map_or(0, |row| row.transfer),
    };
    counts::run(&Workspace::find(), &asked)
}

fn failed(trouble: vmmu_parallel::Trouble) -> Error {
    Error::Unmeasured {
        reason: trouble.to_string(),
    }
}

fn write_json(path: &Path, found: &Found) -> Result<()> {
    let value = json!({
        "faults": found.faults,
        "latencies": found.latencies,
        "report": found.report,
    });
    std::fs::write(path, format!("{value:#}\n")).map_err(Error::file("write", path))
}

#[cfg(test)]
mod a_quick_run {
    use super::parallel;
    use crate::args::ParallelArgs;
    use crate::error::Error;

    #[test]
    fn writes_every_load_and_phase() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("parallel.json");
        let args = ParallelArgs {
            json: Some(path.clone()),
            quick: true,
        };
        match parallel(&args) {
            Ok(status) => assert_eq!(status, 0),
            // One processor.
            Err(Error::Unmeasured { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        let text = std::fs::read_to_string(path).expect("it was written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["faults"].as_array().map(Vec::len), Some(10));
        assert!(value["latencies"].is_array() && value["report"].is_null());
    }
}
