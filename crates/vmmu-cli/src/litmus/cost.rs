//! Nanoseconds for an operation of each strategy, beside a reader-writer lock.
//!
//! Key function: [`table()`].

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::RwLock;
use std::thread;
use std::time::Instant;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use vmmu::gate::{Fenced, Locked};
use vmmu_machine::membarrier::Membarrier;

use super::side::{Mistake, OLD, Offered, Sides};

/// Operations of a measurement: the best of several counts, because others use the machine too.
const OPERATIONS: u64 = 200_000;
const TRIES: usize = 5;
/// Openings cost microseconds.
const OPENINGS: u64 = 5_000;

/// A reader-writer lock around the count: what a gate would replace.
struct ReaderWriterLock;

impl Sides for ReaderWriterLock {
    type Shared = RwLock<u64>;

    fn shared(&self) -> RwLock<u64> {
        RwLock::new(0)
    }

    fn create(&self, count: &RwLock<u64>, entry: &AtomicU64) -> u64 {
        *count.write().expect("nobody panics") += 1;
        entry.load(Ordering::Relaxed)
    }

    fn destroy(&self, count: &RwLock<u64>) {
        *count.write().expect("nobody panics") -= 1;
    }

    fn write(&self, count: &RwLock<u64>, entry: &AtomicU64, value: u64) -> bool {
        entry.store(value, Ordering::Relaxed);
        *count.read().expect("nobody panics") != 0
    }
}

/// What a strategy costs.
struct Cost {
    name: &'static str,
    write: f64,
    write_contended: f64,
    create: f64,
    create_contended: f64,
    opening: f64,
}

/// Measures and lays out the table.
#[must_use]
pub fn table() -> String {
    let costs = [
        cost("locked", &Offered(Locked::default)),
        cost("fenced", &Offered(|| Fenced)),
        cost("asymmetric", &Offered(Membarrier::strategy)),
        cost("a reader-writer lock", &ReaderWriterLock),
        cost("no barrier (wrong)", &Mistake::VOLATILE),
    ];
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "ns per operation, best of 5",
        "guest write",
        "the same, contended",
        "create and destroy",
        "the same, contended",
        "opening, first page",
    ]);
    for cost in costs {
        let figures = [
            cost.write,
            cost.write_contended,
            cost.create,
            cost.create_contended,
            cost.opening,
        ];
        let cells = figures.map(|ns| format!("{ns:.1}"));
        table.add_row([&[cost.name.to_owned()], &cells[..]].concat());
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn cost<P: Sides>(name: &'static str, sides: &P) -> Cost {
    let entry = AtomicU64::new(OLD);
    let shared = sides.shared();
    let write = |value| {
        black_box(sides.write(&shared, &entry, value));
    };
    let create = |_| {
        black_box(sides.create(&shared, &entry));
        sides.destroy(&shared);
    };
    let opening = |_| {
        let fresh = sides.shared();
        black_box(sides.create(&fresh, &entry));
    };
    Cost {
        name,
        write: best(OPERATIONS, write),
        write_contended: beside(create, || best(OPERATIONS, write)),
        create: best(OPERATIONS, create),
        create_contended: beside(write, || best(OPERATIONS, create)),
        opening: best(OPENINGS, opening),
    }
}

/// Returns the nanoseconds of one operation in the best of several runs.
fn best(operations: u64, operation: impl Fn(u64)) -> f64 {
    let run = |_| {
        let start = Instant::now();
        (0..operations).for_each(&operation);
        start.elapsed().as_nanos() as f64 / operations as f64
    };
    (0..TRIES).map(run).fold(f64::INFINITY, f64::min)
}

/// Measures while another thread does something else all the time.
fn beside<T>(other: impl Fn(u64) + Sync, measure: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) {
                other(round);
                round += 1;
            }
        });
        let measured = measure();
        is_over.store(true, Ordering::Relaxed);
        measured
    })
}
