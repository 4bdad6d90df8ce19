//! Time, and the table.
//!
//! Key types: [`Row`]. Each operation runs in a process of its own: once under callgrind for instructions, then a few times without for time, of
//! which the least counts.

use core::time::Duration;

use crate::count;
use crate::failure::Failure;
use crate::operation::Operation;
use crate::process::{output, this_program};
use crate::runner::Runner;

/// How often the time is taken.
const TIMES: usize = 3;

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
pub fn measure(runner: &Runner, operation: Operation) -> Result<Row, Failure> {
    let [count, calls, mut least] = played(operation)?;
    for _ in 1..TIMES {
        least = least.min(played(operation)?[2]);
    }
    Ok(Row {
        operation,
        count,
        calls,
        instructions: count::instructions(runner, operation)?,
        time: Duration::from_nanos(least),
    })
}

/// Plays `operation` in a process of its own: how often, calls, nanoseconds.
fn played(operation: Operation) -> Result<[u64; 3], Failure> {
    let mut command = this_program(operation)?;
    command.args(["--play", operation.names().0]);
    let text = output(command, operation)?;
    numbers(&text).ok_or_else(|| Failure::of(operation, &text))
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
    fn a_players_numbers() {
        assert_eq!(numbers("played 10 20 300\n  x\n"), Some([10, 20, 300]));
        assert_eq!(numbers("played 10 20\n"), None);
    }
}
