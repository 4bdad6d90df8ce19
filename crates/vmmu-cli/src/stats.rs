//! The file that `--stats` writes.
//!
//! Key function: [`write()`].

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::args::RunArgs;
use crate::error::{Error, Result};
use crate::initramfs::STATUS_LINE;
use crate::session::Record;

#[derive(Serialize)]
struct Stats<'a> {
    kernel: String,
    paging: &'static str,
    memory_bytes: u64,
    icount: bool,
    status: Option<u8>,
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
pub fn write(path: &Path, args: &RunArgs, record: &Record, status: Option<u8>) -> Result<()> {
    let stats = Stats {
        kernel: args.kernel.display().to_string(),
        paging: args.paging.name(),
        memory_bytes: args.memory.bytes(),
        icount: args.icount,
        status,
        wall_seconds: record.wall.as_secs_f64(),
        guest_tsc: guest_tsc(record),
        hypervisor: record.stats.as_ref(),
    };
    let text =
        serde_json::to_string_pretty(&stats).map_err(|e| Error::file("write", path)(e.into()))?;
    std::fs::write(path, text + "\n").map_err(Error::file("write", path))
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
