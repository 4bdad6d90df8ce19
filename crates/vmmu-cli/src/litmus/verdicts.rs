//! Every answer, explored.
//!
//! Key type: [`Verdicts`].

use comfy_table::{ContentArrangement, Table, presets};
use vmmu_litmus::{Judged, Model, ROWS, Row, Verdict, judge};

use super::loom::Findings;
use crate::number::grouped;
use crate::progress::Progress;

/// What came out for each row.
#[derive(Debug)]
pub struct Verdicts {
    rows: Vec<Judgement>,
}

#[derive(Debug)]
struct Judgement {
    row: &'static Row,
    plain: Option<Judged>,
    atomic: Judged,
    c11: Option<Verdict>,
}

/// Explores every row under x86-TSO and adds what loom found.
#[must_use]
pub fn explore(loom: &Findings) -> Verdicts {
    let progress = Progress::begin("exploring every interleaving under x86-TSO");
    let rows = ROWS.iter().map(|row| {
        progress.line(row.name);
        let judged = |model| row.scheme_in(model).map(|scheme| judge(&scheme, model));
        let found = loom.get(row.id);
        Judgement {
            row,
            plain: judged(Model::Plain),
            atomic: judge(&row.scheme, Model::Atomic),
            c11: found.map(|found| {
                if found.lost == 0 {
                    Verdict::Sound
                } else {
                    Verdict::Loses
                }
            }),
        }
    });
    Verdicts {
        rows: rows.collect(),
    }
}

const fn word(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Sound) => "sound",
        Some(Verdict::Loses) => "LOSES",
        None => "-",
    }
}

impl Verdicts {
    /// Lays out the table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_preset(presets::ASCII_MARKDOWN)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "answer",
            "x86-TSO, plain count",
            "x86-TSO, atomic count",
            "C11, atomic count",
            "states",
        ]);
        for judgement in &self.rows {
            let states = judgement.atomic.states + judgement.plain.as_ref().map_or(0, |p| p.states);
            table.add_row([
                judgement.row.name,
                word(judgement.plain.as_ref().map(|judged| judged.verdict)),
                word(Some(judgement.atomic.verdict)),
                word(judgement.c11),
                &grouped(states as u64),
            ]);
        }
        let note = "\
The first three are the library's. Explored exhaustively: one or two creators, a guest write, a destroyer; plain: the count is raised by a load and a
store, and no lock nearby empties a store buffer; C11: loom on the library's own type (it knows no heavy barrier).\n";
        format!("{table}\n\n{note}")
    }

    /// Returns the shortest way to a lost update of each answer that has one.
    #[must_use]
    pub fn traces(&self) -> String {
        let mut text = String::new();
        for judgement in &self.rows {
            let lost = |judged: &Judged| judged.lost.as_ref().map(|(_, trace)| trace.to_string());
            let Some(trace) = judgement
                .plain
                .as_ref()
                .and_then(lost)
                .or_else(|| lost(&judgement.atomic))
            else {
                continue;
            };
            text += &format!(
                "{}, the shortest way to a lost update:\n\n{trace}\n\n",
                judgement.row.name
            );
        }
        text
    }

    /// Returns what is not as it must be.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        self.rows.iter().flat_map(Judgement::wrong).collect()
    }
}

impl Judgement {
    fn wrong(&self) -> Vec<String> {
        let row = self.row;
        let plain = self.plain.as_ref().map(|judged| judged.verdict);
        let c11 = if row.is_sound_in_c11() {
            Verdict::Sound
        } else {
            Verdict::Loses
        };
        let found = [
            ("x86-TSO, plain count", plain, row.expected(Model::Plain)),
            (
                "x86-TSO, atomic count",
                Some(self.atomic.verdict),
                row.expected(Model::Atomic),
            ),
            ("C11", self.c11, self.c11.map(|_| c11)),
        ];
        let differ = found
            .into_iter()
            .filter(|(_, found, expected)| found != expected);
        let mut wrong: Vec<_> = differ
            .map(|(model, found, _)| format!("{} ({model}): {}", row.name, word(found)))
            .collect();
        let stuck = [self.plain.as_ref(), Some(&self.atomic)];
        if stuck
            .into_iter()
            .flatten()
            .any(|judged| judged.stuck.is_some())
        {
            wrong.push(format!("{}: it can get stuck", row.name));
        }
        wrong
    }
}
