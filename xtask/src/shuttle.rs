//! The shuttle tests: whole programs of vCPUs and a host, random schedules.
//!
//! Key function: [`run`]. VMMU_SHUTTLE_SEED runs the batches with one seed alone.

use crate::extent::Extent;
use crate::step::{cargo, passes_tests, root};
use crate::tally::Tally;

/// How long each scheduler goes on, in seconds.
const SECONDS: &str = "12";
/// The same in the long form.
const MORE_SECONDS: &str = "1800";

pub(crate) fn run(extent: Extent) -> Tally {
    let mut command = cargo(&["test", "--profile", "loom", "-p", "vmmu-tests"]);
    command
        .args(["--test", "shuttle", "--", "--nocapture"])
        .env("RUSTFLAGS", "--cfg shuttle")
        .env("VMMU_SHUTTLE_SECONDS", extent.choose(SECONDS, MORE_SECONDS))
        .env("SHUTTLE_SILENCE_WARNINGS", "1")
        .env("CARGO_TARGET_DIR", root().join("target/shuttle"));
    passes_tests(command)
}
