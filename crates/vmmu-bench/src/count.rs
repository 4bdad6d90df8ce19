//! Counting instructions, through gungraun.
//!
//! Key functions: [`instructions`], [`profile`]. The program starts itself again as gungraun's harness, which starts the runner, which starts
//! callgrind; what comes back is a line of JSON.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::failure::Failure;
use crate::operation::Operation;
use crate::process::{output, this_program};
use crate::runner::Runner;

/// Says to the program started again that it is gungraun's harness.
const HARNESS: &str = "VMMU_BENCH_HARNESS";
/// The argument with which the runner starts a benchmark.
const BY_RUNNER: &str = "--gungraun-run";

/// Whether this process is gungraun's harness, or a benchmark that the runner has started.
pub fn is_for_harness() -> bool {
    std::env::var_os(HARNESS).is_some()
        || std::env::args().nth(1).is_some_and(|arg| arg == BY_RUNNER)
}

/// Counts the instructions inside the measured regions of `operation`.
///
/// # Errors
/// [`Failure`].
pub fn instructions(runner: &Runner, operation: Operation) -> Result<u64, Failure> {
    let summary = counted(runner, operation)?;
    collected(&summary).ok_or_else(|| Failure::of(operation, &summary.to_string()))
}

/// Counts `operation` and returns the file that callgrind_annotate reads.
///
/// # Errors
/// [`Failure`].
pub fn profile(runner: &Runner, operation: Operation) -> Result<PathBuf, Failure> {
    let summary = counted(runner, operation)?;
    folder(&summary)
        .and_then(|folder| callgrind_file(&folder))
        .ok_or_else(|| Failure::of(operation, "gungraun has left no file"))
}

/// Has gungraun count one operation, and returns its summary.
fn counted(runner: &Runner, operation: Operation) -> Result<Value, Failure> {
    let text = output(harness(runner, operation)?, operation)?;
    let line = text.lines().find(|line| line.starts_with('{'));
    line.and_then(|line| serde_json::from_str(line).ok())
        .ok_or_else(|| Failure::of(operation, &text))
}

fn harness(runner: &Runner, operation: Operation) -> Result<Command, Failure> {
    let place = Operation::ALL.iter().position(|op| *op == operation);
    let place = place.ok_or_else(|| Failure::of(operation, "not among the operations"))?;
    let mut command = this_program(operation)?;
    command
        .args(["--bench", "--test=false", "--output-format=json"])
        .arg(format!("*::operation_{place}"))
        .env(HARNESS, "1");
    runner.put_on_path(&mut command);
    Ok(command)
}

/// Finds callgrind's sum in gungraun's summary.
fn collected(summary: &Value) -> Option<u64> {
    let sum = summary.pointer("/profiles/0/data/total/metrics/Ir/values/new")?;
    sum.as_u64()
}

fn folder(summary: &Value) -> Option<PathBuf> {
    let text = |key: &str| summary.get(key).and_then(Value::as_str);
    Some(Path::new(text("project_root")?).join(text("output_dir")?))
}

fn callgrind_file(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?;
    files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("callgrind.") && name.ends_with(".out")
        })
}

#[cfg(test)]
mod a_summary_is_understood {
    use super::*;

    #[test]
    fn the_new_sum_is_found_beside_an_old_one() {
        let metrics = r#"{"Ir":{"values":{"new":34901,"old":7}}}"#;
        let text = format!(r#"{{"profiles":[{{"data":{{"total":{{"metrics":{metrics}}}}}}}]}}"#);
        let summary: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(collected(&summary), Some(34901));
        assert_eq!(collected(&Value::Null), None);
    }

    #[test]
    fn the_folder_is_below_the_project() {
        let text = r#"{"project_root":"/p","output_dir":"target/x"}"#;
        let summary: Value = serde_json::from_str(text).expect("it is JSON");
        assert_eq!(folder(&summary), Some(PathBuf::from("/p/target/x")));
    }
}
