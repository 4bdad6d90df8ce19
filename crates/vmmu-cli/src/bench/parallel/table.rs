//! The tables of `vmmu bench parallel`, in markdown so that a page can take them as they are.
//!
//! Key functions: [`faults`], [`latencies`], [`counts`], [`simulated`], [`goals`].

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use vmmu_parallel::faults::{Arm, LEAST_GAIN, MOST_GAIN, Row};
use vmmu_parallel::latency::{Latencies, Phase};
use vmmu_parallel::load::Load;
use vmmu_parallel::report::{Report, Simulated};
use vmmu_parallel::spread::Spread;

use crate::number::grouped;

/// The longest that a fault may take at p99 while everything is zapped, in nanoseconds.
const SLOWEST: u64 = 100_000;
const ABSENT: &str = "-";

fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

fn finish(mut table: Table, words: usize) -> String {
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn name(row: &Row) -> String {
    load_name(row.load, row.between)
}

fn load_name(load: Load, between: u64) -> String {
    if between == 0 {
        load.name().to_owned()
    } else {
        format!("{}, {} ns between", load.name(), grouped(between))
    }
}

/// Lays out the faults.
#[must_use]
pub fn faults(rows: &[Row]) -> String {
    let mut table = new(&[
        "shadow faults, thousands a second",
        "",
        "1 thread",
        "2 threads",
        "gain",
        "of the control's",
        "rounds",
        "a line, ns",
    ]);
    for row in rows {
        let arms = [
            ("control", row.control),
            ("vmmu", row.own),
            ("one lock", row.locked),
        ];
        for (who, arm) in arms {
            let first = who == "control";
            let only = |text: String| if first { text } else { String::new() };
            table.add_row([
                only(name(row)),
                who.to_owned(),
                cell(arm, |arm| thousands(arm.one)),
                cell(arm, |arm| thousands(arm.two)),
                cell(arm, |arm| fraction(arm.gain)),
                cell(arm.filter(|_| !first), |arm| fraction(arm.share)),
                only(format!("{} of {}", row.kept, row.kept + row.discarded)),
                only(row.transfer.to_string()),
            ]);
        }
    }
    format!(
        "{}\nmedians (quartiles). The control is two MMUs that share nothing; rounds in which it gained less than {LEAST_GAIN} or more than {MOST_GAIN}, or in which \
         threads lost their processors, are discarded.\n",
        finish(table, 2)
    )
}

fn cell(arm: Option<Arm>, show: impl Fn(Arm) -> String) -> String {
    arm.map_or(ABSENT.to_owned(), show)
}

fn thousands(spread: Spread) -> String {
    grouped((spread.median / 1e3).round() as u64)
}

fn fraction(spread: Spread) -> String {
    format!(
        "{:.2} ({:.2}-{:.2})",
        spread.median, spread.low, spread.high
    )
}

/// Lays out how long faults took.
#[must_use]
pub fn latencies(all: &[Latencies], pages: u64) -> String {
    let mut table = new(&[
        "a fault, ns, while another thread",
        "p50",
        "p99",
        "longest",
        "faults",
    ]);
    for phase in Phase::REPORTED {
        let Some(found) = all.iter().find(|found| found.phase == phase) else {
            continue;
        };
        table.add_row([
            phase.name().to_owned(),
            grouped(found.p50),
            grouped(found.p99),
            grouped(found.max),
            grouped(found.faults as u64),
        ]);
    }
    let interrupted: usize = all.iter().map(|found| found.interrupted).sum();
    format!(
        "{}\na VM with {} mapped pages; {interrupted} faults during which the thread lost its processor are left out.\n",
        finish(table, 1),
        grouped(pages)
    )
}

/// Lays out what a fault costs, and how long locks are held.
#[must_use]
pub fn counts(report: &Report) -> String {
    let mut table = new(&[
        "per fault",
        "locks",
        "contended",
        "atomic updates",
        "full barriers",
    ]);
    for counted in &report.counted {
        table.add_row([
            counted.load.name().to_owned(),
            format!("{:.2}", counted.locks),
            counted
                .contended
                .map_or(ABSENT.to_owned(), |n| format!("{n:.3}")),
            format!("{:.2}", counted.updates),
            format!("{:.2}", counted.fences),
        ]);
    }
    let holds = &report.holds;
    format!(
        "{}\nmost entries under one lock, {} pages: mapping {}, zapping {}, logging from now on {}, taking the log {}\n",
        finish(table, 1),
        grouped(holds.pages),
        holds.map,
        holds.zap,
        holds.protect,
        holds.harvest
    )
}

/// Lays out the simulations.
#[must_use]
pub fn simulated(report: &Report) -> String {
    let mut cpus: Vec<_> = report.simulated.iter().map(|s| s.cpus).collect();
    cpus.sort_unstable();
    cpus.dedup();
    let columns = cpus.iter().map(u64::to_string);
    let header: Vec<_> = [
        "simulated, as a multiple of one vCPU".to_owned(),
        String::new(),
    ]
    .into_iter()
    .chain(columns)
    .collect();
    let mut table = new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let mut seen = Vec::new();
    for one in &report.simulated {
        let key = (one.load, one.between);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let row = |first: String, who: &str, of: fn(&Simulated) -> f64| {
            let all = report.simulated.iter();
            let these = all.filter(|s| (s.load, s.between) == key);
            let cells = these.map(|s| format!("{:.1}", of(s)));
            [first, who.to_owned()]
                .into_iter()
                .chain(cells)
                .collect::<Vec<_>>()
        };
        table.add_row(row(load_name(one.load, one.between), "vmmu", |s| s.own));
        table.add_row(row(String::new(), "one lock", |s| s.one));
    }
    format!("{}\n", finish(table, 2))
}

/// Says which goals were reached.
#[must_use]
pub fn goals(rows: &[Row], all: &[Latencies]) -> String {
    let mut text = String::new();
    for row in rows {
        let (Some(goal), Some(own)) = (row.load.goal(), row.own) else {
            continue;
        };
        text += &format!(
            "{}: {:.2} of the control's gain, goal {goal:.2}: {}\n",
            name(row),
            own.share.median,
            verdict(own.share.median >= goal)
        );
    }
    let find = |phase| all.iter().find(|found| found.phase == phase);
    if let (Some(calm), Some(zap)) = (find(Phase::Calm), find(Phase::Zap)) {
        text += &format!(
            "p99 during the zap {} ns, goals {} ns and {} ns (twice that without): {}\n",
            grouped(zap.p99),
            grouped(SLOWEST),
            grouped(2 * calm.p99),
            verdict(zap.p99 <= SLOWEST && zap.p99 <= 2 * calm.p99)
        );
    }
    text
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "not reached" }
}

#[cfg(test)]
mod layout {
    use super::{faults, goals, simulated};
    use vmmu_parallel::faults::{Arm, Row};
    use vmmu_parallel::load::Load;
    use vmmu_parallel::report::{Holds, Report, Simulated};
    use vmmu_parallel::spread::Spread;

    fn row(own: Option<f64>, kept: usize, discarded: usize) -> Row {
        let spread = |median: f64| Spread {
            low: median,
            median,
            high: median,
        };
        let own = own.map(|share| Arm {
            one: spread(1_234_567.0),
            two: spread(2_400_000.0),
            gain: spread(1.944),
            share: spread(share),
        });
        Row {
            load: Load::Disjoint,
            between: 0,
            transfer: 22,
            control: own,
            own,
            locked: None,
            kept,
            discarded,
        }
    }

    #[test]
    fn a_load_without_a_round_that_counts_has_dashes_and_no_verdict() {
        let rows = [row(Some(0.974), 7, 1), row(None, 0, 9)];
        let text = faults(&rows);
        assert!(text.contains("1,235") && text.contains("7 of 8"), "{text}");
        assert!(text.contains("0 of 9"), "{text}");
        assert_eq!(goals(&rows, &[]).lines().count(), 1);
    }

    #[test]
    fn a_goal_that_is_missed_is_said_to_be() {
        assert!(goals(&[row(Some(0.95), 1, 0)], &[]).ends_with(": reached\n"));
        assert!(goals(&[row(Some(0.94), 1, 0)], &[]).ends_with("not reached\n"));
    }

    #[test]
    fn each_simulated_load_has_a_row_for_either_lock() {
        let simulation = |cpus| Simulated {
            load: Load::HotFrame,
            between: 1000,
            cpus,
            own: cpus as f64,
            one: 1.0,
        };
        let report = Report {
            counted: Vec::new(),
            holds: Holds {
                pages: 1,
                map: 1,
                zap: 1,
                protect: 1,
                harvest: 1,
            },
            simulated: vec![simulation(2), simulation(4)],
        };
        let text = simulated(&report);
        assert!(text.contains("one hot frame, 1,000 ns between"), "{text}");
        assert!(text.contains("4.0"), "{text}");
    }
}
