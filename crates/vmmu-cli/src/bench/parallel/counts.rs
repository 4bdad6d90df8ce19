//! The program that counts and simulates: the library built another time, with its feature `count`, in a target folder of its own.
//!
//! Key function: [`run`].

use std::process::Command;

use vmmu_parallel::report::{Asked, Report};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tools;
use crate::workspace::Workspace;

const WORDS: [&str; 9] = [
    "run",
    "--release",
    "-p",
    "vmmu-parallel",
    "--features",
    "count",
    "--bin",
    "vmmu-counts",
    "--",
];

/// Builds and runs it.
///
/// # Errors
///
/// [`Error::ToolMissing`] without cargo, [`Error::Build`] when it fails to build or to run.
pub fn run(workspace: &Workspace, asked: &Asked) -> Result<Report> {
    let root = workspace.root()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let numbers = [
        asked.cpus,
        asked.pages,
        asked.seed,
        asked.fault,
        asked.transfer,
    ];
    let mut command = Command::new(cargo);
    command
        .args(WORDS)
        .args(numbers.map(|number| number.to_string()))
        .env("CARGO_TARGET_DIR", root.join("target/count"))
        .current_dir(root);
    let output = tools::run(
        command,
        &Progress::begin("counting locks and atomics, and simulating"),
    )?;
    match serde_json::from_str(&output.stdout) {
        Ok(report) if output.success => Ok(report),
        _ => Err(Error::Build {
            what: "the program that counts",
            reason: output.reason(),
            command: format!("cargo {}", WORDS.join(" ")),
        }),
    }
}
