//! Compares the instruction emulator with QEMU's interpreter (TCG): random whole programs, privileged ones too, run on both from the first instruction
//! after a reset, and everything that they leave behind is compared.
//!
//! An image has a monitor and many programs. The monitor goes from real mode to 64-bit mode; it makes a fresh window of memory for each program (tables,
//! code, data, stacks), starts it, takes its exceptions, records all registers, and lets it go on at the next slot. So one program shows dozens of
//! exceptions. QEMU runs the image on a bare machine; the emulator runs the same image on flat memory behind a page walker.
//!
//! - [`Builder`]: makes images. [`Generator`]: makes programs of each [`Kind`] from seeds.
//! - [`run`]: runs some on both; [`Report`] says what was compared and what differs, [`Totals`] what was executed.
//! - `deviation` lists where QEMU is wrong, with the manuals' sections. Whatever else differs is a failure.
//!
//! # Known gaps
//! Programs of long mode only (64-bit code and compatibility mode, levels 0 and 3). No vector or x87 instructions: the emulator's other suite compares
//! those with the processor. No interrupts of devices.

#![forbid(unsafe_code)]

mod compare;
mod deviation;
mod generate;
mod image;
mod layout;
mod machine;
mod monitor;
mod operand;
mod program;
mod qemu;
mod record;
mod slot;
mod system;
mod world;

use core::time::Duration;
use std::collections::BTreeMap;

pub use compare::{Difference, Report};
pub use generate::{Generator, unsupported};
pub use image::Builder;
pub use program::{Kind, Program};
pub use qemu::{QEMU, QemuError};

use machine::{End, Machine};

/// How long QEMU may take for an image.
const LIMIT: Duration = Duration::from_secs(60);
/// How many instructions an image may take: many times what one takes.
const MOST_INSTRUCTIONS: u64 = 200_000_000;

/// The most programs of an image.
pub const MOST_PROGRAMS: usize = layout::MOST_PROGRAMS as usize;

/// What was executed, over all runs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How often each instruction was executed in a program, by [`iced_x86::Code`].
    pub executed: BTreeMap<u16, u64>,
    /// All instructions that the emulator executed, the monitor's included.
    pub instructions: u64,
}

/// Makes the program of a seed; kinds come in turn.
fn program(builder: &Builder, seed: u64) -> Program {
    let kind = Kind::ALL[seed as usize % Kind::ALL.len()];
    builder.generator().program(kind, seed)
}

/// Runs programs of seeds from `first` on, kinds in turn, on both processors, and adds to what is known.
///
/// # Errors
/// QEMU's. That the emulator did not come to the end is a difference.
pub fn run(
    builder: &Builder,
    first: u64,
    count: usize,
    report: &mut Report,
    totals: &mut Totals,
) -> Result<(), QemuError> {
    let programs: Vec<Program> = (first..)
        .take(count.min(MOST_PROGRAMS))
        .map(|seed| program(builder, seed))
        .collect();
    run_programs(builder, &programs, report, totals)
}

/// Finds out in which slot the two part in the program of a seed, by cutting it off before each one.
///
/// # Errors
/// QEMU's.
pub fn locate(builder: &Builder, seed: u64) -> Result<Option<String>, QemuError> {
    let whole = program(builder, seed);
    for slot in 1..layout::SLOTS as usize {
        let (mut report, mut totals) = (Report::default(), Totals::default());
        let cut = [whole.cut(slot)];
        run_programs(builder, &cut, &mut report, &mut totals)?;
        if let Some(difference) = report.differences.first() {
            let lines = generate::listing(&whole, slot - 1).join("\n  ");
            return Ok(Some(format!(
                "slot {}:\n  {lines}\n{}",
                slot - 1,
                difference.text
            )));
        }
    }
    Ok(None)
}

/// Runs an image on the emulator.
fn emulate(image: &image::Image) -> (Machine, End) {
    let mut machine = Machine::new(&image.memory, image.rom.clone());
    let most = MOST_INSTRUCTIONS;
    let end = machine.run(most);
    (machine, end)
}

fn run_programs(
    builder: &Builder,
    programs: &[Program],
    report: &mut Report,
    totals: &mut Totals,
) -> Result<(), QemuError> {
    let mut programs = programs.to_vec();
    let mut image = builder.image(&programs);
    let (mut machine, mut end) = emulate(&image);
    if !machine.halted.is_empty() {
        // A write to its own code can make a program halt. It ends before it begins.
        for n in core::mem::take(&mut machine.halted) {
            if let Some(program) = programs.get_mut(n as usize) {
                *program = program.cut(0);
            }
        }
        image = builder.image(&programs);
        (machine, end) = emulate(&image);
    }
    let theirs = qemu::run(&image, LIMIT)?;
    let ours = record::read(&|at, bytes| machine.read(at, bytes));
    for (code, times) in &machine.executed {
        *totals.executed.entry(*code).or_default() += times;
    }
    totals.instructions += machine.instructions;
    for ((program, mine), other) in programs.iter().zip(&ours).zip(&theirs) {
        compare::compare(program, mine, other, report);
    }
    let complete = |runs: &[record::Run]| runs.iter().filter(|run| run.is_whole()).count();
    let (mine, other) = (complete(&ours), complete(&theirs));
    if end != End::Finished || mine != programs.len() || other != programs.len() {
        report.differences.push(Difference {
            seed: programs
                .get(mine.min(other))
                .map_or(0, |program| program.seed),
            text: format!(
                "the emulator: {end:x?}, {mine} programs; QEMU: {other} of {}",
                programs.len()
            ),
        });
    }
    Ok(())
}
