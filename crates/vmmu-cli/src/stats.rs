//! The file that `--stats` writes.
//!
//! Key function: [`write()`].

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};
use vmmu_cpu::Counters;
use vmmu_machine::cpu::Work;
use vmmu_machine::cpu::exit::Exit;

use crate::args::{RunArgs, Tables};
use crate::error::{Error, Result};
use crate::initramfs::STATUS_LINE;
use crate::session::Record;

#[derive(Serialize)]
struct Stats<'a> {
    kernel: String,
    engine: &'static str,
    paging: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tables: Option<&'static str>,
    memory_bytes: u64,
    icount: bool,
    /// The status of the command, unless it ends with an error.
    status: Option<u8>,
    /// That error, the first line.
    error: Option<String>,
    wall_seconds: f64,
    /// What the guest's init read just before the end; under `--icount` the instructions executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_tsc: Option<u64>,
    /// What the image reported: counters of the MMU, exits by reason, bytes of bookkeeping, TSC.
    hypervisor: Option<&'a Value>,
}

/// Writes what is known about a run.
///
/// # Errors
///
/// [`Error::File`].
pub fn write(path: &Path, args: &RunArgs, record: &Record, status: &Result<u8>) -> Result<()> {
    let error = status.as_ref().err().map(ToString::to_string);
    let stats = Stats {
        kernel: args.kernel.display().to_string(),
        engine: args.engine.name(),
        paging: args.paging.name(),
        tables: args.tables.map(Tables::name),
        memory_bytes: args.memory.bytes(),
        icount: args.icount,
        status: status.as_ref().ok().copied(),
        error: error.and_then(|text| text.lines().next().map(str::to_owned)),
        wall_seconds: record.wall.as_secs_f64(),
        guest_tsc: guest_tsc(record),
        hypervisor: record.stats.as_ref(),
    };
    let text =
        serde_json::to_string_pretty(&stats).map_err(|e| Error::file("write", path)(e.into()))?;
    std::fs::write(path, text + "\n").map_err(Error::file("write", path))
}

/// Returns what the software machine counted, in the form of the hypervisor image's report.
#[must_use]
pub fn of_software(record: &vmmu_machine::machine::Record) -> Value {
    let mmu = record
        .stats
        .iter()
        .map(|(event, count)| (event.name().to_owned(), json!(count)));
    let exits = Exit::NAMES
        .iter()
        .zip(record.exits.0)
        .filter(|(_, count)| *count > 0);
    let exits = exits.map(|(name, count)| ((*name).to_owned(), json!(count)));
    let port_reads = record
        .port_reads
        .iter()
        .map(|(port, count)| (format!("{port:#x}"), json!(count)));
    let sum = |of: fn(&Counters) -> u64| record.mmu.iter().map(of).sum::<u64>();
    let work = |of: fn(&Work) -> u64| record.work.iter().map(of).sum::<u64>();
    let (translations, blocks) = (work(|work| work.translations), work(|work| work.blocks));
    // What the arrays in front have no answer for may still be in the TLB of a hostile machine.
    let misses = work(|work| work.front_misses).saturating_sub(sum(|mmu| mmu.hits));
    let decoded = work(|work| work.blocks_decoded);
    let seconds = record.elapsed.as_secs_f64();
    let per_second = |count: u64| (count as f64 / seconds.max(1e-9)).round();
    let judged = record.judged.map(|judged| {
        json!({
            "translations": judged.used,
            "faults": judged.refused,
            "emulated": judged.emulated,
            "stale": judged.stale,
            "uncertain": judged.uncertain,
        })
    });
    json!({
        "mmu": mmu.collect::<Map<_, _>>(),
        "exits": exits.collect::<Map<_, _>>(),
        "port_reads": port_reads.collect::<Map<_, _>>(),
        "bytes": {
            "pages": record.stats.pages,
            "page_bytes": record.stats.page_bytes,
            "frame_bytes": record.stats.frame_bytes,
        },
        "instructions": record.instructions,
        "seconds": seconds,
        "instructions_per_second": per_second(record.instructions),
        "exits_per_second": per_second(record.exits.total()),
        "frames_moved": record.frames_moved,
        "frames_used": record.frames_used,
        "judged": judged,
        "audits": record.audits,
        "blocks": {
            "executed": blocks,
            "decoded": decoded,
            "hit_rate": hit_rate(decoded, blocks),
        },
        "tlb": {
            "translations": translations,
            "misses": misses,
            "hit_rate": hit_rate(misses, translations),
            "walks": sum(|mmu| mmu.walks),
            "nested_walks": sum(|mmu| mmu.nested_walks),
            "flushes": sum(|mmu| mmu.flushes),
            "guesses": sum(|mmu| mmu.guesses),
            "evictions": sum(|mmu| mmu.evictions),
        },
    })
}

/// Returns which part of all did not miss, with six decimals.
fn hit_rate(misses: u64, all: u64) -> f64 {
    let rate = 1.0 - misses.min(all) as f64 / all.max(1) as f64;
    (rate * 1e6).round() / 1e6
}

/// Returns what a checked run says at its end: how much was compared. `None` if nothing was.
#[must_use]
pub fn of_check(record: &Record) -> Option<String> {
    let stats = record.stats.as_ref()?;
    let judged = stats.get("judged")?;
    let count = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64).unwrap_or(0);
    if judged.is_null() {
        return None;
    }
    Some(format!(
        "checked {} translations, {} faults and {} emulated accesses against the specification, and the library's structure {} times",
        count(judged, "translations"),
        count(judged, "faults"),
        count(judged, "emulated"),
        count(stats, "audits")
    ))
}

/// Reads the time stamp that the guest's init printed at its end.
#[must_use]
pub fn guest_tsc(record: &Record) -> Option<u64> {
    record
        .console
        .after(STATUS_LINE)?
        .split_once(" tsc ")?
        .1
        .trim()
        .parse()
        .ok()
}
