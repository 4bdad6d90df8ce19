//! The multiprocessor stress guest: several processors use and change the same page tables, and check what they see.
//!
//! The boot processor starts the others by INIT and SIPI, the second one also while an interrupt waits for it; then each runs a random program: loads and stores, changes of
//! entries with the flushes that the architecture demands, asked of the other processors by interrupt or by mailbox, and
//! switches between address spaces that share tables. After a flush was acknowledged, nobody may see an older translation:
//! every frame names itself, and every access is compared with what is known of the entries on its way.
//!
//! Between two rounds all processors meet, the first one compares every entry in memory with what is known of it, and tells the machine by a mark
//! ([`Port::MARK_START`]), so that the machine can audit itself while nobody does anything.
//!
//! Options on the command line: `cpus=N` processors (otherwise as many as CPUID says, at most 8),
//! `seed=N`, `rounds=N` (4) and `steps=N` (2000) of each processor in a round.
//!
//! Each failure is counted by its kind, and the first ones are told as `FAIL processor <n>: <kind>: <details>` on the debug console and the first serial
//! port. The run ends with the number of failures (at most 100), or 127 after a panic: an exception where none can be.
#![no_std]
#![no_main]

mod change;
mod doubt;
mod frames;
#[path = "../../freestanding/mod.rs"]
mod freestanding;
mod link;
mod meeting;
mod path;
mod place;
mod program;
mod quiescent;
mod random;
mod registers;
mod report;
mod shoot_down;
mod startup;
mod structure;
mod trap;
mod world;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vmmu_guest::machine::{CommandLine, Port, end_run, local_apic, register};

use program::Program;

vmmu_guest::long_mode_entry!(main);

/// The most failures that a run's value tells apart.
const MOST_FAILURES: u32 = 100;

/// What the command line says, for every processor.
static CPUS: AtomicUsize = AtomicUsize::new(1);
static SEED: AtomicU64 = AtomicU64::new(1);
static ROUNDS: AtomicU64 = AtomicU64::new(4);
static STEPS: AtomicU64 = AtomicU64::new(2_000);

/// What all processors together have done.
static CHECKED: AtomicU64 = AtomicU64::new(0);
static OVERTAKEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn main(line: &'static CommandLine) -> ! {
    for (name, value) in [("seed", &SEED), ("rounds", &ROUNDS), ("steps", &STEPS)] {
        if let Some(number) = line.number(name) {
            value.store(number, Ordering::SeqCst);
        }
    }
    let cpus = line.number("cpus").unwrap_or_else(processors_there_are);
    let cpus = (cpus as usize).clamp(1, startup::MOST);
    CPUS.store(cpus, Ordering::SeqCst);
    Port::FIRST_PIC_MASK.write_u8(0xff);
    Port::SECOND_PIC_MASK.write_u8(0xff);
    local_apic::map();
    world::prepare();
    trap::prepare();
    trap::install(0);
    if cpus > 1 {
        registers::check_init();
    }
    startup::start_others(cpus, other);
    report::say(format_args!("smp guest: {cpus} processors\n"));
    run(0);
    report::say(format_args!(
        "{} accesses checked, {} overtaken by changes\n",
        CHECKED.load(Ordering::SeqCst),
        OVERTAKEN.load(Ordering::SeqCst)
    ));
    report::summary();
    end_run(report::total().min(MOST_FAILURES))
}

/// What the other processors do.
extern "C" fn other(number: usize) -> ! {
    trap::install(number);
    run(number);
    loop {
        shoot_down::wait(number);
    }
}

/// Runs all rounds on processor `number`.
fn run(number: usize) {
    let cpus = CPUS.load(Ordering::SeqCst);
    registers::check_forms(number);
    let mut program = Program::new(number, SEED.load(Ordering::SeqCst));
    program.switch();
    for round in 0..ROUNDS.load(Ordering::SeqCst) {
        meet(number, cpus, round);
        for _ in 0..STEPS.load(Ordering::SeqCst) {
            program.step();
        }
    }
    meet(number, cpus, ROUNDS.load(Ordering::SeqCst));
    program.sweep();
    CHECKED.fetch_add(program.checked, Ordering::SeqCst);
    OVERTAKEN.fetch_add(program.overtaken, Ordering::SeqCst);
    meeting::wait_for_all(number, cpus);
}

/// Waits for all processors, and lets the first one look at everything while the others wait.
fn meet(number: usize, cpus: usize, round: u64) {
    meeting::wait_for_all(number, cpus);
    if number == 0 {
        quiescent::check(round);
    }
    meeting::wait_for_all(number, cpus);
}

/// How many processors there are (CPUID leaf 1, EBX\[23:16\]).
fn processors_there_are() -> u64 {
    u64::from(register::cpuid(1).ebx >> 16 & 0xff)
}
