//! The gate from end to end: a guest with two processors on the software machine, one making tables, one writing an entry of them by emulated writes, with each
//! strategy; the guest counts the stale translations that it sees.
//!
//! Key functions: [`all`], [`table`], [`wrong`]. The guest is `vmmu-guest`'s `gate-guest`, whose source begins with what a round is.

use core::num::NonZeroU8;
use core::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use vmmu::Event;
use vmmu_machine::gate::{GateChoice, Mistake};
use vmmu_machine::machine::{End, Machine, Placement};

use crate::error::{Error, Result};
use crate::image::BareMetal;
use crate::number::grouped;
use crate::software;
use crate::workspace::Workspace;

const CPUS: NonZeroU8 = NonZeroU8::new(2).expect("two");
const MEMORY: u64 = 8 << 20;
/// The longest run: one takes seconds, on a busy machine minutes.
const LIMIT: Duration = Duration::from_secs(600);
/// The most rounds: they take a quarter of that on two cores.
pub const MOST_ROUNDS: u32 = 50_000;
/// Writes of the maker in a round, to have its tables forgotten: each is reported while there are any.
const ENDINGS: u64 = 3;

/// The part of the rounds in which the hypervisor is held up at each write.
const HELD_UP_PART: u32 = 10;

/// Every machine that is tried, the right ones first.
const CHOICES: [GateChoice; 6] = [
    GateChoice::Locked,
    GateChoice::Fenced,
    GateChoice::Asymmetric,
    GateChoice::Wrong(Mistake::PlainRead),
    GateChoice::Wrong(Mistake::EarlyReport),
    GateChoice::Wrong(Mistake::Uncounted),
];

/// What a guest saw.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    choice: GateChoice,
    rounds: u32,
    /// Rounds in which the write found the gate open.
    open: u64,
    stale: u32,
}

/// Runs the guest on every machine, for so many rounds, or [`MOST_ROUNDS`].
///
/// # Errors
///
/// Those of building the guest, and of a guest that does not end by itself.
pub fn all(rounds: u32) -> Result<Vec<Seen>> {
    let image = BareMetal::GateGuest.build(&Workspace::find())?;
    let kernel = std::fs::read(&image).map_err(Error::file("read", &image))?;
    let run = |choice| run(&kernel, choice, rounds.min(MOST_ROUNDS));
    CHOICES.into_iter().map(run).collect()
}

/// Runs the guest; fewer rounds where each write takes long.
fn run(kernel: &[u8], choice: GateChoice, rounds: u32) -> Result<Seen> {
    let rounds = match choice {
        GateChoice::Wrong(Mistake::EarlyReport) => rounds.div_ceil(HELD_UP_PART),
        _ => rounds,
    };
    finish(machine(kernel, choice, rounds), choice, rounds)
}

fn machine(kernel: &[u8], choice: GateChoice, rounds: u32) -> Machine {
    Machine::new(kernel.to_vec())
        .memory(MEMORY)
        .cpus(CPUS)
        .command_line(rounds.to_string())
        .gate(choice)
        .placement(Placement::Apart)
        .timeout(LIMIT)
}

fn finish(machine: Machine, choice: GateChoice, rounds: u32) -> Result<Seen> {
    let ready = machine.ready().map_err(|error| Error::Refused {
        text: error.to_string(),
    })?;
    let record = software::watched(ready).map_err(|error| match error {
        Error::Timeout { seconds, .. } => Error::Unmeasured {
            reason: format!(
                "the guest that meets the gate was not done after {seconds} s; is the machine busy?"
            ),
        },
        other => other,
    })?;
    let stale = match record.end {
        End::Exit(stale) => stale,
        End::TripleFault(text) => return Err(Error::Crash { text }),
        End::Broken(text) => return Err(Error::Panic { text }),
        other => {
            return Err(Error::NoStatus {
                reason: format!("{other:?}"),
                tail: String::new(),
            });
        }
    };
    let reported = record.stats.get(Event::GuestWrite);
    Ok(Seen {
        choice,
        rounds,
        open: reported.saturating_sub(ENDINGS * u64::from(rounds)),
        stale,
    })
}

const fn name(choice: GateChoice) -> &'static str {
    match choice {
        GateChoice::Locked => "locked",
        GateChoice::Fenced => "fenced",
        GateChoice::Asymmetric => "asymmetric",
        GateChoice::Wrong(Mistake::PlainRead) => "a plain read",
        GateChoice::Wrong(Mistake::EarlyReport) => {
            "fenced, but the write reported before it is made"
        }
        GateChoice::Wrong(Mistake::Uncounted) => "no page counted",
    }
}

/// Lays out the table.
#[must_use]
pub fn table(all: &[Seen]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "a guest on the software machine, tables made by one processor, written by another",
        "rounds",
        "found tables",
        "stale translations",
    ]);
    for seen in all {
        table.add_row([
            name(seen.choice).to_owned(),
            grouped(seen.rounds.into()),
            grouped(seen.open),
            grouped(seen.stale.into()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Returns what must not have happened: a guest saw something stale under a strategy of the library, or saw nothing where no write is looked at.
#[must_use]
pub fn wrong(all: &[Seen]) -> Vec<String> {
    let judge = |seen: &Seen| match (seen.choice, seen.stale) {
        (GateChoice::Wrong(Mistake::Uncounted), 0) if seen.rounds > 1 => Some(
            "the guest saw no stale translation on a machine that looks at no write".to_owned(),
        ),
        (GateChoice::Wrong(_), _) | (_, 0) => None,
        (choice, stale) => Some(format!(
            "a guest saw {stale} stale translations with the gate {}",
            name(choice)
        )),
    };
    all.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod judging {
    use super::{CHOICES, Seen, table, wrong};
    use vmmu_machine::gate::{GateChoice, Mistake};

    fn seen(choice: GateChoice, stale: u32) -> Seen {
        Seen {
            choice,
            rounds: 10,
            open: 5,
            stale,
        }
    }

    #[test]
    fn what_is_wrong_on_purpose_must_show_and_nothing_else_may() {
        let blind = GateChoice::Wrong(Mistake::Uncounted);
        for choice in CHOICES {
            let is_wrong = matches!(choice, GateChoice::Wrong(_));
            assert_eq!(wrong(&[seen(choice, 1)]).is_empty(), is_wrong);
            assert_eq!(wrong(&[seen(choice, 0)]).is_empty(), choice != blind);
        }
        assert!(table(&[seen(blind, 1)]).contains("no page counted"));
    }
}

#[cfg(test)]
mod a_guest {
    use super::{
        BareMetal, CHOICES, Error, GateChoice, Mistake, Seen, Workspace, finish, machine, run,
    };
    use vmmu_machine::machine::Nature;

    fn kernel() -> Vec<u8> {
        let image = BareMetal::GateGuest
            .build(&Workspace::find())
            .expect("it builds");
        std::fs::read(image).expect("it is there")
    }

    fn right() -> impl Iterator<Item = GateChoice> {
        let is_right = |choice: &GateChoice| !matches!(choice, GateChoice::Wrong(_));
        CHOICES.into_iter().filter(is_right)
    }

    #[test]
    fn sees_nothing_stale_with_any_strategy() {
        let kernel = kernel();
        for choice in right() {
            let Seen { open, stale, .. } = run(&kernel, choice, 1000).expect("it ends");
            assert_eq!(stale, 0, "{choice:?}, {open} writes found tables");
        }
    }

    #[test]
    fn sees_nothing_stale_on_a_hostile_machine_that_is_judged_while_frames_are_taken_back() {
        let kernel = kernel();
        for choice in right() {
            let hostile = machine(&kernel, choice, 200)
                .nature(Nature::Hostile)
                .reclaim()
                .check();
            let seen = finish(hostile, choice, 200).expect("it ends");
            assert_eq!(seen.stale, 0, "{choice:?}");
        }
    }

    #[test]
    fn sees_nothing_stale_in_schedules_by_seed_that_let_either_side_be_first() {
        let kernel = kernel();
        for choice in right() {
            for seed in 1..4 {
                let hostile = machine(&kernel, choice, 50)
                    .nature(Nature::Deterministic)
                    .seed(seed)
                    .check();
                let seen = finish(hostile, choice, 50).expect("it ends");
                assert_eq!(seen.stale, 0, "{choice:?}, seed {seed}");
                assert!((1..50).contains(&seen.open), "{seen:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn sees_what_is_stale_where_writes_are_overlooked_or_reported_too_early() {
        let kernel = kernel();
        let stale = |mistake| run(&kernel, GateChoice::Wrong(mistake), 500).map(|seen| seen.stale);
        assert!(stale(Mistake::Uncounted).expect("it ends") > 0);
        // The scheduler decides: most likely at once.
        assert!((0..20).any(|_| stale(Mistake::EarlyReport).expect("it ends") > 0));
    }

    #[test]
    fn is_stopped_by_the_judge_where_writes_are_overlooked() {
        let blind = GateChoice::Wrong(Mistake::Uncounted);
        let judged = machine(&kernel(), blind, 50).check();
        let ended = finish(judged, blind, 50);
        assert!(matches!(ended, Err(Error::Panic { .. })), "{ended:?}");
    }
}
