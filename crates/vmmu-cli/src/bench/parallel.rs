//! `vmmu bench parallel`: faults of two processors at once.
//!
//! Key function: [`parallel()`]. The measuring is `vmmu-parallel`'s; here are the tables.

use core::time::Duration;
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::json;
use vmmu_parallel::faults::{self, Arm, Plan, Row};
use vmmu_parallel::load::Load;
use vmmu_parallel::spread::Spread;

use crate::args::ParallelArgs;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::screen::say;

const FULL: Plan = Plan {
    pages: 8192,
    rounds: 200,
    limit: Duration::from_secs(12),
};
const QUICK: Plan = Plan {
    pages: 4096,
    rounds: 10,
    limit: Duration::from_secs(2),
};

/// Measures and prints.
///
/// # Errors
///
/// [`Error::Bench`] if there is one processor only, or if the library fails; [`Error::File`] for the JSON.
pub fn parallel(args: &ParallelArgs) -> Result<u8> {
    let plan = if args.quick { QUICK } else { FULL };
    let mut rows = Vec::new();
    for load in Load::ALL {
        let progress = Progress::quiet(&format!("measuring faults, {}", load.name()));
        rows.push(faults::measure(load, &plan).map_err(failed)?);
        drop(progress);
    }
    say(&render(&rows))?;
    if let Some(path) = &args.json {
        write_json(path, &rows)?;
    }
    Ok(0)
}

fn failed(trouble: vmmu_parallel::Trouble) -> Error {
    Error::Bench {
        reason: trouble.to_string(),
    }
}

fn write_json(path: &Path, rows: &[Row]) -> Result<()> {
    let text = format!("{:#}\n", json!({ "faults": rows }));
    std::fs::write(path, text).map_err(Error::file("write", path))
}

/// Lays out the faults, in markdown so that a page can take it as it is.
fn render(rows: &[Row]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "shadow faults, thousands a second",
            "1 thread",
            "2 threads",
            "gain",
            "of the control's",
            "goal",
        ]);
    for row in rows {
        let load = row.load.name();
        let mut add = |who: &str, arm: Option<Arm>, share: bool| {
            let goal = row.load.goal().filter(|_| share && who == "vmmu");
            table.add_row([
                format!("{load}: {who}"),
                cell(arm, |arm| thousands(arm.one)),
                cell(arm, |arm| thousands(arm.two)),
                cell(arm, |arm| fraction(arm.gain)),
                cell(arm.filter(|_| share), |arm| fraction(arm.share)),
                goal.map_or("-".to_owned(), |goal| format!("{goal:.2}")),
            ]);
        };
        add("control", row.control, false);
        add("vmmu", row.own, true);
        add("one lock", row.locked, true);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let kept: usize = rows.iter().map(|row| row.kept).sum();
    let discarded: usize = rows.iter().map(|row| row.discarded).sum();
    format!(
        "{table}\nmedian (quartiles) of {kept} rounds; {discarded} more were discarded: the control, two MMUs that share nothing, gained less than {} or more than {}\n",
        faults::LEAST_GAIN,
        faults::MOST_GAIN
    )
}

fn cell(arm: Option<Arm>, show: impl Fn(Arm) -> String) -> String {
    arm.map_or("-".to_owned(), show)
}

fn thousands(spread: Spread) -> String {
    crate::number::grouped((spread.median / 1e3).round() as u64)
}

fn fraction(spread: Spread) -> String {
    format!(
        "{:.2} ({:.2}-{:.2})",
        spread.median, spread.low, spread.high
    )
}

#[cfg(test)]
mod layout {
    use super::render;
    use vmmu_parallel::faults::{Arm, Row};
    use vmmu_parallel::load::Load;
    use vmmu_parallel::spread::Spread;

    #[test]
    fn a_load_without_a_round_that_counts_has_dashes() {
        let spread = |median: f64| Spread {
            low: median,
            median,
            high: median,
        };
        let arm = Arm {
            one: spread(1_234_567.0),
            two: spread(2_400_000.0),
            gain: spread(1.944),
            share: spread(0.974),
        };
        let row = |own, kept, discarded| Row {
            load: Load::Disjoint,
            control: own,
            own,
            locked: None,
            kept,
            discarded,
        };
        let text = render(&[row(Some(arm), 7, 1), row(None, 0, 9)]);
        assert!(text.contains("1,235"), "{text}");
        assert!(text.contains("0.97 (0.97-0.97) | 0.95"), "{text}");
        assert!(text.contains("7 rounds; 10 more"), "{text}");
    }
}
