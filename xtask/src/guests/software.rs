//! The software machine: Linux and the project's own guests, plain and hostile, every translation checked.
//!
//! Key function: [`cases`].

use super::own::Own;
use super::{Case, Expected, linux};

/// Under shadow and under nested paging.
const MODES: [&str; 2] = ["shadow", "nested"];
/// Seconds that a case may take; many times what it takes on an idle machine.
const LIMIT: u32 = 400;
/// A boot that is checked runs these, fewer than others.
const SHORT: &str = "uname -a; for i in $(seq 20); do /bin/true; done; echo ok";

pub(super) fn cases(own: &Own) -> Vec<Case> {
    let mut cases = vec![Case {
        name: "software: the command without a subcommand".to_owned(),
        words: Vec::new(),
        input: "",
        seconds: LIMIT,
        expected: Expected::new(0, &["How the two compare", "all memory was given back"]),
    }];
    for mode in MODES {
        cases.extend(plain(mode, own));
        cases.extend(checked(mode, own));
    }
    cases.extend(formats(own));
    cases
}

fn plain(mode: &str, own: &Own) -> Vec<Case> {
    let boots = Expected::new(0, &["Linux vmmu ", "\nok\n"]);
    let exec = |what: &str, commands: &str, expected| {
        let words = ["linux", "--exec", commands];
        case(mode, what, &words, expected)
    };
    vec![
        exec("linux boots and runs 200 programs", linux::DONE, boots),
        exec(
            "linux, memory-hungry loop",
            linux::MEMORY,
            Expected::new(0, &["memory holds\n"]),
        ),
        exec(
            "linux, a status of its own",
            "exit 42",
            Expected::new(42, &[]),
        ),
        case(
            mode,
            "stress guest",
            &[&own.stress],
            Expected::new(1, &["0 failures"]),
        ),
        case(
            mode,
            "demo guest",
            &[&own.demo],
            Expected::new(1, &["phase 6 8 0 "]),
        ),
    ]
}

/// With every translation judged.
fn checked(mode: &str, own: &Own) -> Vec<Case> {
    let boots = || Expected::new(0, &["Linux vmmu ", "\nok\n"]);
    let linux = |what: &str, commands: &str, more: &[&str], expected| {
        let words = [&["linux", "--check", "--exec", commands], more].concat();
        case(mode, what, &words, expected)
    };
    vec![
        linux("linux, plain, checked", SHORT, &[], boots()),
        linux(
            "linux, hostile, checked",
            SHORT,
            &["--nature", "hostile", "--seed", "7"],
            boots(),
        ),
        linux(
            "linux, deterministic, checked",
            SHORT,
            &["--nature", "deterministic", "--seed", "8"],
            boots(),
        ),
        case(
            mode,
            "stress guest, hostile, checked",
            &[&own.stress, "--check", "--nature", "hostile", "--seed", "3"],
            Expected::new(1, &["0 failures"]),
        ),
        case(
            mode,
            "forks, hostile",
            &[
                "linux",
                "--nature",
                "hostile",
                "--seed",
                "4",
                "--exec",
                linux::FORKS,
            ],
            Expected::new(0, &["forks end\n"]),
        ),
    ]
}

/// Kernels of 32 bits, ways to end, and a shell that reads a pipe.
fn formats(own: &Own) -> Vec<Case> {
    let mode = |mode: &str, paging: &str, expected| {
        let option = format!("mode={mode}");
        let words = [own.multiboot.as_str(), "--", &option, "exit=5"];
        case(
            paging,
            &format!("multiboot guest, {mode}"),
            &words,
            expected,
        )
    };
    let ends = |status, words: &[&'static str]| Expected {
        status,
        stdout: vec![],
        stderr: words.to_vec(),
    };
    let mut shell = case(
        "shadow",
        "linux, a shell that reads a pipe",
        &["linux"],
        Expected::new(5, &["42 answers"]),
    );
    shell.input = "echo $((6*7)) answers\nexit 5\n";
    vec![
        mode("unpaged", "shadow", Expected::new(11, &[])),
        mode("long", "shadow", Expected::new(11, &[])),
        mode("legacy32", "nested", Expected::new(11, &[])),
        mode("pae", "nested", Expected::new(11, &[])),
        mode("real", "nested", Expected::new(11, &[])),
        mode("pae", "shadow", ends(128, &["refused"])),
        mode("crash64", "shadow", ends(126, &["triple fault"])),
        mode("crash64", "nested", ends(126, &["triple fault"])),
        mode("reset", "shadow", ends(134, &["reset"])),
        mode("resetcf9", "nested", ends(134, &["reset"])),
        shell,
    ]
}

fn case(mode: &str, what: &str, words: &[&str], expected: Expected) -> Case {
    let (kernel, rest) = words.split_first().expect("a case names its kernel");
    let start = ["run", kernel, "--paging", mode];
    Case {
        name: format!("software, {mode}: {what}"),
        words: start
            .iter()
            .chain(rest)
            .map(|&word| word.to_owned())
            .collect(),
        input: "",
        seconds: LIMIT,
        expected,
    }
}
