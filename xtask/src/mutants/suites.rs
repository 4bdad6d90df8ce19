//! The test programs with mutants compiled in: built once, run as often as there are mutants.
//!
//! Key types: [`Suites`], [`End`] (what became of a mutant).
//!
//! Invariants:
//! 1. A run ends within [`LIMIT`]: a mutant that makes a test hang is killed by that.
//! 2. A mutant's own tests run first; the whole suites only if those did not kill it.

use core::cell::OnceCell;
use core::fmt;
use core::time::Duration;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Instant;

use super::list::{Mutant, Suite};
use crate::step::{cargo, root};
use crate::tally::Tally;

/// Names the mutant to the library.
pub(super) const SWITCH: &str = "VMMU_MUTANT";
/// How long one program may run.
const LIMIT: Duration = Duration::from_secs(60);
/// Under loom a test explores many thousand runs.
const LOOM_LIMIT: Duration = Duration::from_secs(300);

/// What became of a mutant.
#[derive(Debug)]
pub(super) enum End {
    /// A test failed: its name.
    Failed(String),
    /// A test did not come to an end.
    Hung,
    /// Every test passed.
    Survived,
}

impl End {
    pub(super) const fn is_killed(&self) -> bool {
        !matches!(self, Self::Survived)
    }

    fn killed(self) -> Option<Self> {
        self.is_killed().then_some(self)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(test) => write!(f, "killed by {test}"),
            Self::Hung => f.write_str("killed: a test hangs"),
            Self::Survived => f.write_str("SURVIVED"),
        }
    }
}

/// Why there are no tests to run.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("cargo cannot be started: {0}")]
    Start(#[from] std::io::Error),
    #[error("they do not build")]
    Failed,
}

/// One test program.
#[derive(Debug)]
struct Program {
    suite: Suite,
    name: String,
    path: PathBuf,
    /// Where it runs: its package's folder.
    folder: PathBuf,
}

/// All test programs.
#[derive(Debug)]
pub(super) struct Suites {
    programs: Vec<Program>,
    /// Whether all of them pass without a mutant, once that was asked.
    sound: OnceCell<bool>,
}

impl Suites {
    /// Builds what the mutants need.
    pub(super) fn build(mutants: &[&Mutant]) -> Result<Self, BuildError> {
        let mut programs = Vec::new();
        if mutants.iter().any(|m| m.suite != Suite::Loom) {
            let words = ["-p", "vmmu", "-p", "vmmu-tests", "--lib", "--tests"];
            programs.extend(build("--cfg mutant", "mutants", &words, |package| {
                if package == "vmmu" {
                    Suite::Unit
                } else {
                    Suite::Machine
                }
            })?);
        }
        if mutants.iter().any(|m| m.suite == Suite::Loom) {
            let words = ["-p", "vmmu", "--lib", "--profile", "loom"];
            programs.extend(build(
                "--cfg loom --cfg mutant",
                "mutants-loom",
                &words,
                |_| Suite::Loom,
            )?);
        }
        Ok(Self {
            programs,
            sound: OnceCell::new(),
        })
    }

    /// Runs every mutant's own tests without it: they pass, and there are some.
    pub(super) fn check_unbroken(&self, mutants: &[&Mutant]) -> Tally {
        let mut seen = Vec::new();
        let mut tally = Tally::default();
        for mutant in mutants {
            let tests = (mutant.suite, mutant.filter);
            if seen.contains(&tests) {
                continue;
            }
            seen.push(tests);
            let runs: Vec<Run> = self
                .of(mutant.suite)
                .map(|p| p.run(None, mutant.filter))
                .collect();
            let count: u64 = runs.iter().map(|run| run.tests).sum();
            if let Some(end) = runs.iter().map(Run::end).find(End::is_killed) {
                println!("'{}' without a mutant: {end}", mutant.filter);
                tally += Tally::FAIL;
            } else if count == 0 {
                println!("'{}' selects no test", mutant.filter);
                tally += Tally::FAIL;
            }
        }
        tally
    }

    /// Runs tests with a mutant until one notices.
    pub(super) fn judge(&self, mutant: &Mutant) -> End {
        let mut own = self.of(mutant.suite);
        let end = own.find_map(|p| p.run(Some(mutant.name), mutant.filter).end().killed());
        let wide = || {
            self.wide(mutant)?
                .find_map(|p| p.run(Some(mutant.name), "").end().killed())
        };
        end.or_else(wide).unwrap_or(End::Survived)
    }

    /// Returns every program that does not need loom, unless one of them fails without a mutant: then it would notice everything.
    fn wide(&self, mutant: &Mutant) -> Option<impl Iterator<Item = &Program>> {
        let programs = || self.programs.iter().filter(|p| p.suite != Suite::Loom);
        let sound = self.sound.get_or_init(|| {
            let broken = programs().find(|p| p.run(None, "").end().is_killed());
            if let Some(program) = broken {
                println!("{} fails without a mutant", program.name);
            }
            broken.is_none()
        });
        (*sound && mutant.suite != Suite::Loom).then(programs)
    }

    /// Returns a suite's programs, the one of the pinned promises first.
    fn of(&self, suite: Suite) -> impl Iterator<Item = &Program> {
        let pinned = |p: &&Program| p.name == "mutants";
        let first = self.programs.iter().filter(pinned);
        let others = self.programs.iter().filter(move |p| !pinned(p));
        first.chain(others).filter(move |p| p.suite == suite)
    }
}

/// Builds test programs with a cfg, in a target folder of their own.
fn build(
    flags: &str,
    folder: &str,
    words: &[&str],
    suite: impl Fn(&str) -> Suite,
) -> Result<Vec<Program>, BuildError> {
    println!("building with {flags}");
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    };
    let mut command = cargo(&[
        "test",
        "--no-run",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = command
        .args(words)
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", target.join(folder))
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(BuildError::Failed);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| program(line, &suite))
        .collect())
}

/// Reads a test program from one of cargo's messages.
fn program(line: &str, suite: impl Fn(&str) -> Suite) -> Option<Program> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = PathBuf::from(message.get("executable")?.as_str()?);
    let folder = PathBuf::from(message.get("manifest_path")?.as_str()?);
    let folder = folder.parent()?.to_path_buf();
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let name = message.get("target")?.get("name")?.as_str()?.to_owned();
    Some(Program {
        suite: suite(&package),
        name,
        path,
        folder,
    })
}

/// One run of a program.
#[derive(Debug)]
struct Run {
    status: Option<ExitStatus>,
    tests: u64,
    output: String,
}

impl Program {
    fn run(&self, mutant: Option<&str>, filter: &str) -> Run {
        let mut command = Command::new(&self.path);
        command
            .arg(filter)
            .current_dir(&self.folder)
            .env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).env_remove(SWITCH);
        if let Some(name) = mutant {
            command.env(SWITCH, name);
        }
        let limit = if self.suite == Suite::Loom {
            LOOM_LIMIT
        } else {
            LIMIT
        };
        match bounded(command, limit) {
            Ok((status, output)) => Run {
                status,
                tests: counted(&output),
                output,
            },
            Err(error) => Run {
                status: None,
                tests: 0,
                output: error.to_string(),
            },
        }
    }
}

impl Run {
    fn end(&self) -> End {
        match self.status {
            Some(status) if status.success() => End::Survived,
            Some(status) => End::Failed(self.culprit().unwrap_or_else(|| status.to_string())),
            None => End::Hung,
        }
    }

    /// Returns the first test that failed.
    fn culprit(&self) -> Option<String> {
        let panicked = |line: &str| {
            let (name, _) = line.strip_prefix("thread '")?.split_once('\'')?;
            line.contains("panicked at").then(|| name.to_owned())
        };
        let failed = |line: &str| {
            let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
            Some(name.trim_end_matches(" - should panic").to_owned())
        };
        let lines = || self.output.lines();
        lines()
            .find_map(failed)
            .or_else(|| lines().find_map(panicked))
    }
}

/// Returns how many tests a program said that it runs.
fn counted(output: &str) -> u64 {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("running "));
    line.and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// Runs a command for at most `limit`; no status means that it was ended.
pub(super) fn bounded(
    mut command: Command,
    limit: Duration,
) -> std::io::Result<(Option<ExitStatus>, String)> {
    let mut file = tempfile::tempfile()?;
    command.stdout(file.try_clone()?).stderr(file.try_clone()?);
    let mut child = command.spawn()?;
    let status = wait(&mut child, limit)?;
    let mut output = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut output)?;
    Ok((status, String::from_utf8_lossy(&output).into_owned()))
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut nap = Duration::from_millis(2);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(50));
    }
}
