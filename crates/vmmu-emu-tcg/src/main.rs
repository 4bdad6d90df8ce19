//! Compares as many programs as told: `vmmu-emu-tcg [PROGRAMS [FIRST SEED]]`.

#![forbid(unsafe_code)]

use core::error::Error;
use std::process::ExitCode;

use vmmu_emu_tcg::{Builder, Report, Totals, locate, run, unsupported};

/// How many programs an image has.
const BATCH: usize = 400;
/// How many differences are looked into.
const LOCATED: usize = 12;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse());
    let (programs, first) = (number(4000)?, number(1)?);
    let builder = Builder::new().map_err(|error| error.to_string())?;
    let (mut report, mut totals) = (Report::default(), Totals::default());
    let mut done = 0;
    while done < programs {
        let count = BATCH.min((programs - done) as usize);
        run(&builder, first + done, count, &mut report, &mut totals)?;
        done += count as u64;
    }
    for difference in &report.differences {
        println!("seed {}: {}", difference.seed, difference.text);
    }
    for difference in report.differences.iter().take(LOCATED) {
        if let Some(text) = locate(&builder, difference.seed)? {
            println!("seed {} parts in {text}", difference.seed);
        }
    }
    let unknown = unsupported(builder.generator());
    println!("not known to the emulator: {unknown:?}");
    println!(
        "{} programs, {} exceptions, {} instructions ({} kinds), {} differences, known: {:?}",
        report.programs,
        report.exceptions,
        totals.instructions,
        totals.executed.len(),
        report.differences.len(),
        report.known
    );
    Ok(if report.differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
