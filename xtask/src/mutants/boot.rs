//! Mutants in a whole guest: one boot of the software machine with its judge and the library's auditor, which notice, and say what.
//!
//! Key function: [`run`]. The guest is the stress guest, on the deterministic machine with one seed, so that every run is the same.
//!
//! Invariants:
//! 1. Without a mutant the boot ends as the guest wants, and nothing is reported: otherwise nothing would be shown.
//! 2. A mutant counts only if what the list names has caught it.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::suites::{SWITCH, bounded};
use crate::step::{cargo, root, succeeds};
use crate::tally::Tally;

/// How long a boot may take; a library that runs round in circles is noticed by that.
const LIMIT: Duration = Duration::from_secs(20);

/// What notices a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Catcher {
    /// The judge of translations.
    Judge,
    /// The library's auditor.
    Auditor,
    /// Nobody: the run does not end.
    Clock,
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Judge => "the judge",
            Self::Auditor => "the auditor",
            Self::Clock => "the clock",
        })
    }
}

/// The mistakes that show within one boot, and what notices them first.
const CAUGHT: &[(&str, Catcher)] = &[
    ("GfnFromPosition", Catcher::Auditor),
    ("GfnFromGpte", Catcher::Auditor),
    ("KeepOldRecord", Catcher::Auditor),
    ("KeepReverseMap", Catcher::Auditor),
    ("NoPresenceBit", Catcher::Auditor),
    ("LeafWithoutRecheck", Catcher::Auditor),
    ("CopyNotRefreshed", Catcher::Auditor),
    ("OverwriteLink", Catcher::Auditor),
    ("LinkUnclean", Catcher::Judge),
    ("FollowAnyLink", Catcher::Auditor),
    ("KeepWrongChild", Catcher::Judge),
    ("RoleWithoutDirect", Catcher::Auditor),
    ("RoleWithoutRules", Catcher::Judge),
    ("DeadStaysHashed", Catcher::Clock),
    ("DeadStaysLinked", Catcher::Auditor),
    ("WriteToTracked", Catcher::Auditor),
    ("WidenToTracked", Catcher::Auditor),
    ("ProtectKeepsWrite", Catcher::Auditor),
    ("ProtectFirstBatch", Catcher::Auditor),
    ("ProtectKeepsLarge", Catcher::Auditor),
    ("LargeOverTable", Catcher::Auditor),
    ("CountNotLowered", Catcher::Auditor),
    ("DeadStaysTracked", Catcher::Auditor),
    ("UnsyncKeepsClean", Catcher::Auditor),
    ("UnsyncOnePage", Catcher::Auditor),
    ("DropFlush", Catcher::Judge),
    ("RemoveOwesNothing", Catcher::Judge),
    ("NoRequest", Catcher::Judge),
    ("RequestUnserved", Catcher::Judge),
    ("Cr3KeepsTlb", Catcher::Judge),
    ("FreeBeforeFlush", Catcher::Auditor),
    ("ZapKeepsEntries", Catcher::Auditor),
    ("RoleWithoutRights", Catcher::Judge),
    ("WidenTradesRights", Catcher::Judge),
    ("KeepWrite", Catcher::Judge),
    ("KernelWriteForUser", Catcher::Judge),
    ("KernelWriteExecutes", Catcher::Judge),
    ("StoreBeforeRoom", Catcher::Auditor),
    ("GateUncounted", Catcher::Auditor),
    ("GateNeverCloses", Catcher::Auditor),
    ("FirstReadWritable", Catcher::Judge),
    ("WriteBeforeDirty", Catcher::Judge),
    ("PrefetchUnaccessed", Catcher::Judge),
    ("KeepUnaccessed", Catcher::Judge),
    ("UnmapKeepsLarge", Catcher::Auditor),
    ("InvlpgOnlyFlushes", Catcher::Judge),
    ("CleanWithoutDerive", Catcher::Judge),
    ("EpochNotRaised", Catcher::Judge),
    ("EpochThoughUnsync", Catcher::Judge),
    ("KeepFrame", Catcher::Judge),
];

/// How a boot ended.
struct Boot {
    caught: Option<Catcher>,
    /// What was said first.
    words: String,
}

/// Boots the guest once without a mutant and once with each of the list, or with the one named.
pub(super) fn run(name: Option<&str>) -> Tally {
    let wanted =
        |(listed, _): &&(&str, Catcher)| name.is_none_or(|n| n.eq_ignore_ascii_case(listed));
    let chosen: Vec<_> = CAUGHT.iter().filter(wanted).collect();
    if chosen.is_empty() {
        println!("no boot shows a mutant of that name; docs/machine.md has the list");
        return Tally::FAIL;
    }
    let built = build();
    if built.has_failures() {
        return built;
    }
    let sound = boot(None);
    if sound.caught.is_some() || !sound.words.starts_with("Exit") {
        println!("without a mutant: {}", sound.words);
        return Tally::FAIL;
    }
    let mut tally = Tally::default();
    for (name, expected) in chosen {
        let start = Instant::now();
        let Boot { caught, words } = boot(Some(name));
        let seconds = start.elapsed().as_secs_f64();
        tally += Tally::of(caught == Some(*expected));
        match caught {
            Some(catcher) => println!("{name:20} {catcher} ({seconds:.1} s): {words}"),
            None => println!("{name:20} NOT CAUGHT ({seconds:.1} s): {words}"),
        }
        if caught.is_some_and(|catcher| catcher != *expected) {
            println!("{:20} expected: {expected}", "");
        }
    }
    tally
}

/// Returns where the machine with mutants is built.
fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |folder| root().join(folder));
    target.join("mutants")
}

fn build() -> Tally {
    let guest = [
        "build",
        "--profile",
        "image",
        "-p",
        "vmmu-guest",
        "--features",
        "image",
        "--bin",
        "stress-guest",
    ];
    let mut guest = cargo(&guest);
    guest.env("CARGO_TARGET_DIR", folder());
    let done = succeeds(guest);
    if done.has_failures() {
        return done;
    }
    let machine = [
        "build",
        "--release",
        "-p",
        "vmmu-machine",
        "--example",
        "run_kernel",
    ];
    let mut machine = cargo(&machine);
    machine
        .env("RUSTFLAGS", "--cfg mutant")
        .env("CARGO_TARGET_DIR", folder());
    succeeds(machine)
}

fn boot(mutant: Option<&str>) -> Boot {
    let mut command = Command::new(folder().join("release/examples/run_kernel"));
    command.arg(folder().join("image/stress-guest"));
    command.args([
        "--deterministic",
        "--seed",
        "1",
        "--reclaim",
        "--check",
        "--audit",
        "500",
    ]);
    command
        .stdin(Stdio::null())
        .env("RUST_BACKTRACE", "0")
        .env_remove(SWITCH);
    if let Some(name) = mutant {
        command.env(SWITCH, name);
    }
    match bounded(command, LIMIT) {
        Ok((Some(_), output)) => read(&output),
        Ok((None, _)) => Boot {
            caught: Some(Catcher::Clock),
            words: format!("no end within {} s", LIMIT.as_secs()),
        },
        Err(error) => Boot {
            caught: None,
            words: error.to_string(),
        },
    }
}

/// Reads who caught what from what the machine printed at its end: a report, or the end's name.
fn read(output: &str) -> Boot {
    let mut lines = output.lines().skip_while(|line| !line.starts_with("end: "));
    let first = lines
        .next()
        .unwrap_or("the machine did not say how it ended");
    let said = first.strip_prefix("end: ").unwrap_or(first);
    let of_vcpu = said.starts_with("vcpu ") || said.starts_with("led the processor astray");
    let (caught, words) = if said.starts_with("the auditor") {
        (Some(Catcher::Auditor), lines.next().unwrap_or(said))
    } else {
        (of_vcpu.then_some(Catcher::Judge), said)
    };
    Boot {
        caught,
        words: words.trim().to_owned(),
    }
}

#[cfg(test)]
mod the_list {
    use super::{CAUGHT, Catcher, read};
    use crate::mutants::list::MUTANTS;
    use crate::step::root;

    #[test]
    fn names_mutants_that_exist_each_once() {
        for (i, (name, _)) in CAUGHT.iter().enumerate() {
            assert!(MUTANTS.iter().any(|m| m.name == *name), "{name}");
            assert!(CAUGHT[..i].iter().all(|(other, _)| other != name), "{name}");
        }
    }

    #[test]
    fn is_in_the_documentation() {
        let page = std::fs::read_to_string(root().join("docs/machine.md")).expect("the page");
        for (name, catcher) in CAUGHT {
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| {catcher} |")));
            let named = row.is_some_and(|row| row.split([' ', ',']).any(|word| word == *name));
            assert!(named, "{name} is not in the row of {catcher}");
        }
    }

    #[test]
    fn is_compared_with_who_speaks_at_the_end() {
        let judge = read("ok\n\nend: vcpu 0: user read at 0x1 reaches\n  rip");
        assert_eq!(judge.caught, Some(Catcher::Judge));
        let auditor = read("end: the auditor found broken rules: 1\n  slot 4\n");
        assert_eq!(
            (auditor.caught, &auditor.words[..]),
            (Some(Catcher::Auditor), "slot 4")
        );
        let sound = read("end: Exit(0)\n");
        assert_eq!((sound.caught, &sound.words[..]), (None, "Exit(0)"));
        assert_eq!(read("").caught, None);
    }
}
