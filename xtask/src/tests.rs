//! The tests that need no QEMU, documentation examples included.
//!
//! Key function: [`run`].

use crate::step::{cargo, passes_tests};
use crate::tally::Tally;

pub(crate) fn run() -> Tally {
    passes_tests(cargo(&["test", "--workspace", "--no-fail-fast"]))
}
