//! The project's own guests: an ELF32 with a multiboot header, and two ELFs with a PVH note.
//!
//! Key function: [`cases`].

use super::{Case, Expected, MODES, target};
use crate::step::{cargo, succeeds};
use crate::tally::Tally;

/// Builds the guests and returns their cases.
pub(super) fn cases() -> Result<Vec<Case>, Tally> {
    let folder = target().join("image");
    let path = |name: &str| folder.join(name).display().to_string();
    let multiboot = path("multiboot-guest.elf");
    let build = [
        "build",
        "--profile",
        "image",
        "-p",
        "vmmu-guest",
        "--features",
        "image",
        "--bins",
    ];
    let wrap = [
        "run",
        "-q",
        "-p",
        "vmmu-guest",
        "--example",
        "wrap-elf32",
        "--",
    ];
    for words in [
        &build[..],
        &[&wrap[..], &[&path("multiboot-guest"), &multiboot]].concat(),
    ] {
        let done = succeeds(cargo(words));
        if done.has_failures() {
            return Err(done);
        }
    }
    let mut cases = Vec::new();
    for mode in MODES {
        cases.push(case(
            mode,
            "stress guest",
            &path("stress-guest"),
            &[],
            Expected::new(1, &[]),
        ));
        let words = ["--", "exit=5"];
        cases.push(case(
            mode,
            "multiboot guest",
            &multiboot,
            &words,
            Expected::new(11, &[]),
        ));
        let bench = ["bench", "--paging", mode];
        cases.push(Case {
            name: format!("bench, {mode}"),
            words: bench.iter().map(|&word| word.to_owned()).collect(),
            input: "",
            seconds: 300,
            expected: Expected::new(0, &["| CPUID exit"]),
        });
    }
    Ok(cases)
}

fn case(mode: &str, name: &str, kernel: &str, more: &[&str], expected: Expected) -> Case {
    let words = ["run", kernel, "--paging", mode];
    let words = words
        .iter()
        .chain(more)
        .map(|&word| word.to_owned())
        .collect();
    Case {
        name: format!("{name}, {mode}"),
        words,
        input: "",
        seconds: 120,
        expected,
    }
}
