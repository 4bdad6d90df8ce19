//! Guests: Linux under both kinds of paging and the project's own, on the software machine and in QEMU; and the programs that the emulator is compared on.
//!
//! Key types: [`Case`], [`Expected`]. Each case is one run of the `vmmu` command, with a time limit.
//!
//! Invariants:
//! 1. The same cases run without the hypervisor first where that makes sense: if those fail, the cases are wrong.

mod case;
mod linux;
mod own;
mod several;
mod software;

use core::sync::atomic::{AtomicUsize, Ordering};
use std::path::{Path, PathBuf};

use crate::step::{cargo, passes_tests, root, succeeds};
use crate::tally::Tally;
use case::{Case, Expected};
pub(crate) use several::Soak;

/// The kinds of paging; `native` is QEMU alone.
const MODES: [&str; 3] = ["native", "shadow", "nested"];

/// The project's guests without a hypervisor.
const NATIVE: [&str; 7] = [
    "test",
    "-p",
    "vmmu-guest",
    "--test",
    "native",
    "--",
    "--ignored",
];

/// The emulator against QEMU's interpreter.
const EMULATOR: [&str; 7] = [
    "test",
    "-p",
    "vmmu-emu-tcg",
    "--",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
];

/// Runs guests on the software machine: nothing is needed but the packages that Linux comes from.
pub(crate) fn run_in_software() -> Tally {
    let command = match command() {
        Ok(command) => command,
        Err(failed) => return failed,
    };
    let own = match own::build() {
        Ok(own) => own,
        Err(failed) => return failed,
    };
    side_by_side(&software::cases(&own), &command)
}

/// Runs every load on every nature of the software machine.
pub(crate) fn run_matrix() -> Tally {
    match command() {
        Ok(command) => side_by_side(&software::matrix(), &command),
        Err(failed) => failed,
    }
}

/// Runs cases two at a time: each keeps one core busy.
fn side_by_side(cases: &[Case], command: &Path) -> Tally {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut tally = Tally::default();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            tally += case.run(command);
        }
        tally
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(run);
        let mut tally = run();
        // A case that panicked has failed.
        tally += other.join().unwrap_or(Tally::FAIL);
        tally
    })
}

/// Builds the command.
fn command() -> Result<PathBuf, Tally> {
    let built = succeeds(cargo(&["build", "--release", "-p", "vmmu-cli"]));
    if built.has_failures() {
        return Err(built);
    }
    Ok(target().join("release/vmmu"))
}

/// Runs guests in QEMU.
pub(crate) fn run() -> Tally {
    let command = match command() {
        Ok(command) => command,
        Err(failed) => return failed,
    };
    let mut tally = passes_tests(cargo(&NATIVE));
    tally += passes_tests(cargo(&EMULATOR));
    let mut cases = linux::cases();
    match own::build() {
        Ok(own) => {
            cases.extend(own::cases(&own));
            cases.extend(several::cases(&own));
        }
        Err(failed) => tally += failed,
    }
    for case in cases {
        tally += case.run(&command);
    }
    tally
}

/// Runs a guest with several processors again and again.
pub(crate) fn soak(soak: &Soak) -> Tally {
    soak.run()
}

/// Returns cargo's target folder.
fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}
