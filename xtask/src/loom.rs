//! The loom tests: the library's real code under every interleaving of a few threads.
//!
//! Key function: [`run`].

use crate::step::{cargo, passes_tests, root};
use crate::tally::Tally;

/// Packages with loom tests, and the name that selects them.
const TARGETS: &[(&str, &str)] = &[("vmmu", "loom")];
/// Threads are preempted at most so often; more takes hours.
const PREEMPTIONS: &str = "3";

pub(crate) fn run() -> Tally {
    let mut tally = Tally::default();
    for (package, filter) in TARGETS {
        let mut command = cargo(&["test", "--profile", "loom", "-p", package, "--lib", filter]);
        command
            .env("RUSTFLAGS", "--cfg loom")
            .env("LOOM_MAX_PREEMPTIONS", PREEMPTIONS)
            .env("CARGO_TARGET_DIR", root().join("target/loom"));
        tally += passes_tests(command);
    }
    tally
}
