//! Comparing what both processors left behind.
//!
//! Key types: [`Difference`], [`Report`].

use crate::deviation::{self, Then, Verdict};
use crate::generate::listing;
use crate::layout::{DUMPED, PAGE, SLOT};
use crate::program::Program;
use crate::record::{CR2, FLAGS, NAMES, RIP, Record, Run, VECTOR};

/// Where two runs of a program differ first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The program's seed.
    pub seed: u64,
    /// Where the program was, what it did there, and how the two differ.
    pub text: String,
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Programs compared.
    pub programs: u64,
    /// Exceptions compared.
    pub exceptions: u64,
    /// How often a known deviation was met, by its name.
    pub known: std::collections::BTreeMap<&'static str, u64>,
    /// All others.
    pub differences: Vec<Difference>,
}

/// A word of a record that differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word {
    /// Its place in the record.
    pub(crate) place: usize,
    /// What the emulator has.
    pub(crate) ours: u64,
    /// What QEMU has.
    pub(crate) theirs: u64,
}

/// What is known where two runs part.
#[derive(Debug)]
pub(crate) struct Parting<'a> {
    pub(crate) program: &'a Program,
    /// The emulator's record.
    pub(crate) ours: &'a Record,
    /// QEMU's.
    pub(crate) theirs: &'a Record,
    /// The words that differ.
    pub(crate) words: Vec<Word>,
}

/// Compares two runs of a program.
pub(crate) fn compare(program: &Program, ours: &Run, theirs: &Run, report: &mut Report) {
    report.programs += 1;
    let mut previous = 0;
    for (mine, other) in ours.records.iter().zip(&theirs.records) {
        let parting = part(program, mine, other);
        match deviation::judge(&parting) {
            Verdict::Same => {}
            Verdict::Known(names, then) => {
                for name in names {
                    *report.known.entry(name).or_default() += 1;
                }
                if then == Then::Stop {
                    return;
                }
            }
            Verdict::Different => {
                report.differences.push(Difference {
                    seed: program.seed,
                    text: describe(&parting, previous),
                });
                return;
            }
        }
        report.exceptions += 1;
        previous = mine.0[RIP];
    }
    let text = if ours.records.len() != theirs.records.len() {
        format!(
            "{} exceptions, and {} in QEMU",
            ours.records.len(),
            theirs.records.len()
        )
    } else if let Some(text) = memory_differs(ours, theirs) {
        text
    } else {
        return;
    };
    report.differences.push(Difference {
        seed: program.seed,
        text: format!(
            "{:?}: {text}\n  last exception at {previous:#x}",
            program.kind
        ),
    });
}

fn part<'a>(program: &'a Program, ours: &'a Record, theirs: &'a Record) -> Parting<'a> {
    let tried = program.slot(ours.0[RIP]).and_then(|n| program.tried.get(n));
    let hidden = tried.map_or(0, |tried| tried.undefined) | deviation::SAVED_FLAGS;
    let words = (0..NAMES.len())
        .filter(|place| {
            let mask = if *place == FLAGS { !hidden } else { !0 };
            (ours.0[*place] ^ theirs.0[*place]) & mask != 0
        })
        .map(|place| Word {
            place,
            ours: ours.0[place],
            theirs: theirs.0[place],
        })
        .collect();
    Parting {
        program,
        ours,
        theirs,
        words,
    }
}

/// Describes a difference: the words, and the code around.
fn describe(parting: &Parting<'_>, previous: u64) -> String {
    let Parting {
        program,
        ours,
        theirs,
        words,
    } = parting;
    let rip = ours.0[RIP];
    let mut text = format!(
        "{:?}: vector {} at {rip:#x}, cr2 {:#x}, after an exception at {previous:#x}\n",
        program.kind, ours.0[VECTOR], ours.0[CR2]
    );
    for word in words {
        let Word {
            place,
            ours,
            theirs,
        } = word;
        text += &format!("  {}: {ours:#x}, QEMU {theirs:#x}\n", NAMES[*place]);
    }
    let mut slots: Vec<usize> = [theirs.0[RIP], rip]
        .into_iter()
        .filter_map(|at| program.slot(at))
        .collect();
    slots.sort_unstable();
    for (name, value) in NAMES.iter().zip(ours.0) {
        text += &format!("  {name} {value:#x}");
    }
    text += "\n";
    if let Some((first, last)) = slots.first().zip(slots.last()) {
        for slot in first.saturating_sub(1)..=(*last).min(first + 3) {
            text += &format!("  slot {slot} ({:#x})\n", slot as u64 * SLOT);
            for line in listing(program, slot) {
                text += &format!("    {line}\n");
            }
        }
    }
    text
}

/// Says where the windows differ.
fn memory_differs(ours: &Run, theirs: &Run) -> Option<String> {
    let page = PAGE as usize;
    let mut text = String::new();
    for (n, name) in DUMPED.iter().enumerate() {
        let (Some(mine), Some(other)) = (
            ours.pages.get(n * page..(n + 1) * page),
            theirs.pages.get(n * page..(n + 1) * page),
        ) else {
            return (ours.pages.len() != theirs.pages.len())
                .then(|| String::from("only one of them ended the program"));
        };
        let words = mine.chunks_exact(8).zip(other.chunks_exact(8));
        let value = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |all, b| all << 8 | u64::from(*b))
        };
        let differing = words.enumerate().filter(|(m, (mine, other))| {
            let at = 8 * *m as u64;
            mine != other && !deviation::explains_memory(*name, at, value(mine), value(other))
        });
        for (m, (mine, other)) in differing.take(3) {
            text += &format!(
                "\n  memory {:#x}: {:#x}, QEMU {:#x}",
                name + 8 * m as u64,
                value(mine),
                value(other)
            );
        }
    }
    (!text.is_empty()).then_some(text)
}
