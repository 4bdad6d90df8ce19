//! The rows that need no heavy barrier, under the C11 memory model: loom explores the library's own type.
//!
//! Key function: [`run`]. The tests are `loom_tests::strategies` of the library; cargo builds and runs them in a target folder of their own.

use std::collections::BTreeMap;
use std::process::Command;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tools;
use crate::workspace::Workspace;

/// What loom found for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    /// Executions, each with other values that the model allows.
    pub executions: u64,
    /// Those in which an update was lost.
    pub lost: u64,
}

/// Findings by the row's id.
pub type Findings = BTreeMap<String, Explored>;

const WORDS: [&str; 8] = [
    "test",
    "--profile",
    "loom",
    "-p",
    "vmmu",
    "--lib",
    "strategies",
    "--",
];

/// Builds and runs the loom tests of the strategies.
///
/// # Errors
///
/// [`Error::ToolMissing`] without cargo, [`Error::Build`] when the tests fail to build or find what they must not.
pub fn run(workspace: &Workspace) -> Result<Findings> {
    let root = workspace.root()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command
        .args(WORDS)
        .args(["--nocapture", "--test-threads", "1"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", root.join("target/loom"))
        .current_dir(root);
    let output = tools::run(
        command,
        &Progress::begin("exploring the gate's type with loom"),
    )?;
    let findings = read(&output.stdout);
    if !output.success || findings.is_empty() {
        return Err(Error::Build {
            what: "the loom tests",
            reason: output.reason(),
            command: format!("RUSTFLAGS='--cfg loom' cargo {}", WORDS.join(" ")),
        });
    }
    Ok(findings)
}

/// Reads lines of the form `gate <row>: <executions> executions, <lost>`.
fn read(text: &str) -> Findings {
    let line = |line: &str| {
        let (_, rest) = line.split_once("gate ")?;
        let (row, figures) = rest.split_once(": ")?;
        let (executions, lost) = figures.split_once(" executions, ")?;
        let explored = Explored {
            executions: executions.parse().ok()?,
            lost: lost.trim().parse().ok()?,
        };
        Some((row.to_owned(), explored))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod lines {
    use super::{Explored, read};

    #[test]
    fn of_the_tests_are_found_among_others() {
        let text = "running 2 tests\ntest a ... gate fenced: 33 executions, 0\ngate volatile: 54 executions, 14\nok\n";
        let found = read(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found["volatile"],
            Explored {
                executions: 54,
                lost: 14
            }
        );
    }
}
