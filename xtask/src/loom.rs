//! The loom tests: the library's real code under every interleaving of a few threads.
//!
//! Key function: [`run`].

use crate::step::{cargo, passes_tests, root};
use crate::tally::Tally;

/// Packages with loom tests, and the name that selects them.
const TARGETS: &[(&str, &str)] = &[];
/// Threads are preempted at most so often; more takes hours.
const PREEMPTIONS: &str = "3";

pub(crate) fn run() -> Tally {
    let mut tally = Tally::default();
    if TARGETS.is_empty() {
        println!("no package has loom tests yet: nothing was run, nothing is counted");
    }
    for (package, filter) in TARGETS {
        let mut command = cargo(&["test", "--release", "-p", package, "--lib", filter]);
        command
            .env("RUSTFLAGS", "--cfg loom")
            .env("LOOM_MAX_PREEMPTIONS", PREEMPTIONS)
            .env("CARGO_TARGET_DIR", root().join("target/loom"));
        tally += passes_tests(command);
    }
    tally
}
