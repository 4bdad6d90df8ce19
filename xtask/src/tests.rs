//! The tests that need no QEMU, documentation examples included.
//!
//! Key function: [`run`].

use crate::step::{cargo, passes_tests};
use crate::tally::Tally;

/// The comparison of the emulator's x87 unit with an AMD processor's.
const X87: [&str; 8] = [
    "test",
    "-p",
    "vmmu-emu-native",
    "--test",
    "vector",
    "x87::",
    "--",
    "--ignored",
];

/// All tests; what they print, such as how much was compared, is shown.
const WORKSPACE: [&str; 5] = [
    "test",
    "--workspace",
    "--no-fail-fast",
    "--",
    "--show-output",
];

/// The library that counts its locks: how long they are held.
const COUNT: [&str; 7] = [
    "test",
    "-p",
    "vmmu-parallel",
    "--features",
    "count",
    "--lib",
    "count",
];

pub(crate) fn run() -> Tally {
    let mut tally = passes_tests(cargo(&WORKSPACE));
    tally += passes_tests(cargo(&COUNT));
    if is_amd() {
        tally += passes_tests(cargo(&X87));
    } else {
        println!("not run: the x87 unit's comparison, which needs an AMD processor");
    }
    tally
}

fn is_amd() -> bool {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    about.contains("AuthenticAMD")
}
