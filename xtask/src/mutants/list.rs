//! The list of mutants, taken from the library's source, and its page in the documentation.
//!
//! Key types: [`Mutant`], [`Suite`].
//!
//! Invariant:
//! 1. The table of docs/mutants.md is what `table` writes.

/// Where the tests are that kill a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// The library's own tests.
    Unit,
    /// The tests of vmmu-tests: the library on a machine.
    Machine,
    /// The library's own tests under loom.
    Loom,
}

/// One mistake that the library can be made to make.
#[derive(Debug)]
pub(super) struct Mutant {
    pub(super) rule: &'static str,
    pub(super) name: &'static str,
    pub(super) suite: Suite,
    /// Selects the tests that kill it.
    pub(super) filter: &'static str,
    /// What it breaks.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    pub(super) text: &'static str,
}

macro_rules! mutants {
    ($($rule:ident $name:ident $suite:ident $filter:literal $text:literal;)*) => {
        /// Every mutant.
        pub(super) const MUTANTS: &[Mutant] = &[
            $(Mutant {
                rule: stringify!($rule),
                name: stringify!($name),
                suite: Suite::$suite,
                filter: $filter,
                text: $text,
            },)*
        ];
    };
}
include!("../../../crates/vmmu/src/mutant/list.rs");

#[cfg(test)]
mod documentation {
    use super::{MUTANTS, Mutant, Suite};
    use std::collections::BTreeMap;

    /// Writes the table of docs/mutants.md.
    fn table() -> String {
        let mut text =
            String::from("| rule | name | the mistake | killed by |\n|---|---|---|---|\n");
        for mutant in MUTANTS {
            let Mutant {
                rule,
                name,
                text: mistake,
                ..
            } = mutant;
            let filter = mutant.filter;
            let file = filter.split("::").next().unwrap_or_default();
            let tests = match mutant.suite {
                Suite::Unit => format!("the library's tests, `{filter}`"),
                Suite::Machine => format!("`crates/vmmu-tests/tests/mutants/{file}.rs`"),
                Suite::Loom => format!("loom, `{filter}`"),
            };
            text += &format!("| {rule} | {name} | {mistake} | {tests} |\n");
        }
        text
    }

    #[test]
    fn the_page_has_the_list() {
        let page = crate::step::root().join("docs/mutants.md");
        let text = std::fs::read_to_string(page).expect("docs/mutants.md");
        let table = table();
        assert!(
            text.contains(&table),
            "docs/mutants.md has another table than:\n{table}"
        );
    }

    #[test]
    fn each_of_the_first_ten_rules_has_three_mutants() {
        let mut counts = BTreeMap::new();
        for mutant in MUTANTS {
            *counts.entry(mutant.rule).or_insert(0) += 1;
        }
        for rule in 1..=10 {
            let count = counts.get(format!("R{rule}").as_str()).copied();
            assert!(count >= Some(3), "R{rule}: {count:?}");
        }
    }
}
