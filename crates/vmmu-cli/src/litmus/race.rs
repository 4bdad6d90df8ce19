//! Both sides in lockstep on two cores: how often an update gets lost here and now.
//!
//! Key functions: [`all`], [`table`], [`wrong`].
//!
//! A creator and a guest write meet in a slot of their own each round, so that nothing has to be reset between rounds. What a model calls possible need not
//! happen on a machine; what it calls impossible must not.

use core::hint::{black_box, spin_loop};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use vmmu::gate::{Fenced, Locked};
use vmmu_machine::membarrier::Membarrier;

use super::side::{Mistake, NEW, OLD, Offered, Sides};
use crate::number::grouped;

/// An answer that was tried.
#[derive(Debug, Clone, Copy)]
pub struct Race {
    /// What it is.
    pub name: &'static str,
    /// Whether the library offers it.
    pub is_offered: bool,
    /// Rounds.
    pub rounds: u32,
    /// Rounds that lost the update.
    pub lost: u32,
}

/// Slots that are used before the threads start over with new ones.
const SLOTS: u32 = 4096;

/// Tries every answer.
#[must_use]
pub fn all(rounds: u32) -> Vec<Race> {
    let volatile = Mistake::VOLATILE;
    let offered = |name, lost| Race {
        name,
        is_offered: true,
        rounds,
        lost,
    };
    let mistake = |name, sides: Mistake| Race {
        name,
        is_offered: false,
        rounds,
        lost: meet(&sides, rounds),
    };
    vec![
        offered("locked", meet(&Offered(Locked::default), rounds)),
        offered("fenced", meet(&Offered(|| Fenced), rounds)),
        offered("asymmetric", meet(&Offered(Membarrier::strategy), rounds)),
        mistake("a plain read of the count, no barrier anywhere", volatile),
        mistake(
            "the creator's barrier before the increment",
            Mistake {
                before: true,
                write: true,
                ..volatile
            },
        ),
        mistake(
            "a barrier on the create side only",
            Mistake {
                after: true,
                ..volatile
            },
        ),
        mistake(
            "a barrier on the write side only",
            Mistake {
                write: true,
                ..volatile
            },
        ),
        mistake(
            "the entry read again before the increment",
            Mistake {
                after: true,
                write: true,
                early: true,
                ..volatile
            },
        ),
    ]
}

struct Slot<T> {
    entry: Apart<AtomicU64>,
    shared: Apart<T>,
}

/// A value with its cache line to itself (and the neighbour, which is fetched together with it).
#[repr(align(128))]
struct Apart<T>(T);

/// Lets both sides meet; returns how many rounds lost the update.
fn meet<P: Sides>(sides: &P, rounds: u32) -> u32 {
    let mut lost = 0;
    let mut left = rounds;
    while left > 0 {
        let count = left.min(SLOTS);
        lost += batch(sides, count);
        left -= count;
    }
    lost
}

fn batch<P: Sides>(sides: &P, count: u32) -> u32 {
    let slot = |_| Slot {
        entry: Apart(AtomicU64::new(OLD)),
        shared: Apart(sides.shared()),
    };
    let slots: Vec<_> = (0..count).map(slot).collect();
    let arrived = [Apart(AtomicU32::new(0)), Apart(AtomicU32::new(0))];
    let (creator, writer) = thread::scope(|scope| {
        let creator = scope.spawn(|| {
            rounds(&slots, [&arrived[0].0, &arrived[1].0], 7, |slot| {
                sides.create(&slot.shared.0, &slot.entry.0) == OLD
            })
        });
        let writer = rounds(&slots, [&arrived[1].0, &arrived[0].0], 11, |slot| {
            !sides.write(&slot.shared.0, &slot.entry.0, NEW)
        });
        (creator.join().expect("it does not panic"), writer)
    });
    let both = creator
        .iter()
        .zip(&writer)
        .filter(|(creator, writer)| **creator && **writer);
    both.count() as u32
}

/// Runs one side: meets the other before each slot, waits a little that differs from round to round, acts. Returns what each round saw.
fn rounds<T>(
    slots: &[Slot<T>],
    [own, other]: [&AtomicU32; 2],
    stride: u32,
    act: impl Fn(&Slot<T>) -> bool,
) -> Vec<bool> {
    let mut seen = Vec::with_capacity(slots.len());
    for (round, slot) in (1..).zip(slots) {
        own.store(round, Ordering::Release);
        let mut waited = 0u32;
        while other.load(Ordering::Acquire) < round {
            waited += 1;
            if waited.is_multiple_of(4096) {
                thread::yield_now();
            }
            spin_loop();
        }
        for step in 0..round.wrapping_mul(stride) % 13 {
            black_box(step);
        }
        seen.push(act(slot));
    }
    seen
}

/// Lays out the table.
#[must_use]
pub fn table(races: &[Race]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "both sides in lockstep on two cores",
        "rounds",
        "updates lost",
        "share",
    ]);
    for race in races {
        table.add_row([
            race.name.to_owned(),
            grouped(race.rounds.into()),
            grouped(race.lost.into()),
            format!(
                "{:.2} %",
                f64::from(race.lost) * 100.0 / f64::from(race.rounds)
            ),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Returns what must not have happened: a strategy of the library that lost something.
#[must_use]
pub fn wrong(races: &[Race]) -> Vec<String> {
    let lost = races.iter().filter(|race| race.is_offered && race.lost > 0);
    lost.map(|race| format!("{} lost {} updates on this machine", race.name, race.lost))
        .collect()
}

#[cfg(test)]
mod meeting {
    use super::meet;
    use crate::litmus::side::{Mistake, Offered};
    use vmmu::gate::Fenced;

    #[test]
    fn a_read_that_comes_too_early_is_seen_to_lose_and_fences_are_not() {
        // This mistake needs no store buffer, so it shows on any machine with a scheduler.
        let early = Mistake {
            after: true,
            write: true,
            early: true,
            ..Mistake::VOLATILE
        };
        assert!((0..20).any(|_| meet(&early, 50_000) > 0));
        assert_eq!(meet(&Offered(|| Fenced), 50_000), 0);
    }
}
