//! Prints what each load gains, in a line: for the engineer who changes a lock.
#![forbid(unsafe_code)]

use core::time::Duration;

use vmmu_parallel::Trouble;
use vmmu_parallel::faults::{Arm, Plan, measure};
use vmmu_parallel::load::Load;

fn main() -> Result<(), Trouble> {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok());
    let plan = Plan {
        pages: 4096,
        rounds: 60,
        limit: Duration::from_secs(seconds.unwrap_or(10)),
        between: Duration::ZERO,
    };
    for (load, between) in Load::ALL
        .into_iter()
        .flat_map(|load| [(load, 0), (load, 1)])
    {
        let between = Duration::from_micros(between);
        let row = measure(load, &plan.pausing(between))?;
        let show = |name, arm: Option<Arm>| {
            if let Some(arm) = arm {
                println!(
                    "  {name}: {:.2} M/s, {:.2} M/s, gain {:.2} ({:.2}-{:.2}), share {:.2} ({:.2}-{:.2})",
                    arm.one.median / 1e6,
                    arm.two.median / 1e6,
                    arm.gain.median,
                    arm.gain.low,
                    arm.gain.high,
                    arm.share.median,
                    arm.share.low,
                    arm.share.high,
                );
            }
        };
        println!(
            "{}, {} ns between, a line takes {} ns: kept {}, discarded {}",
            load.name(),
            row.between,
            row.transfer,
            row.kept,
            row.discarded
        );
        show("control ", row.control);
        show("vmmu    ", row.own);
        show("one lock", row.locked);
    }
    Ok(())
}
