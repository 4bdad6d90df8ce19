//! Debian's kernel: boots, loops, sizes, shapes of the processor.
//!
//! Key function: [`cases`].

use super::{Case, Expected, MODES};

/// The two lines that the project was built for.
const DONE: &str = "uname -a; for i in $(seq 200); do /bin/true; done; echo ok";

/// Fills 200 of 512 MiB twice, checks what was written, and gives it back.
const MEMORY: &str = "\
dd if=/dev/urandom of=/root/seed bs=1M count=8 2>/dev/null
for round in 1 2; do
    for n in $(seq 24); do cp /root/seed /tmp/$n; done
    for n in $(seq $round 3 24); do
        [ \"$(md5sum </tmp/$n)\" = \"$(md5sum </root/seed)\" ] || exit 9
    done
    rm /tmp/*
done
echo memory holds";

/// Forks shells, pipes and many children at once.
const FORKS: &str = "\
i=0
while [ $i -lt 150 ]; do (echo $i | cat | wc -c) >/dev/null; i=$((i+1)); done
for round in 1 2 3; do
    for n in $(seq 32); do (x=$(echo $n); [ $x = $n ] || echo bad) & done
    wait
done
echo forks end";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in MODES {
        cases.extend(of_mode(mode));
    }
    for mode in &MODES[1..] {
        cases.extend(shapes(mode));
    }
    cases
}

fn of_mode(mode: &str) -> Vec<Case> {
    vec![
        exec(
            mode,
            "boots and runs 200 programs",
            &[],
            DONE,
            120,
            Expected::new(0, &["Linux vmmu ", "\nok\n"]),
        ),
        exec(
            mode,
            "memory-hungry loop",
            &[],
            MEMORY,
            300,
            Expected::new(0, &["memory holds\n"]),
        ),
        exec(
            mode,
            "fork-heavy loop",
            &[],
            FORKS,
            300,
            Expected::new(0, &["forks end\n"]),
        ),
        exec(
            mode,
            "192 MiB",
            &["--memory", "192M"],
            "head -1 /proc/meminfo",
            120,
            Expected::new(0, &["MemTotal:"]),
        ),
        exec(
            mode,
            "1 GiB",
            &["--memory", "1G"],
            "head -1 /proc/meminfo",
            120,
            Expected::new(0, &["MemTotal:"]),
        ),
        exec(
            mode,
            "a status of its own",
            &[],
            "exit 42",
            120,
            Expected::new(42, &[]),
        ),
        Case {
            name: format!("linux, {mode}: a kernel panic is told"),
            words: [
                words(mode, &[]),
                vec!["--exec".into(), "echo c >/proc/sysrq-trigger".into()],
            ]
            .concat(),
            input: "",
            seconds: 120,
            expected: Expected {
                status: 134,
                stdout: vec![],
                stderr: vec!["Kernel panic"],
            },
        },
        Case {
            name: format!("linux, {mode}: a shell that reads a pipe"),
            words: words(mode, &[]),
            input: "echo $((6*7)) answers\nexit 5\n",
            seconds: 120,
            expected: Expected::new(5, &["42 answers"]),
        },
    ]
}

/// Shapes of the guest's processor that only the hypervisor gives.
fn shapes(mode: &str) -> Vec<Case> {
    let flags = "grep -m1 ^flags /proc/cpuinfo | tr ' ' '\\n' | grep -cE '^(pku|smep|smap|nx|la57|pdpe1gb)$'; true";
    let hidden = ["--hide", "pku,smep,smap,nx,la57,pdpe1gb"];
    vec![
        exec(
            mode,
            "features hidden",
            &hidden,
            flags,
            120,
            Expected::new(0, &["0\n"]),
        ),
        exec(
            mode,
            "36 address bits",
            &["--phys-bits", "36"],
            "grep -m1 'address sizes' /proc/cpuinfo",
            120,
            Expected::new(0, &["36 bits physical"]),
        ),
    ]
}

fn exec(
    mode: &str,
    what: &str,
    more: &[&str],
    commands: &str,
    seconds: u32,
    expected: Expected,
) -> Case {
    let exec = vec!["--exec".to_owned(), commands.to_owned()];
    Case {
        name: format!("linux, {mode}: {what}"),
        words: [words(mode, more), exec].concat(),
        input: "",
        seconds,
        expected,
    }
}

fn words(mode: &str, more: &[&str]) -> Vec<String> {
    let start = ["run", "linux", "--paging", mode];
    start
        .iter()
        .chain(more)
        .map(|&word| word.to_owned())
        .collect()
}
