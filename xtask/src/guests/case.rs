//! One run of the command with what it must come to.
//!
//! Key type: [`Case`].

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::step::root;
use crate::tally::Tally;

/// A run of the command.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) words: Vec<String>,
    pub(crate) input: &'static str,
    pub(crate) seconds: u32,
    pub(crate) expected: Expected,
}

/// What a run must come to.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) status: i32,
    /// Each must occur on standard output.
    pub(crate) stdout: Vec<&'static str>,
    /// Each must occur on standard error.
    pub(crate) stderr: Vec<&'static str>,
}

impl Expected {
    /// A run that ends with `status` and prints these.
    pub(crate) fn new(status: i32, stdout: &[&'static str]) -> Self {
        Self {
            status,
            stdout: stdout.to_vec(),
            stderr: Vec::new(),
        }
    }
}

impl Case {
    /// Runs the case and says how it went.
    pub(crate) fn run(&self, command: &Path) -> Tally {
        let start = Instant::now();
        let found = self.outcome(command);
        let seconds = start.elapsed().as_secs_f64();
        match found {
            Ok(()) => {
                println!("ok     {:>5.1} s  {}", seconds, self.name);
                Tally::PASS
            }
            Err(why) => {
                println!(
                    "FAILED {:>5.1} s  {}\n       vmmu {}\n{why}",
                    seconds,
                    self.name,
                    self.words.join(" ")
                );
                Tally::FAIL
            }
        }
    }

    fn outcome(&self, command: &Path) -> Result<(), String> {
        let limit = format!("{}s", self.seconds);
        let mut command = Command::new(command);
        command.current_dir(root());
        // Without a subcommand there are no options.
        if let Some((subcommand, words)) = self.words.split_first() {
            command
                .arg(subcommand)
                .args(["--timeout", &limit])
                .args(words);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| format!("it can't be started: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // The guest may end before it read everything.
            let _ = stdin.write_all(self.input.as_bytes());
        }
        let output = child
            .wait_with_output()
            .map_err(|error| format!("it can't be waited for: {error}"))?;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let mut wrong = Vec::new();
        if output.status.code() != Some(self.expected.status) {
            wrong.push(format!(
                "it ended with {}, not with {}",
                output.status, self.expected.status
            ));
        }
        for (name, text, words) in [
            ("output", &stdout, &self.expected.stdout),
            ("errors", &stderr, &self.expected.stderr),
        ] {
            wrong.extend(
                words
                    .iter()
                    .filter(|w| !text.contains(**w))
                    .map(|w| format!("its {name} lack {w:?}")),
            );
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{}\n{}\n{}",
            wrong.join("\n"),
            quoted("out", &stdout),
            quoted("err", &stderr)
        ))
    }
}

const SHOWN: usize = 40;

fn quoted(name: &str, text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(SHOWN)..];
    last.iter()
        .map(|line| format!("  {name}| {}", line.trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
}
