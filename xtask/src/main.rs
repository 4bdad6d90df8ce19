//! Runs every check of the project: `cargo xtask test` all of them in order, the other subcommands one part each.
//!
//! | module | noun |
//! |---|---|
//! | [`part`] | the parts, and a run over several of them |
//! | [`tally`] | what passed and failed |
//! | [`extent`] | how much of a part is explored |
//! | [`step`] | one command, shown and counted |
//! | [`lints`], [`tests`], [`loom`], [`shuttle`], [`mutants`], [`guests`] | the parts' content |
//! | [`prerequisites`] | tools that must be there |
//!
//! Invariants:
//! 1. The last line is `N passed, N failed`, alone; the exit status is 0 only if nothing failed and something passed.
//! 2. What was not run is not counted. A part that ran nothing although it should have, failed.
#![forbid(unsafe_code)]

mod extent;
mod guests;
mod lints;
mod loom;
mod mutants;
mod part;
mod prerequisites;
mod shuttle;
mod step;
mod tally;
mod tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use part::Part;

/// Runs the project's checks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything
    Test,
    /// Checks the layout of the source
    Fmt,
    /// Runs the lints on everything, the bare-metal programs included
    Clippy,
    /// Builds the documentation without warnings
    Doc,
    /// Runs the tests that need no QEMU
    Unit,
    /// Runs the loom tests
    Loom(extent::Extent),
    /// Runs whole programs of vCPUs and a host under random schedules
    Shuttle(extent::Extent),
    /// Breaks the library on purpose and checks that tests notice
    Mutants(mutants::Selection),
    /// Runs guests on the software machine
    Software,
    /// Runs every load on every nature of the software machine, checked: the long form of a part of `software`
    Matrix,
    /// Runs guests in QEMU
    Qemu,
    /// Runs a guest with several processors again and again: the long form of a part of `qemu`
    Soak(guests::Soak),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let parts = match cli.command {
        Command::Test => Part::all(),
        Command::Fmt => vec![Part::Fmt],
        Command::Clippy => vec![Part::Clippy],
        Command::Doc => vec![Part::Doc],
        Command::Unit => vec![Part::Unit],
        Command::Loom(extent) => vec![Part::Loom(extent)],
        Command::Shuttle(extent) => vec![Part::Shuttle(extent)],
        Command::Mutants(selection) => vec![Part::Mutants(selection)],
        Command::Software => vec![Part::Software],
        Command::Matrix => vec![Part::Matrix],
        Command::Qemu => vec![Part::Qemu],
        Command::Soak(soak) => vec![Part::Soak(soak)],
    };
    if part::run(&parts).is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
