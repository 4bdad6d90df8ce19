//! The parts of the checks, and a run over several of them.
//!
//! Key type: [`Part`], [`run`].

use std::time::Instant;

use crate::extent::Extent;
use crate::tally::Tally;
use crate::{guests, lints, loom, mutants, prerequisites, shuttle, tests};

/// A part of the checks, or a longer form of one.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Fmt,
    Clippy,
    Doc,
    Unit,
    Loom(Extent),
    Shuttle(Extent),
    Mutants(mutants::Selection),
    Software,
    Matrix,
    Qemu,
    Soak(guests::Soak),
}

impl Part {
    /// Returns every part in the order in which `cargo xtask test` runs them: cheap ones first.
    pub(crate) fn all() -> Vec<Self> {
        vec![
            Self::Fmt,
            Self::Clippy,
            Self::Doc,
            Self::Unit,
            Self::Loom(Extent::default()),
            Self::Shuttle(Extent::default()),
            Self::Mutants(mutants::Selection::default()),
            Self::Mutants(mutants::Selection::boots()),
            Self::Software,
            Self::Qemu,
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
            Self::Unit => "unit",
            Self::Loom(_) => "loom",
            Self::Shuttle(_) => "shuttle",
            Self::Mutants(selection) => selection.name(),
            Self::Software => "software",
            Self::Matrix => "matrix",
            Self::Qemu => "qemu",
            Self::Soak(_) => "soak",
        }
    }

    fn run(&self) -> Tally {
        match self {
            Self::Fmt => lints::fmt(),
            Self::Clippy => lints::clippy(),
            Self::Doc => lints::doc(),
            Self::Unit => tests::run(),
            Self::Loom(extent) => loom::run(*extent),
            Self::Shuttle(extent) => shuttle::run(*extent),
            Self::Mutants(selection) => mutants::run(selection),
            Self::Software => guests::run_in_software(),
            Self::Matrix => guests::run_matrix(),
            Self::Qemu => guests::run(),
            Self::Soak(soak) => guests::soak(soak),
        }
    }
}

/// Runs the parts, prints what each took and came to, and closes with the sum.
pub(crate) fn run(parts: &[Part]) -> Tally {
    let mut total = Tally::default();
    if let Err(error) = prerequisites::check(parts) {
        println!("{error}");
        total += Tally::FAIL;
        println!("{total}");
        return total;
    }
    let mut lines = Vec::new();
    for part in parts {
        println!("\n== {} ==", part.name());
        let start = Instant::now();
        let tally = part.run();
        total += tally;
        lines.push(format!(
            "{:8} {:>6.1} s  {tally}",
            part.name(),
            start.elapsed().as_secs_f64()
        ));
    }
    println!("\n== summary ==");
    for line in lines {
        println!("{line}");
    }
    println!("{total}");
    total
}
