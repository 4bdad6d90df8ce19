//! Guests with several processors: bounded under the hypervisor, and in a long form, on either engine, many runs in a row.
//!
//! Key type: [`Soak`]; [`cases`].

use core::time::Duration;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::own::{self, Own};
use super::{Case, Expected, command};
use crate::tally::Tally;

/// Storms of forks on all processors, memory moved meanwhile, large sorts side by side, threads that map, unmap and replace pages of their common address
/// space, every processor but the first taken out and put back. Each outcome is checked: what goes wrong in the background leaves `/tmp/bad`.
const LOAD: &str = "\
n=$(nproc)
for round in 1 2; do
    for i in $(seq 12); do
        (x=0; while [ $x -lt 6 ]; do /bin/true || >/tmp/bad; x=$((x+1)); done) &
        (x=$(echo $i | cat); [ $x = $i ] || >/tmp/bad) &
    done
    echo 1 >/proc/sys/vm/compact_memory || exit 3
    wait
done
for i in 1 2 3; do
    (dd if=/dev/urandom of=/tmp/s$i bs=64k count=3 2>/dev/null; od -x /tmp/s$i | sort >/tmp/o$i) &
done
wait
for i in 1 2 3; do od -x /tmp/s$i | sort | cmp - /tmp/o$i || exit 9; done
xxd -r -p >/tmp/threads <<END
THREADS
END
chmod +x /tmp/threads
/tmp/threads 4 || exit 10
for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
    echo 0 >$cpu/online || exit 8
    [ $(nproc) = $((n-1)) ] || exit 7
    (echo 1 >$cpu/online) || exit 6
done
for i in $(seq 12); do (/bin/true || >/tmp/bad) & done
wait
[ ! -e /tmp/bad ] || exit 4
[ $(nproc) = $n ] || exit 5
echo $n processors hold";

/// Returns the load with the program of threads in it, in hexadecimal digits.
fn load_of(own: &Own) -> String {
    let digits: String = own
        .threads
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    LOAD.replace("THREADS", &digits)
}

/// Seconds that a case may take; many times what it takes on an idle machine.
const LIMIT: u32 = 300;

const MODES: [&str; 2] = ["shadow", "nested"];

/// A number of processors, and what the load says of it at its end.
type Processors = (&'static str, &'static str);
const TWO: Processors = ("2", "2 processors hold\n");
const FOUR: Processors = ("4", "4 processors hold\n");

/// Returns what is run under the hypervisor in both modes.
pub(super) fn cases(own: &Own) -> Vec<Case> {
    let of_mode = |mode| {
        let smp = words(
            &[&own.smp],
            mode,
            "2",
            &["--engine", "svm", "--audit", "1000"],
        );
        [
            load(own, mode, TWO, &["--engine", "svm"]),
            load(own, mode, FOUR, &["--engine", "svm"]),
            linux(mode, "16", "nproc", &["--engine", "svm"], "16\n"),
            Case {
                name: format!("smp guest, {mode}, 2 processors"),
                words: smp,
                input: "",
                seconds: LIMIT,
                expected: Expected::new(1, &["0 failures"]),
            },
        ]
    };
    MODES.into_iter().flat_map(of_mode).collect()
}

/// Returns what is run on the software machine in both modes.
pub(super) fn on_the_software_machine(own: &Own) -> Vec<Case> {
    let of_mode = |mode| [TWO, FOUR].map(|cpus| load(own, mode, cpus, &["--check"]));
    MODES.into_iter().flat_map(of_mode).collect()
}

/// Linux under the load.
fn load(own: &Own, mode: &str, (cpus, says): Processors, more: &[&str]) -> Case {
    linux(mode, cpus, &load_of(own), more, says)
}

/// Linux that executes `script`.
fn linux(mode: &str, cpus: &str, script: &str, more: &[&str], says: &'static str) -> Case {
    Case {
        name: format!("linux, {mode}: {cpus} processors"),
        words: words(&["linux", "--exec", script], mode, cpus, more),
        input: "",
        seconds: LIMIT,
        expected: Expected::new(0, &[says]),
    }
}

fn words(first: &[&str], mode: &str, cpus: &str, more: &[&str]) -> Vec<String> {
    let options = ["--paging", mode, "--cpus", cpus];
    let words = ["run"].iter().chain(first).chain(&options).chain(more);
    words.map(|&word| word.to_owned()).collect()
}

/// The load on several processors again and again.
#[derive(Debug, Clone, Args)]
pub(crate) struct Soak {
    /// What runs the guest
    #[arg(long, value_enum, default_value_t = Engine::Svm)]
    engine: Engine,
    /// The kind of paging; left out, both
    #[arg(long, value_enum)]
    paging: Option<Paging>,
    /// The guest's processors
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=16))]
    cpus: u8,
    /// How many runs of each kind of paging
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// How the software machine behaves, which judges every translation; each run but those of `plain` has a seed of its own
    #[arg(long, default_value = "plain")]
    nature: String,
    /// The first run's seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Software,
    Svm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Paging {
    Shadow,
    Nested,
}

impl Paging {
    const fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        }
    }
}

impl Soak {
    /// Tells whether QEMU is needed.
    pub(crate) fn needs_qemu(&self) -> bool {
        self.engine == Engine::Svm
    }

    /// Runs the load as often as was asked for; each run says how long it took.
    pub(super) fn run(&self) -> Tally {
        let vmmu = match command() {
            Ok(vmmu) => vmmu,
            Err(failed) => return failed,
        };
        let load = match own::build() {
            Ok(own) => load_of(&own),
            Err(failed) => return failed,
        };
        let both = [Paging::Shadow, Paging::Nested];
        let mut tally = Tally::default();
        for paging in both {
            if self.paging.is_some_and(|only| only != paging) {
                continue;
            }
            let start = Instant::now();
            for run in 0..self.runs {
                tally += self.case(&load, paging, run).run(&vmmu);
            }
            let each = start.elapsed() / self.runs.max(1);
            println!(
                "{}: {:.1} s a run",
                paging.name(),
                Duration::as_secs_f64(&each)
            );
        }
        tally
    }

    fn case(&self, load: &str, paging: Paging, run: u32) -> Case {
        let cpus = self.cpus.to_string();
        let mut words = vec!["run", "linux", "--exec", load];
        words.extend(["--paging", paging.name(), "--cpus", &cpus]);
        let seed = (self.seed + u64::from(run)).to_string();
        let mut how = String::new();
        match self.engine {
            Engine::Svm => words.extend(["--engine", "svm"]),
            Engine::Software => {
                words.extend(["--engine", "software", "--check", "--nature", &self.nature]);
                how = self.nature.clone();
                if self.nature != "plain" {
                    words.extend(["--seed", &seed]);
                    how += &format!(", seed {seed}");
                }
            }
        }
        Case {
            name: format!(
                "{} processors, {} {how} run {}",
                self.cpus,
                paging.name(),
                run + 1
            ),
            words: words.iter().map(|&word| word.to_owned()).collect(),
            input: "",
            seconds: 10 * LIMIT,
            expected: Expected::new(0, &[" processors hold\n"]),
        }
    }
}
