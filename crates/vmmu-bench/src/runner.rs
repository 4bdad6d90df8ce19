//! gungraun's other half, the program that starts valgrind: found, or installed where the project keeps what it fetches.
//!
//! Key type: [`Runner`].
//!
//! Invariants:
//! 1. The runner has the version of the library, as gungraun demands.
//! 2. Nothing is installed outside of the project's cache folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;

/// The version of gungraun that the benchmark is built with.
pub const VERSION: &str = "0.20.0";
const NAME: &str = "gungraun-runner";

/// A `gungraun-runner` of the right version, and valgrind beside it.
#[derive(Debug)]
pub struct Runner {
    /// The search path on which gungraun finds it.
    path: OsString,
}

impl Runner {
    /// Finds the runner on the search path or in the cache folder, otherwise installs it there.
    ///
    /// # Errors
    /// [`Failure::NoValgrind`], [`Failure::NoRunner`].
    pub fn ready() -> Result<Self, Failure> {
        if first_line(Path::new("valgrind")).is_none() {
            return Err(Failure::NoValgrind);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if is_right(Path::new(NAME)) {
            return Ok(Self { path });
        }
        let root = cache().join(format!("{NAME}-{VERSION}"));
        let bin = root.join("bin");
        if !is_right(&bin.join(NAME)) {
            install(&root)?;
        }
        let paths = core::iter::once(bin).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(paths).map_err(|_| Failure::NoRunner)?;
        Ok(Self { path })
    }

    /// Lets `command` find the runner.
    pub(crate) fn put_on_path(&self, command: &mut Command) {
        command.env("PATH", &self.path);
    }
}

/// Returns the project's cache folder, which `VMMU_CACHE` may name.
fn cache() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    std::env::var_os("VMMU_CACHE").map_or_else(default, PathBuf::from)
}

/// Has cargo build the runner, which takes a few minutes once.
fn install(root: &Path) -> Result<(), Failure> {
    eprintln!("{NAME} {VERSION} is missing; installing it with cargo in the cache folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["install", NAME, "--version", VERSION, "--locked", "--quiet"])
        .arg("--root")
        .arg(root)
        .stdin(Stdio::null())
        .status();
    if status.is_ok_and(|status| status.success()) && is_right(&root.join("bin").join(NAME)) {
        Ok(())
    } else {
        Err(Failure::NoRunner)
    }
}

fn is_right(program: &Path) -> bool {
    first_line(program).is_some_and(|line| line.split(' ').any(|word| word == VERSION))
}

/// Returns the first line of `program --version`.
fn first_line(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod the_runner_fits_the_library {
    use super::VERSION;

    #[test]
    fn its_version_is_that_of_the_locked_library() {
        let lock = include_str!("../../../Cargo.lock");
        let package = format!("name = \"gungraun\"\nversion = \"{VERSION}\"\n");
        assert!(
            lock.contains(&package),
            "the lock file has another gungraun"
        );
    }
}
