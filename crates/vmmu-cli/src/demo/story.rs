//! What the demonstration prints.
//!
//! Key items: [`OPENING`], [`tell`].

use core::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use vmmu::Event;
use vmmu_machine::machine::Record;

use super::Run;
use super::phase::{Counted, Phase, phases};
use crate::error::{Error, Result};
use crate::number::grouped;

/// What is said before the guest runs.
pub const OPENING: &str = "\
A small guest runs twice on a processor in software. Its kernel keeps page tables as any kernel does; the processor
never uses them as they are. First it walks shadow page tables, which vmmu derives from the guest's; then the guest's
own on top of vmmu's nested page tables.

What the guest did
";

/// Tells what happened in two runs.
///
/// # Errors
///
/// [`Error::Bench`] if a report has gaps, or the guest's two runs differ.
pub fn tell(shadow: &Run, nested: &Run) -> Result<String> {
    let of_shadow = phases(shadow)?;
    let of_nested = phases(nested)?;
    if shadow.text != nested.text {
        return Err(Error::Bench {
            reason: format!("the guest said {:?}, then {:?}", shadow.text, nested.text),
        });
    }
    let mut text = String::new();
    for phase in &of_shadow {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}  {}", phase.number, phase.done);
    }
    let _ = write!(
        text,
        "\nWhat the MMU did for it\n{}",
        table(&of_shadow, &of_nested)
    );
    text += WORDS;
    text += &comparison((&of_shadow, &shadow.record), (&of_nested, &nested.record));
    Ok(text)
}

const WORDS: &str = "
  exits    the guest stopped and vmmu's hypervisor ran, for whatever reason
  filled   a page fault that the guest never sees: vmmu fills in a shadow entry, and often its neighbours (ahead)
  passed   a page fault that is the guest's own affair, such as copy-on-write: vmmu passes it on
  re-read  a table that the guest had changed: vmmu compares it with what it derived before
  roots    a switch to an address space whose shadow vmmu still had
";

fn table(shadow: &[Phase], nested: &[Phase]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "phase",
        "operations",
        "guest's page faults",
        "SHADOW exits",
        "filled",
        "ahead",
        "passed",
        "re-read",
        "roots",
        "NESTED exits",
        "filled",
    ]);
    for (shadow, nested) in shadow.iter().zip(nested) {
        let first = [
            shadow.number.to_string(),
            grouped(shadow.operations),
            grouped(shadow.guest_faults),
        ];
        table.add_row([&first[..], &cells(&shadow.counted, &nested.counted)].concat());
    }
    if let (Some(shadow_sum), Some(nested_sum)) = (sum(shadow), sum(nested)) {
        let faults: u64 = shadow.iter().map(|phase| phase.guest_faults).sum();
        let first = ["all".to_owned(), String::new(), grouped(faults)];
        table.add_row([&first[..], &cells(&shadow_sum, &nested_sum)].concat());
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

fn cells(shadow: &Counted, nested: &Counted) -> Vec<String> {
    let figures = [
        shadow.all_exits(),
        shadow.event(Event::FaultFixed),
        shadow.event(Event::Prefetch),
        shadow.event(Event::FaultInjected),
        shadow.event(Event::Sync),
        shadow.event(Event::RootCached),
        nested.all_exits(),
        nested.event(Event::FaultFixed),
    ];
    figures.map(grouped).to_vec()
}

fn sum(phases: &[Phase]) -> Option<Counted> {
    let (first, rest) = phases.split_first()?;
    let mut sum = first.counted.clone();
    rest.iter().for_each(|phase| sum.add(&phase.counted));
    Some(sum)
}

fn comparison(
    (shadow, shadow_record): (&[Phase], &Record),
    (nested, nested_record): (&[Phase], &Record),
) -> String {
    let (Some(shadow), Some(nested)) = (sum(shadow), sum(nested)) else {
        return String::new();
    };
    let (more, fewer) = (shadow.all_exits(), nested.all_exits());
    format!(
        "
How the two compare
  Shadow paging left the guest {} times, nested paging {} times, for the same work. Under shadow paging the processor knows
  one set of tables, so whatever the guest changes in its own (and each switch of address spaces, and each INVLPG) has to reach vmmu; in
  return a TLB miss costs one walk. Under nested paging the guest does all that alone, only memory that it touches for
  the first time exits; but a TLB miss walks two sets of tables, up to 24 steps instead of 4.
  In both, every process found what it had written, and all memory was given back.

  {}
  {}

Next: `cargo run --release -- run linux` boots Debian's kernel the same way; `-- run --help` has the rest.
",
        grouped(more),
        grouped(fewer),
        speed("shadow", "shadow tables", shadow_record),
        speed("nested", "nested tables", nested_record),
    )
}

fn speed(name: &str, tables: &str, record: &Record) -> String {
    let seconds = record.elapsed.as_secs_f64();
    let millions = record.instructions as f64 / 1e6;
    format!(
        "{name}: {millions:.2} million instructions of the guest in {seconds:.2} s; {} {tables} at the end",
        grouped(record.stats.pages)
    )
}
