//! Debian's kernel: boots, loops, sizes, shapes of the processor.
//!
//! Key function: [`cases`].

use super::{Case, Expected, MODES};

/// The two lines that the project was built for.
pub(super) const DONE: &str = "uname -a; for i in $(seq 200); do /bin/true; done; echo ok";

/// Fills 200 of 512 MiB twice, checks what was written, and gives it back.
pub(super) const MEMORY: &str = "\
dd if=/dev/urandom of=/seed bs=1M count=8 2>/dev/null
for round in 1 2; do
    for n in $(seq 24); do cp /seed /tmp/$n; done
    for n in $(seq $round 3 24); do
        [ \"$(md5sum </tmp/$n)\" = \"$(md5sum </seed)\" ] || exit 9
    done
    rm /tmp/*
done
echo memory holds";

/// Forks shells, pipes and many children at once.
pub(super) const FORKS: &str = "\
i=0
while [ $i -lt 150 ]; do (echo $i | cat | wc -c) >/dev/null; i=$((i+1)); done
for round in 1 2 3; do
    for n in $(seq 32); do (x=$(echo $n); [ $x = $n ] || >/tmp/bad) & done
    wait
done
[ ! -e /tmp/bad ] && echo forks end";

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
    let boots = Expected::new(0, &["Linux vmmu ", "\nok\n"]);
    let fits = || Expected::new(0, &["fits\n"]);
    let run = |what, commands, expected| exec(mode, what, &[], commands, expected);
    vec![
        run("boots and runs 200 programs", DONE, boots),
        run(
            "memory-hungry loop",
            MEMORY,
            Expected::new(0, &["memory holds\n"]),
        ),
        run("fork-heavy loop", FORKS, Expected::new(0, &["forks end\n"])),
        run("a status of its own", "exit 42", Expected::new(42, &[])),
        exec(
            mode,
            "192 MiB",
            &["--memory", "192M"],
            &total(140_000, 196_608),
            fits(),
        ),
        exec(
            mode,
            "1 GiB",
            &["--memory", "1G"],
            &total(900_000, 1_048_576),
            fits(),
        ),
        panic(mode),
        shell(mode),
    ]
}

/// Commands that check that the kernel counts so many KiB of memory.
fn total(least: u32, most: u32) -> String {
    format!(
        "set -- $(grep MemTotal /proc/meminfo); [ $2 -ge {least} -a $2 -le {most} ] && echo fits"
    )
}

fn panic(mode: &str) -> Case {
    let expected = Expected {
        status: 134,
        stdout: vec![],
        stderr: vec!["Kernel panic"],
    };
    exec(
        mode,
        "a kernel panic is told",
        &[],
        "echo c >/proc/sysrq-trigger",
        expected,
    )
}

fn shell(mode: &str) -> Case {
    Case {
        name: format!("linux, {mode}: a shell that reads a pipe"),
        words: words(mode, &[]),
        input: "echo $((6*7)) answers\nexit 5\n",
        seconds: LIMIT,
        expected: Expected::new(5, &["42 answers"]),
    }
}

/// Shapes of the guest's processor that only the hypervisor gives.
fn shapes(mode: &str) -> Vec<Case> {
    let flags = "grep -m1 ^flags /proc/cpuinfo | tr ' ' '\\n' | grep -cE '^(pku|smep|smap|nx|la57|pdpe1gb)$'; true";
    let hidden = ["--hide", "pku,smep,smap,nx,la57,pdpe1gb"];
    let sizes = "grep -m1 'address sizes' /proc/cpuinfo";
    vec![
        exec(
            mode,
            "features hidden",
            &hidden,
            flags,
            Expected::new(0, &["0\n"]),
        ),
        exec(
            mode,
            "36 address bits",
            &["--phys-bits", "36"],
            sizes,
            Expected::new(0, &["36 bits physical"]),
        ),
    ]
}

/// Seconds that a boot with everything in it may take; many times what it takes on an idle machine.
const LIMIT: u32 = 300;

fn exec(mode: &str, what: &str, more: &[&str], commands: &str, expected: Expected) -> Case {
    let exec = vec!["--exec".to_owned(), commands.to_owned()];
    Case {
        name: format!("linux, {mode}: {what}"),
        words: [words(mode, more), exec].concat(),
        input: "",
        seconds: LIMIT,
        expected,
    }
}

fn words(mode: &str, more: &[&str]) -> Vec<String> {
    let start = ["run", "linux", "--engine", "svm", "--paging", mode];
    start
        .iter()
        .chain(more)
        .map(|&word| word.to_owned())
        .collect()
}
