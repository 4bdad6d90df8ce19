//! The project's own guests: an ELF32 with a multiboot header, and two ELFs with a PVH note.
//!
//! Key function: [`cases`].

use super::{Case, Expected, MODES, target};
use crate::step::{cargo, succeeds};
use crate::tally::Tally;

/// The guests' files.
#[derive(Debug)]
pub(super) struct Own {
    /// Uses paging in every way it can.
    pub(super) stress: String,
    /// Processes.
    pub(super) demo: String,
    /// Several processors that change the tables they share.
    pub(super) smp: String,
    /// 32-bit, with a multiboot-1 header.
    pub(super) multiboot: String,
    /// A program for Linux.
    pub(super) threads: Vec<u8>,
}

/// Builds the guests.
pub(super) fn build() -> Result<Own, Tally> {
    let folder = target().join("image");
    let path = |name: &str| folder.join(name).display().to_string();
    let mut own = Own {
        stress: path("stress-guest"),
        demo: path("demo-guest"),
        smp: path("smp-guest"),
        multiboot: path("multiboot-guest.elf"),
        threads: Vec::new(),
    };
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
        &[&wrap[..], &[&path("multiboot-guest"), &own.multiboot]].concat(),
    ] {
        let done = succeeds(cargo(words));
        if done.has_failures() {
            return Err(done);
        }
    }
    let program = path("threads");
    own.threads = std::fs::read(&program).map_err(|error| {
        eprintln!("{program}: {error}");
        Tally::FAIL
    })?;
    Ok(own)
}

/// Returns the guests' cases in QEMU.
pub(super) fn cases(own: &Own) -> Vec<Case> {
    let Own {
        stress,
        demo,
        multiboot,
        ..
    } = own;
    let mut cases = Vec::new();
    for mode in MODES {
        cases.push(case(
            mode,
            "stress guest",
            stress,
            &[],
            Expected::new(1, &[]),
        ));
        cases.push(case(
            mode,
            "demo guest",
            demo,
            &[],
            Expected::new(1, &["phase 6 8 0 "]),
        ));
        cases.push(bench(mode));
        cases.extend(formats(mode, multiboot));
    }
    for mode in &MODES[1..] {
        cases.extend(ends(mode, multiboot));
    }
    cases
}

/// Paging formats: each is served or refused, never misrun.
fn formats(mode: &str, kernel: &str) -> Vec<Case> {
    let run = |format: &str| {
        let served = mode != "shadow" || matches!(format, "unpaged" | "real" | "long");
        let expected = if served {
            Expected::new(11, &[])
        } else {
            Expected {
                status: 128,
                stdout: vec![],
                stderr: vec!["which shadow paging doesn't serve yet"],
            }
        };
        let option = format!("mode={format}");
        case(
            mode,
            &format!("multiboot guest, {format}"),
            kernel,
            &["--", &option, "exit=5"],
            expected,
        )
    };
    ["unpaged", "legacy32", "pae", "long", "real"]
        .map(run)
        .into()
}

/// Ways to end other than by port 0xf4.
fn ends(mode: &str, kernel: &str) -> Vec<Case> {
    let run = |end: &str, status, words: &[&'static str]| {
        let expected = Expected {
            status,
            stdout: vec![],
            stderr: words.to_vec(),
        };
        let option = format!("mode={end}");
        let seconds = if status == 124 { 3 } else { LIMIT };
        Case {
            seconds,
            ..case(
                mode,
                &format!("multiboot guest, {end}"),
                kernel,
                &["--", &option],
                expected,
            )
        }
    };
    vec![
        run("crash", 126, &["triple fault"]),
        run(
            "crash64",
            126,
            &[
                "triple fault",
                "cr2 123456789000",
                "walks of the last page fault's address",
            ],
        ),
        run("reset", 134, &["reset"]),
        run("reset92", 134, &["reset"]),
        run("resetcf9", 134, &["reset"]),
        run("hang", 124, &["stopped after 3 s"]),
    ]
}

fn bench(mode: &str) -> Case {
    let words = ["bench", "--paging", mode];
    Case {
        name: format!("bench, {mode}"),
        words: words.iter().map(|&word| word.to_owned()).collect(),
        input: "",
        seconds: 300,
        expected: Expected::new(0, &["| CPUID exit"]),
    }
}

/// Seconds that a guest of the project's own may take.
const LIMIT: u32 = 120;

fn case(mode: &str, name: &str, kernel: &str, more: &[&str], expected: Expected) -> Case {
    let words = ["run", kernel, "--engine", "svm", "--paging", mode];
    let words = words
        .iter()
        .chain(more)
        .map(|&word| word.to_owned())
        .collect();
    Case {
        name: format!("{name}, {mode}"),
        words,
        input: "",
        seconds: LIMIT,
        expected,
    }
}
