//! One command of a part: shown, run, and judged.
//!
//! Key functions: [`succeeds`], [`passes_tests`].

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::tally::Tally;

/// Makes a cargo command in the project's folder.
pub(crate) fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root()).stdin(Stdio::null());
    command
}

/// Returns the project's folder.
pub(crate) fn root() -> &'static std::path::Path {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Runs a command that passes by ending with status 0.
pub(crate) fn succeeds(mut command: Command) -> Tally {
    println!("$ {}", words(&command));
    match command.status() {
        Ok(status) => Tally::of(status.success()),
        Err(error) => {
            println!("cannot be started: {error}");
            Tally::FAIL
        }
    }
}

/// Runs a `cargo test` and counts its tests; one that doesn't build, or runs none, is a failure.
pub(crate) fn passes_tests(mut command: Command) -> Tally {
    println!("$ {}", words(&command));
    let mut child = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("cannot be started: {error}");
            return Tally::FAIL;
        }
    };
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            output.push_str(&line);
            output.push('\n');
        }
    }
    let success = child.wait().is_ok_and(|status| status.success());
    let mut tally = Tally::of_test_output(&output);
    if success != tally.is_success() {
        println!(
            "the run ended with {success}, its tests with {tally}: counted as one more failure"
        );
        tally += Tally::FAIL;
    }
    tally
}

fn words(command: &Command) -> String {
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut text: String = set
        .map(|(n, v)| format!("{}='{}' ", n.display(), v.display()))
        .collect();
    let program = command.get_program().to_string_lossy();
    text += program.rsplit('/').next().unwrap_or_default();
    for word in command.get_args() {
        text += " ";
        text += &word.to_string_lossy();
    }
    text
}
