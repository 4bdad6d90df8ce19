//! The bench's figures as a table for people and as JSON for programs.
//!
//! Key functions: [`render`], [`json()`].

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::json;

use crate::args::Paging;
use crate::bench::boot::Boot;
use crate::bench::figures::{Figure, Figures};
use crate::bench::operation::{Operation, TABLE};
use crate::number::{grouped, per_operation};

const HEADER: [&str; 10] = [
    "instructions per operation",
    "native",
    "shadow",
    "goal",
    "peer",
    "exits",
    "nested",
    "goal",
    "peer",
    "exits",
];
const ABSENT: &str = "-";

/// Lays out the table, in markdown so that a README can take it as it is.
#[must_use]
pub fn render(measured: &[(Paging, Figures)], all: bool) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(HEADER);
    for operation in TABLE
        .iter()
        .filter(|operation| all || operation.goal.is_some())
    {
        table.add_row(row(operation, measured));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n{}", summary(measured))
}

fn row(operation: &Operation, measured: &[(Paging, Figures)]) -> Vec<String> {
    let figure = |paging| figure(measured, paging, operation);
    let cost = |paging| figure(paging).map_or(ABSENT.to_owned(), |f| per_operation(f.instructions));
    let exits = |paging| {
        figure(paging)
            .and_then(|f| f.exits)
            .map_or(ABSENT.to_owned(), |e| format!("{e:.2}"))
    };
    let goal = operation
        .goal
        .map_or((ABSENT.to_owned(), ABSENT.to_owned()), |g| {
            (grouped(g.shadow), grouped(g.nested))
        });
    vec![
        operation.name.to_owned(),
        cost(Paging::Native),
        cost(Paging::Shadow),
        goal.0,
        per_operation(operation.peer_shadow.instructions),
        exits(Paging::Shadow),
        cost(Paging::Nested),
        goal.1,
        per_operation(operation.peer_nested.instructions),
        exits(Paging::Nested),
    ]
}

fn figure<'a>(
    measured: &'a [(Paging, Figures)],
    paging: Paging,
    operation: &Operation,
) -> Option<&'a Figure> {
    measured
        .iter()
        .find(|(p, _)| *p == paging)?
        .1
        .get(operation.phase)
}

/// Says how many goals were reached, and names the others.
fn summary(measured: &[(Paging, Figures)]) -> String {
    let mut text = String::new();
    for (paging, _) in measured.iter().filter(|(p, _)| *p != Paging::Native) {
        let with_goal = TABLE
            .iter()
            .filter_map(|operation| Some((operation, operation.goal?)));
        let judged: Vec<_> = with_goal
            .filter_map(|(operation, goal)| {
                let goal = if *paging == Paging::Shadow {
                    goal.shadow
                } else {
                    goal.nested
                };
                // Goals are whole instructions, as the figures in the table are.
                let reached =
                    figure(measured, *paging, operation)?.instructions.round() <= goal as f64;
                Some((operation.name, reached))
            })
            .collect();
        let missed: Vec<_> = judged
            .iter()
            .filter(|(_, reached)| !reached)
            .map(|(name, _)| *name)
            .collect();
        text += &format!(
            "{}: {} of {} goals reached",
            paging.name(),
            judged.len() - missed.len(),
            judged.len()
        );
        if !missed.is_empty() {
            text += &format!("; not reached: {}", missed.join("; "));
        }
        text += "\n";
    }
    text + "peer: Linux 6.1.192's KVM in the same QEMU with the same guest program, recorded\n"
}

/// Writes all figures as JSON.
#[must_use]
pub fn json(measured: &[(Paging, Figures)], boots: &[(Paging, Boot)]) -> String {
    let operations: Vec<_> = TABLE
        .iter()
        .map(|operation| {
            let mut row = json!({
                "phase": operation.phase,
                "operation": operation.name,
                "peer": { "shadow": operation.peer_shadow, "nested": operation.peer_nested },
                "goal": operation.goal,
            });
            for (paging, figures) in measured {
                row[paging.name()] = json!(figures.get(operation.phase));
            }
            row
        })
        .collect();
    let linux: serde_json::Map<_, _> = boots
        .iter()
        .map(|(p, boot)| (p.name().to_owned(), json!(boot)))
        .collect();
    format!(
        "{:#}\n",
        json!({ "operations": operations, "linux": linux })
    )
}

#[cfg(test)]
mod layout {
    use super::{json, render};
    use crate::args::Paging;
    use crate::bench::figures::Figures;

    fn figures() -> Vec<(Paging, Figures)> {
        let text: String = (0..22)
            .map(|phase| format!("P{phase} n=2 tsc=2469 per=1234\n"))
            .collect();
        vec![(
            Paging::Native,
            Figures::read(&text, &[], Paging::Native).expect("complete"),
        )]
    }

    #[test]
    fn a_row_has_every_column_and_absent_runs_are_dashes() {
        let text = render(&figures(), false);
        let row = text
            .lines()
            .find(|line| line.contains("CPUID"))
            .expect("a row");
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(
            cells,
            [
                "CPUID exit",
                "1,235",
                "-",
                "500",
                "2,631",
                "-",
                "-",
                "500",
                "2,663",
                "-"
            ]
        );
        assert_eq!(
            text.lines().filter(|line| line.starts_with('|')).count(),
            18
        );
    }

    #[test]
    fn all_operations_are_shown_on_demand_and_always_in_json() {
        assert!(render(&figures(), true).contains("RDMSR"));
        let value: serde_json::Value = serde_json::from_str(&json(&figures(), &[])).expect("JSON");
        assert_eq!(value["operations"].as_array().map(Vec::len), Some(22));
        assert_eq!(value["operations"][0]["native"]["instructions"], 1234.5);
    }
}
