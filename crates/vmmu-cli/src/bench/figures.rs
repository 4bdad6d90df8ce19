//! What one run of the bench guest measured.
//!
//! Key type: [`Figures`].
//!
//! Invariants:
//! 1. Every operation is there, or reading fails.
//! 2. Of an operation that the guest performs several times the last is taken: the earlier ones warm up.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::args::Paging;
use crate::bench::operation::TABLE;
use crate::channel::{Edge, Mark};
use crate::error::{Error, Result};

/// One operation's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// How often it was performed.
    pub count: u64,
    /// Instructions per operation.
    pub instructions: f64,
    /// Exits per operation; nothing without a hypervisor.
    pub exits: Option<f64>,
    /// Exits by reason in all.
    pub by: BTreeMap<String, u64>,
}

/// The figures of all operations by their number.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<u64, Figure>);

impl Figures {
    /// Reads the guest's lines and the hypervisor's marks.
    ///
    /// # Errors
    ///
    /// [`Error::Bench`] when an operation is missing.
    pub fn read(text: &str, marks: &[Mark], paging: Paging) -> Result<Self> {
        let mut figures: BTreeMap<u64, Figure> = text.lines().filter_map(line).collect();
        if paging != Paging::Native {
            for (phase, exits, by) in spans(marks) {
                if let Some(figure) = figures.get_mut(&phase) {
                    figure.exits = Some(exits as f64 / figure.count as f64);
                    figure.by = by;
                }
            }
        }
        for operation in TABLE {
            let found = figures.get(&operation.phase);
            if found.is_none_or(|figure| paging != Paging::Native && figure.exits.is_none()) {
                let reason = format!("no {} figure for '{}'", paging.name(), operation.name);
                return Err(Error::Bench { reason });
            }
        }
        Ok(Self(figures))
    }

    /// Returns an operation's figures.
    #[must_use]
    pub fn get(&self, phase: u64) -> Option<&Figure> {
        self.0.get(&phase)
    }
}

/// Reads `P<phase> n=<count> tsc=<delta> per=<per operation>`.
fn line(text: &str) -> Option<(u64, Figure)> {
    let mut words = text.strip_prefix('P')?.split_whitespace();
    let phase = words.next()?.parse().ok()?;
    let count: u64 = words.next()?.strip_prefix("n=")?.parse().ok()?;
    let ticks: u64 = words.next()?.strip_prefix("tsc=")?.parse().ok()?;
    if count == 0 {
        return None;
    }
    let instructions = ticks as f64 / count as f64;
    Some((
        phase,
        Figure {
            count,
            instructions,
            exits: None,
            by: BTreeMap::new(),
        },
    ))
}

/// Pairs the marks: phase, exits between them, the same by reason.
fn spans(marks: &[Mark]) -> Vec<(u64, u64, BTreeMap<String, u64>)> {
    let mut spans = Vec::new();
    for pair in marks.windows(2) {
        let [start, end] = pair else { continue };
        if start.at != Edge::Start || end.at != Edge::End || start.phase != end.phase {
            continue;
        }
        // The closing mark is an exit of its own.
        let exits = end.exits.saturating_sub(start.exits).saturating_sub(1);
        let before = |reason: &String| start.by.get(reason).copied().unwrap_or(0);
        let by = end
            .by
            .iter()
            .map(|(reason, n)| (reason.clone(), n.saturating_sub(before(reason))));
        spans.push((start.phase, exits, by.filter(|(_, n)| *n > 0).collect()));
    }
    spans
}

#[cfg(test)]
mod reading {
    use super::{Figures, line, spans};
    use crate::args::Paging;
    use crate::channel::{Edge, Mark};
    use std::collections::BTreeMap;

    fn mark(phase: u64, at: Edge, exits: u64) -> Mark {
        Mark {
            phase,
            at,
            exits,
            by: BTreeMap::from([("npf".to_owned(), exits)]),
        }
    }

    fn report() -> String {
        (0..22)
            .map(|phase| format!("P{phase} n=4 tsc=10 per=2\n"))
            .collect()
    }

    #[test]
    fn a_line_gives_fractions_that_the_guest_cannot_print() {
        let (phase, figure) = line("P12 n=2000 tsc=22009 per=11").expect("a line of the guest");
        assert_eq!(
            (phase, figure.count, figure.instructions),
            (12, 2000, 11.0045)
        );
        for text in ["", "P", "Px n=1 tsc=1", "P1 n=0 tsc=1 per=0", "FAIL"] {
            assert_eq!(line(text), None, "{text}");
        }
    }

    #[test]
    fn the_closing_mark_is_not_counted_as_an_exit_of_the_operation() {
        let marks = [mark(3, Edge::Start, 10), mark(3, Edge::End, 15)];
        let spans = spans(&marks);
        assert_eq!((spans[0].0, spans[0].1), (3, 4));
    }

    #[test]
    fn the_last_of_repeated_operations_counts() {
        let text = report() + "P2 n=2 tsc=2 per=1\n";
        let figures = Figures::read(&text, &[], Paging::Native).expect("complete");
        assert_eq!(figures.get(2).map(|f| f.instructions), Some(1.0));
    }

    #[test]
    fn a_missing_operation_or_mark_is_an_error() {
        assert!(Figures::read("P1 n=1 tsc=1 per=1", &[], Paging::Native).is_err());
        assert!(Figures::read(&report(), &[], Paging::Shadow).is_err());
        let marks: Vec<_> = (0..22)
            .flat_map(|p| [mark(p, Edge::Start, p), mark(p, Edge::End, p + 9)])
            .collect();
        let figures = Figures::read(&report(), &marks, Paging::Shadow).expect("complete");
        assert_eq!(figures.get(7).and_then(|f| f.exits), Some(2.0));
    }
}
