//! What the guest did in a phase, and what was counted meanwhile.
//!
//! Key type: [`Phase`].

use vmmu::{Event, Stats};
use vmmu_machine::cpu::exit::Exit;
use vmmu_machine::machine::{Edge, Mark, Record};

use super::Run;
use crate::error::{Error, Result};

/// A phase of the guest.
#[derive(Debug, Clone)]
pub struct Phase {
    /// Its number, from 1 on.
    pub number: u8,
    /// How often its operation was done.
    pub operations: u64,
    /// Page faults that the guest itself handled.
    pub guest_faults: u64,
    /// What it did, in the guest's words.
    pub done: String,
    /// What was counted.
    pub counted: Counted,
}

/// What was counted between two marks.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Instructions of the guest.
    pub instructions: u64,
    /// Exits by kind.
    pub exits: [u64; Exit::KINDS],
    /// The library's counters.
    events: Vec<u64>,
}

impl Counted {
    /// Returns what was counted between two marks, but for the exit that is the mark itself.
    fn between(start: &Mark, end: &Mark) -> Self {
        let mut exits = end.exits.0;
        for (end, start) in exits.iter_mut().zip(start.exits.0) {
            *end -= start;
        }
        Self {
            instructions: end.instructions - start.instructions,
            exits,
            events: differences(&start.stats, &end.stats),
        }
    }

    /// Returns how often an event happened.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// Returns the exits of all kinds.
    #[must_use]
    pub fn all_exits(&self) -> u64 {
        self.exits.iter().sum()
    }

    /// Adds another phase's.
    pub fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        let exits = self.exits.iter_mut().zip(&other.exits);
        exits.for_each(|(sum, one)| *sum += one);
        let events = self.events.iter_mut().zip(&other.events);
        events.for_each(|(sum, one)| *sum += one);
    }
}

fn differences(start: &Stats, end: &Stats) -> Vec<u64> {
    let pairs = start.iter().zip(end.iter());
    pairs.map(|((_, start), (_, end))| end - start).collect()
}

/// Reads the phases of a run: the guest's lines beside the machine's marks.
///
/// # Errors
///
/// [`Error::Bench`] if the two don't agree.
pub fn phases(run: &Run) -> Result<Vec<Phase>> {
    let incomplete = || Error::Bench {
        reason: format!("the demonstration guest said {:?}", run.text),
    };
    let phases: Option<Vec<_>> = run
        .text
        .lines()
        .map(|line| phase(line, &run.record))
        .collect();
    phases
        .filter(|phases| !phases.is_empty())
        .ok_or_else(incomplete)
}

/// Reads a line of the form `phase <number> <operations> <page faults> <what was done>`.
fn phase(line: &str, record: &Record) -> Option<Phase> {
    let mut words = line.strip_prefix("phase ")?.splitn(4, ' ');
    let number = words.next()?.parse().ok()?;
    let mark = |edge| {
        record
            .marks
            .iter()
            .find(|mark| mark.phase == number && mark.edge == edge)
    };
    Some(Phase {
        number,
        operations: words.next()?.parse().ok()?,
        guest_faults: words.next()?.parse().ok()?,
        done: words.next()?.to_owned(),
        counted: Counted::between(mark(Edge::Start)?, mark(Edge::End)?),
    })
}
