//! Counting by callgrind, and the table.
//!
//! Key types: [`Row`], [`Failure`]. Each operation runs in a process of its own: once under callgrind for instructions, then a few times
//! without for time, of which the least counts.

use core::time::Duration;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::machine::Trouble;
use crate::meter::MEASURED;
use crate::operation::Operation;

/// How often the time is taken.
const TIMES: usize = 3;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// callgrind is not there.
    #[error("valgrind is not installed: apt-get install valgrind")]
    NoValgrind,
    /// A process could not be started or failed.
    #[error("{operation}: {reason}")]
    Process {
        /// What it was to play.
        operation: &'static str,
        /// What happened.
        reason: String,
    },
    /// The operation could not be played.
    #[error("{operation}: {trouble}")]
    Trouble {
        /// What was played.
        operation: &'static str,
        /// What happened.
        trouble: Trouble,
    },
}

/// What was measured of one operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row {
    /// The operation.
    pub operation: Operation,
    /// How often it was played.
    pub count: u64,
    /// Calls of the library.
    pub calls: u64,
    /// Instructions inside the measured regions.
    pub instructions: u64,
    /// Time inside the measured regions.
    pub time: Duration,
}

/// Plays `operation` and prints what the parent process reads, and on request what the library did.
///
/// # Errors
/// [`Failure::Trouble`].
pub fn play(operation: Operation, with_events: bool) -> Result<(), Failure> {
    let played = operation.play().map_err(|trouble| Failure::Trouble {
        operation: operation.names().0,
        trouble,
    })?;
    println!(
        "played {} {} {}",
        played.count,
        played.reading.calls,
        played.reading.time.as_nanos()
    );
    if with_events {
        println!("  {} calls {}", operation.names().0, played.reading.calls);
        for (event, n) in &played.events {
            let each = *n as f64 / played.count as f64;
            println!("  {:<20} {n:>8} {each:>8.2}", event.name());
        }
    }
    Ok(())
}

/// Measures `operation`.
///
/// # Errors
/// [`Failure`].
pub fn measure(operation: Operation) -> Result<Row, Failure> {
    let me = std::env::current_exe().map_err(|e| failed(operation, &e.to_string()))?;
    let mut callgrind = Command::new("valgrind");
    callgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={MEASURED}"))
        .arg(&me);
    let (out, err) = output(&mut callgrind, operation)?;
    let instructions = collected(&err).ok_or_else(|| failed(operation, &err))?;
    let [count, calls, _] = numbers(&out).ok_or_else(|| failed(operation, &out))?;
    let mut least = u64::MAX;
    for _ in 0..TIMES {
        let (out, _) = output(&mut Command::new(&me), operation)?;
        let [_, _, nanos] = numbers(&out).ok_or_else(|| failed(operation, &out))?;
        least = least.min(nanos);
    }
    Ok(Row {
        operation,
        count,
        calls,
        instructions,
        time: Duration::from_nanos(least),
    })
}

/// Runs callgrind on `operation` and returns the file that callgrind_annotate reads.
///
/// # Errors
/// [`Failure`].
pub fn profile(operation: Operation) -> Result<PathBuf, Failure> {
    let me = std::env::current_exe().map_err(|e| failed(operation, &e.to_string()))?;
    let file = std::env::temp_dir().join(format!("callgrind.{}", operation.names().0));
    let mut callgrind = Command::new("valgrind");
    callgrind
        .args(["--tool=callgrind", "--dump-instr=no"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(format!("--toggle-collect={MEASURED}"))
        .arg(&me);
    output(&mut callgrind, operation).map(|_| file)
}

fn failed(operation: Operation, reason: &str) -> Failure {
    Failure::Process {
        operation: operation.names().0,
        reason: reason.trim().to_owned(),
    }
}

fn output(command: &mut Command, operation: Operation) -> Result<(String, String), Failure> {
    let output = command
        .args(["--play", operation.names().0])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Failure::NoValgrind,
            _ => failed(operation, &e.to_string()),
        })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        return Err(failed(operation, &text(&output.stderr)));
    }
    Ok((text(&output.stdout), text(&output.stderr)))
}

/// Finds callgrind's sum: "==123== Collected : 4567".
fn collected(stderr: &str) -> Option<u64> {
    let line = stderr.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Finds what [`play`] printed.
fn numbers(stdout: &str) -> Option<[u64; 3]> {
    let line = stdout.lines().find(|line| line.starts_with("played "))?;
    let mut words = line.split(' ').skip(1).map(str::parse);
    Some([
        words.next()?.ok()?,
        words.next()?.ok()?,
        words.next()?.ok()?,
    ])
}

/// Prints the table's head.
pub fn print_head() {
    println!(
        "| {:<34} | {:>9} | {:>9} | {:>6} | {:>9} | {:>9} |",
        "operation", "peer MMU", "vmmu", "ratio", "calls/op", "ns/op"
    );
    println!(
        "|{:-<36}|{:->11}|{:->11}|{:->8}|{:->11}|{:->11}|",
        "", ":", ":", ":", ":", ":"
    );
}

/// Prints a row, less what `empty` regions cost.
pub fn print_row(row: &Row, empty: &Row) {
    let (_, title, peer) = row.operation.names();
    let each = |row: &Row, sum: f64, empty_sum: f64| {
        (sum - row.calls as f64 * empty_sum / empty.calls as f64) / row.count as f64
    };
    let instructions = each(row, row.instructions as f64, empty.instructions as f64);
    let nanos = each(
        row,
        row.time.as_nanos() as f64,
        empty.time.as_nanos() as f64,
    );
    let calls = row.calls as f64 / row.count as f64;
    let (peer, ratio) = match peer {
        Some(peer) => (
            peer.to_string(),
            format!("{:.2}", instructions / f64::from(peer)),
        ),
        None => ("-".to_owned(), "-".to_owned()),
    };
    println!(
        "| {title:<34} | {peer:>9} | {instructions:>9.0} | {ratio:>6} | {calls:>9.2} | {nanos:>9.0} |"
    );
}

#[cfg(test)]
mod output_is_understood {
    use super::*;

    #[test]
    fn callgrinds_sum() {
        let text = "==12== \n==12== Events    : Ir\n==12== Collected : 34901\n";
        assert_eq!(collected(text), Some(34901));
        assert_eq!(collected("==12== Collected : much"), None);
    }

    #[test]
    fn a_players_numbers() {
        assert_eq!(numbers("played 10 20 300\n  x\n"), Some([10, 20, 300]));
        assert_eq!(numbers("played 10 20\n"), None);
    }
}
