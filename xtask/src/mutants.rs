//! Mutants: the library broken on purpose behind a switch; a test must notice each.
//!
//! Key type: [`Selection`]; [`run`]. `list` has the mutants, `suites` builds the tests once and runs them with a mutant switched on.
//!
//! Invariants:
//! 1. The tests that are to kill a mutant pass without it, and are at least one: otherwise nothing would be shown.

mod boot;
mod list;
mod suites;

use core::str::FromStr;
use std::time::Instant;

use clap::Args;

use crate::tally::Tally;
use list::{MUTANTS, Mutant, Suite};
use suites::Suites;

/// Which mutants to run; none named means those that CI runs: all but those that only loom finds.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Selection {
    /// Runs every mutant
    #[arg(long, conflicts_with_all = ["part", "name"])]
    all: bool,
    /// Runs the K-th of N parts
    #[arg(long, value_name = "K/N", conflicts_with = "name")]
    part: Option<Share>,
    /// Boots a guest with each mutant instead, on the software machine with its judge
    #[arg(long, conflicts_with_all = ["all", "part"])]
    boot: bool,
    /// Runs this mutant
    name: Option<String>,
}

impl Selection {
    /// Returns the boots with each mutant that shows in one.
    pub(crate) fn boots() -> Self {
        Self {
            boot: true,
            ..Self::default()
        }
    }

    /// Returns what the summary calls it.
    pub(crate) const fn name(&self) -> &'static str {
        if self.boot { "boots" } else { "mutants" }
    }

    fn choose(&self) -> impl Iterator<Item = &'static Mutant> + '_ {
        let numbered = MUTANTS.iter().enumerate();
        numbered.filter_map(|(i, mutant)| {
            let wanted = match (&self.name, self.part) {
                (Some(name), _) => mutant.name.eq_ignore_ascii_case(name),
                (None, Some(share)) => i % share.parts + 1 == share.index,
                (None, None) => self.all || mutant.suite != Suite::Loom,
            };
            wanted.then_some(mutant)
        })
    }
}

/// The K-th of N parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    index: usize,
    parts: usize,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is no part; write for example 1/3");
        let (index, parts) = text.split_once('/').ok_or_else(bad)?;
        let share = Self {
            index: index.parse().map_err(|_| bad())?,
            parts: parts.parse().map_err(|_| bad())?,
        };
        if (1..=share.parts).contains(&share.index) {
            Ok(share)
        } else {
            Err(bad())
        }
    }
}

/// Runs the chosen mutants; a survivor is a failure.
pub(crate) fn run(selection: &Selection) -> Tally {
    if selection.boot {
        return boot::run(selection.name.as_deref());
    }
    let chosen: Vec<&Mutant> = selection.choose().collect();
    if chosen.is_empty() {
        println!("no mutant of that name; docs/mutants.md has the list");
        return Tally::FAIL;
    }
    let suites = match Suites::build(&chosen) {
        Ok(suites) => suites,
        Err(error) => {
            println!("the tests with mutants: {error}");
            return Tally::FAIL;
        }
    };
    let mut tally = suites.check_unbroken(&chosen);
    if tally.has_failures() {
        return tally;
    }
    let mut survivors = Vec::new();
    for mutant in chosen {
        let start = Instant::now();
        let end = suites.judge(mutant);
        let seconds = start.elapsed().as_secs_f64();
        let Mutant { rule, name, .. } = mutant;
        println!("{name:26} {rule:4} {end} ({seconds:.1} s)");
        tally += Tally::of(end.is_killed());
        if !end.is_killed() {
            survivors.push(*name);
        }
    }
    if !survivors.is_empty() {
        println!("survived: {}", survivors.join(", "));
    }
    tally
}

#[cfg(test)]
mod shares {
    use super::Share;

    #[test]
    fn a_share_is_within_its_parts() {
        assert_eq!("2/3".parse(), Ok(Share { index: 2, parts: 3 }));
        for text in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
