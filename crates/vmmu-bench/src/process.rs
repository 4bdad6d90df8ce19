//! The processes that the benchmark starts.
//!
//! Key functions: [`this_program`], [`output`].

use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::operation::Operation;

/// Makes a command that starts this program again.
pub(crate) fn this_program(operation: Operation) -> Result<Command, Failure> {
    let me = std::env::current_exe().map_err(|e| Failure::of(operation, &e.to_string()))?;
    let mut command = Command::new(me);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs `command` and returns what it printed.
pub(crate) fn output(mut command: Command, operation: Operation) -> Result<String, Failure> {
    let output = command
        .output()
        .map_err(|e| Failure::of(operation, &e.to_string()))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::of(operation, &reason));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
