//! Mutants: the library broken on purpose behind a switch; a test must notice each.
//!
//! Key type: [`Selection`]; [`run`].

use core::str::FromStr;

use clap::Args;

use crate::tally::Tally;

/// Which mutants to run; none named means those that CI runs.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Selection {
    /// Runs every mutant
    #[arg(long, conflicts_with_all = ["part", "name"])]
    all: bool,
    /// Runs the K-th of N parts
    #[arg(long, value_name = "K/N", conflicts_with = "name")]
    part: Option<Share>,
    /// Runs this mutant
    name: Option<String>,
}

impl Selection {
    /// Returns the part that `cargo xtask test` runs.
    pub(crate) fn for_ci() -> Self {
        Self::default()
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

pub(crate) fn run(selection: &Selection) -> Tally {
    let Selection { all, part, name } = selection;
    let share = part.map_or(String::new(), |share| {
        format!(", part {} of {}", share.index, share.parts)
    });
    println!(
        "no mutants are listed yet (all: {all}{share}, name: {name:?}): nothing was run, nothing is counted"
    );
    Tally::default()
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
