//! `vmmu bench`: the price of paging operations natively, under shadow and under nested paging.
//!
//! Key function: [`bench()`]. The guest is `vmmu-guest`'s `bench-guest`, which times 22 operations by the TSC;
//! QEMU counts instructions (`-icount shift=0`), so the figures are instructions and repeat exactly.
//!
//! | module | noun |
//! |---|---|
//! | [`operation`] | the operations, the peer's recorded figures, the goals |
//! | [`figures`] | what one run measured |
//! | [`table`] | the table for people and the JSON for programs |
//! | [`boot`] | Linux booted three ways |
//! | [`parallel`] | `vmmu bench parallel`: faults of two processors at once |

pub mod boot;
pub mod figures;
pub mod operation;
pub mod parallel;
pub mod table;

use std::path::PathBuf;

use crate::args::{BenchArgs, Benchmark, Paging};
use crate::bundle::{Config, Engine};
use crate::channel::Message;
use crate::error::{Error, Result};
use crate::image::BareMetal;
use crate::input::Keys;
use crate::kernel::Kernel;
use crate::number::ByteSize;
use crate::progress::Progress;
use crate::qemu::{Clock, Machine, QEMU, QEMU_PACKAGE};
use crate::run::{self, Guest};
use crate::screen::say;
use crate::session::{End, Output, Record, Session};
use crate::tools;
use crate::workspace::Workspace;

use figures::Figures;

/// The guest needs 64 MiB.
const MEMORY: ByteSize = ByteSize::from_mib(128);
/// The processor of the peer's figures: SVM, four levels.
pub(crate) const CPU: &str = "EPYC";

/// Measures and prints.
///
/// # Errors
///
/// Those of a run; [`Error::Bench`] when the guest's report has gaps.
pub fn bench(args: &BenchArgs) -> Result<u8> {
    if let Some(Benchmark::Parallel(args)) = &args.instead {
        return parallel::parallel(args);
    }
    tools::require(QEMU, QEMU_PACKAGE)?;
    let workspace = Workspace::find();
    let kernel = BareMetal::BenchGuest.build(&workspace)?;
    let mut measured = Vec::new();
    for paging in columns(args) {
        let progress = Progress::quiet(&format!("measuring operations, {}", paging.name()));
        measured.push((paging, one(args, &workspace, kernel.clone(), paging)?));
        drop(progress);
    }
    let mut boots = Vec::new();
    if args.linux {
        for paging in columns(args) {
            let progress = Progress::quiet(&format!("booting Linux, {}", paging.name()));
            boots.push((paging, boot::measure(paging, args.timeout, &args.qemu_arg)?));
            drop(progress);
        }
    }
    say(&table::render(&measured, args.all))?;
    if args.linux {
        say(&format!("\n{}\n", boot::render(&boots)))?;
    }
    if let Some(path) = &args.json {
        let text = table::json(&measured, &boots);
        std::fs::write(path, text).map_err(Error::file("write", path))?;
    }
    Ok(0)
}

fn columns(args: &BenchArgs) -> Vec<Paging> {
    let mut columns = args.paging.clone();
    if columns.is_empty() {
        columns = vec![Paging::Native, Paging::Shadow, Paging::Nested];
    }
    columns.dedup();
    columns
}

fn one(
    args: &BenchArgs,
    workspace: &Workspace,
    kernel: PathBuf,
    paging: Paging,
) -> Result<Figures> {
    let guest = Guest {
        kernel: Kernel::read(&kernel)?,
        module: None,
        command_line: String::new(),
    };
    let machine = machine(args, workspace, guest, paging)?;
    let session = Session {
        console: Output::Keep,
        debug: Output::Keep,
        keys: Keys::None,
        limit: Some(args.timeout),
    };
    let record = session.run(machine)?.whole()?;
    ended_well(&record, paging)?;
    Figures::read(&record.debug.text(), &record.marks, paging)
}

fn machine(
    args: &BenchArgs,
    workspace: &Workspace,
    guest: Guest,
    paging: Paging,
) -> Result<Machine> {
    let engine = match paging {
        Paging::Native => {
            return Ok(run::native(
                guest,
                MEMORY,
                CPU.to_owned(),
                Clock::Instructions,
                args.qemu_arg.clone(),
            ));
        }
        Paging::Shadow => Engine::Shadow,
        Paging::Nested => Engine::Nested,
    };
    let config = Config {
        engine,
        memory: MEMORY,
        cpus: 1,
        phys_bits: None,
        hide: Vec::new(),
        max_pages: None,
        audit: None,
    };
    let image = BareMetal::Hypervisor.build(workspace)?;
    Ok(run::hypervisor(
        image,
        guest,
        &config,
        CPU.to_owned(),
        Clock::Instructions,
        args.qemu_arg.clone(),
    ))
}

fn ended_well(record: &Record, paging: Paging) -> Result<()> {
    let wrong = |reason: String| {
        Err(Error::Bench {
            reason: format!("{} paging: {reason}", paging.name()),
        })
    };
    match &record.end {
        End::Said(Message::Exit { value: 0 }) => Ok(()),
        End::Qemu(status) if status.code() == Some(1) && record.last_words.is_none() => Ok(()),
        End::Said(Message::Crash { text }) => Err(Error::Crash { text: text.clone() }),
        End::Said(Message::Refused { text }) => Err(Error::Refused { text: text.clone() }),
        End::Said(Message::Panic { text }) => Err(Error::Panic { text: text.clone() }),
        End::Said(Message::Exit { value }) => wrong(format!(
            "the guest ended with {value}; it says {:?}",
            last_line(record)
        )),
        End::Said(other) => wrong(format!("the guest ended by {other:?}")),
        End::Qemu(status) => wrong(format!(
            "QEMU ended with {status}; it says {:?}",
            record.last_words
        )),
    }
}

fn last_line(record: &Record) -> String {
    record
        .debug
        .text()
        .lines()
        .next_back()
        .unwrap_or_default()
        .to_owned()
}
