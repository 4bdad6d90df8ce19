//! The software machine: Linux and the project's own guests, plain and hostile, every translation checked.
//!
//! Key functions: [`cases`], [`matrix`].

use super::own::Own;
use super::{Case, Expected, linux, several};

/// Seconds that a case may take; many times what it takes on an idle machine.
const LIMIT: u32 = 400;
/// Seconds for a load on a machine that moves its frames all the time.
const LONG: u32 = 1_200;
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
    for mode in ["shadow", "nested"] {
        cases.extend(both(mode, own));
    }
    cases.extend(under_shadow_paging());
    cases.extend(under_nested_paging(own));
    cases.extend(formats(own));
    cases.extend(several::on_the_software_machine(own));
    cases
}

/// Every load on every nature, in both modes, every translation checked: the long form.
pub(super) fn matrix() -> Vec<Case> {
    let natures: [&[&str]; 5] = [
        &["--nature", "plain"],
        &["--nature", "hostile", "--seed", "11"],
        &["--nature", "hostile", "--seed", "12"],
        &["--nature", "hostile", "--seed", "13"],
        &["--nature", "deterministic", "--seed", "14"],
    ];
    let loads = [
        (linux::MEMORY, "memory holds\n"),
        (linux::FORKS, "forks end\n"),
        (linux::DONE, "\nok\n"),
    ];
    let mut cases = Vec::new();
    for (load, says) in loads {
        for nature in natures {
            for mode in ["shadow", "nested"] {
                let what = format!("linux, {}, until '{}'", nature.join(" "), says.trim());
                let words = [&["linux", "--check", "--exec", load], nature].concat();
                cases.push(Case {
                    seconds: LONG,
                    ..case(mode, &what, &words, Expected::new(0, &[says]))
                });
            }
        }
    }
    cases
}

fn boots() -> Expected {
    Expected::new(0, &["Linux vmmu ", "\nok\n"])
}

/// Takes every processor but the first out and back in again, from the guest's own sysfs, and works meanwhile.
const PLUG: &str = "\
mount -t sysfs none /sys 2>/dev/null
cd /sys/devices/system/cpu
for round in 1 2 3; do
    for cpu in $(ls -d cpu[1-9]*); do
        echo 0 >$cpu/online && [ $(cat $cpu/online) = 0 ] || exit 9
        (echo $cpu is out | cat) >/dev/null
        echo 1 >$cpu/online && [ $(cat $cpu/online) = 1 ] || exit 8
    done
done
[ $(cat online) = 0-$(($(nproc)-1)) ] && echo $(nproc) are back";

/// What is run in both modes.
fn both(mode: &str, own: &Own) -> Vec<Case> {
    let hostile = ["--check", "--nature", "hostile"];
    let with = |words: &[&'static str], more: &[&'static str]| [words, &hostile[..], more].concat();
    let smp = |cpus, nature, seed| {
        let what = format!("{cpus} processors that share tables, {nature}, checked");
        let words = [
            own.smp.as_str(),
            "--check",
            "--cpus",
            cpus,
            "--nature",
            nature,
            "--seed",
            seed,
        ];
        case(mode, &what, &words, Expected::new(1, &["0 failures"]))
    };
    vec![
        case(
            mode,
            "linux boots and runs 200 programs",
            &["linux", "--exec", linux::DONE],
            boots(),
        ),
        case(
            mode,
            "linux, hostile, checked",
            &with(&["linux", "--exec", SHORT], &["--seed", "7"]),
            boots(),
        ),
        case(
            mode,
            "stress guest",
            &[&own.stress],
            Expected::new(1, &["0 failures"]),
        ),
        case(
            mode,
            "stress guest, hostile, checked",
            &[&[own.stress.as_str()], &hostile[..], &["--seed", "3"]].concat(),
            Expected::new(1, &["0 failures"]),
        ),
        smp("2", "deterministic", "4"),
        smp("4", "deterministic", "5"),
        smp("4", "hostile", "6"),
        case(
            mode,
            "demo guest",
            &[&own.demo],
            Expected::new(1, &["phase 6 8 0 "]),
        ),
    ]
}

/// What is run under shadow paging, where there is most to get wrong.
fn under_shadow_paging() -> Vec<Case> {
    let linux = |what: &str, commands: &'static str, more: &[&'static str], expected| {
        let words = [&["linux", "--exec", commands], more].concat();
        case("shadow", what, &words, expected)
    };
    let deterministic = ["--check", "--nature", "deterministic", "--seed", "8"];
    vec![
        linux(
            "linux, memory-hungry loop, checked",
            linux::MEMORY,
            &["--check"],
            Expected::new(0, &["memory holds\n"]),
        ),
        linux(
            "linux, fork-heavy loop",
            linux::FORKS,
            &[],
            Expected::new(0, &["forks end\n"]),
        ),
        linux(
            "linux, deterministic, checked",
            SHORT,
            &deterministic,
            boots(),
        ),
        linux(
            "linux, a processor out and back in, checked",
            PLUG,
            &["--cpus", "2", "--check"],
            Expected::new(0, &["2 are back\n"]),
        ),
        linux(
            "linux, sixteen processors",
            "echo $(nproc) run",
            &["--cpus", "16"],
            Expected::new(0, &["16 run\n"]),
        ),
        linux(
            "linux, three processors out and back in",
            PLUG,
            &["--cpus", "4"],
            Expected::new(0, &["4 are back\n"]),
        ),
        linux(
            "linux, a status of its own",
            "exit 42",
            &[],
            Expected::new(42, &[]),
        ),
    ]
}

/// What is run on nested tables alone: Intel's format, and a run that repeats.
fn under_nested_paging(own: &Own) -> Vec<Case> {
    let ept = ["--tables", "ept", "--check"];
    let hostile = ["--nature", "hostile", "--seed", "5"];
    vec![
        case(
            "nested",
            "linux on extended page tables, checked",
            &[&["linux", "--exec", SHORT], &ept[..]].concat(),
            boots(),
        ),
        case(
            "nested",
            "stress guest on extended page tables, hostile, checked",
            &[&[own.stress.as_str()], &ept[..], &hostile].concat(),
            Expected::new(1, &["0 failures"]),
        ),
        case(
            "nested",
            "linux, deterministic, checked",
            &[
                "linux",
                "--exec",
                SHORT,
                "--check",
                "--nature",
                "deterministic",
            ],
            boots(),
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
