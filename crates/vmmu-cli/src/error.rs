//! What can go wrong, each with one message and one exit status.
//!
//! Key type: [`Error`]. Every module of the command returns it; [`crate::main_with`] prints it and turns it
//! into the process's status by [`Error::status`].
//!
//! Invariants:
//! 1. Every class has a status of its own, and all of them stand in [`STATUS_HELP`].
//! 2. The statuses are even. A kernel started by `run FILE` ends with an odd status (`(V << 1) | 1`), so the
//!    two can't be mistaken for each other.
//! 3. A message says what happened and what to do; it is one line, save for a guest's crash report.

use std::io;
use std::path::PathBuf;

use crate::number::ByteSize;

/// The statuses and environment variables as `--help` lists them.
pub const STATUS_HELP: &str = "\
Exit status:
  the guest's own: run linux ends with the status of the shell or of --exec's commands,
  run FILE with (V << 1 | 1) & 0xff when the kernel writes V to port 0xf4; otherwise
    0    the guest powered off, or the table was printed
    2    a wrong option or value
  110    a file is missing or can't be read or written
  112    a file is no kernel that vmmu starts
  114    too little memory for the guest
  116    a tool is missing (cargo, QEMU, apt-get, dpkg-deb) and can't be installed
  118    a package could not be fetched
  120    the hypervisor image or the bench guest could not be built
  122    QEMU did not start, or ended in an unforeseen way
  124    the time limit was reached
  126    the guest crashed (triple fault or the like); the report is on standard error
  128    the hypervisor refused the guest (it needs what vmmu does not have)
  130    interrupted by Ctrl-C or a signal, or left by Ctrl-A X
  132    the hypervisor itself failed: a bug of vmmu
  134    the guest reset, or ended without a status
  136    standard output was closed
  138    a measurement is not possible here, or the bench guest's report is incomplete
  140    litmus: a strategy of the library lost an update, or a mistake was not caught

Environment:
  VMMU_CACHE   the folder for fetched packages (otherwise .cache in the project)";

/// A failure of the command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that clap can't judge alone is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file is missing, or can't be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A temporary file, thread, pipe or the like was refused by the system.
    #[error("cannot {action}: {source}; check the room and the rights on the temporary folder")]
    System {
        /// The operation, as a verb.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is none of the kinds of kernel that vmmu starts.
    #[error(
        "{} is no kernel that vmmu starts ({reason}); give a bzImage, an ELF with a PVH note or a multiboot-1 ELF32",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The guest doesn't fit into the memory asked for.
    #[error("{given} of memory are too little for {what}: give --memory {need} or more")]
    TooLittleMemory {
        /// What shall run.
        what: String,
        /// What was asked for.
        given: ByteSize,
        /// The least that is accepted.
        need: ByteSize,
    },
    /// A program isn't there.
    #[error("{tool} is missing: {advice}")]
    ToolMissing {
        /// The program.
        tool: String,
        /// What to install, and how.
        advice: String,
    },
    /// The system's package tools did not deliver.
    #[error(
        "cannot fetch the package {package}: {reason}; check the network and the package sources, then try again"
    )]
    Fetch {
        /// The package.
        package: String,
        /// The tool's last words.
        reason: String,
    },
    /// Cargo failed.
    #[error("cannot build {what}: {reason}; run `{command}` to see all of it")]
    Build {
        /// What was being built.
        what: &'static str,
        /// The first error.
        reason: String,
        /// The command that failed.
        command: String,
    },
    /// QEMU did not run as it should.
    #[error("qemu-system-x86_64 {reason}; check --qemu-arg and the installed version")]
    Qemu {
        /// What it did instead.
        reason: String,
    },
    /// The time limit was reached.
    #[error("the guest was stopped after {seconds} s, the limit set by --timeout{tail}")]
    Timeout {
        /// The limit.
        seconds: u64,
        /// The console's last lines, when they were not shown already.
        tail: String,
    },
    /// The guest can't go on.
    #[error("the guest crashed; what the hypervisor says:\n{text}")]
    Crash {
        /// The image's report, several lines.
        text: String,
    },
    /// The guest needs what the hypervisor doesn't have.
    #[error("the hypervisor refused the guest: {text}")]
    Refused {
        /// The image's reason.
        text: String,
    },
    /// A person or a signal ended the run.
    #[error("interrupted by {by}; what ran is stopped")]
    Interrupted {
        /// What interrupted.
        by: &'static str,
    },
    /// A bug of the hypervisor.
    #[error("the hypervisor failed, which is a bug of vmmu; please report this: {text}")]
    Panic {
        /// The panic's message.
        text: String,
    },
    /// The guest ended, but not by a status.
    #[error("the guest ended without a status ({reason}){tail}")]
    NoStatus {
        /// How it ended.
        reason: String,
        /// The console's last lines, when they were not shown already.
        tail: String,
    },
    /// Nobody reads the output any more.
    #[error("standard output was closed; the guest, if one ran, is stopped")]
    OutputClosed,
    /// A verdict of `litmus` is not what it must be.
    #[error(
        "{count} verdicts are not what they must be: {first}; this is a bug of vmmu, please report it"
    )]
    Litmus {
        /// How many.
        count: usize,
        /// The first.
        first: String,
    },
    /// The bench guest said less than the table needs.
    #[error(
        "the bench guest's report is incomplete: {reason}; run `vmmu bench --timeout 600s` once more"
    )]
    Bench {
        /// What is missing.
        reason: String,
    },
    /// A measurement on this machine was not possible.
    #[error("this can't be measured here: {reason}")]
    Unmeasured {
        /// Why not.
        reason: String,
    },
}

/// What an operation of this crate returns.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// Returns the process's exit status for this class.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::File { .. } | Self::System { .. } => 110,
            Self::NotAKernel { .. } => 112,
            Self::TooLittleMemory { .. } => 114,
            Self::ToolMissing { .. } => 116,
            Self::Fetch { .. } => 118,
            Self::Build { .. } => 120,
            Self::Qemu { .. } => 122,
            Self::Timeout { .. } => 124,
            Self::Crash { .. } => 126,
            Self::Refused { .. } => 128,
            Self::Interrupted { .. } => 130,
            Self::Panic { .. } => 132,
            Self::NoStatus { .. } => 134,
            Self::OutputClosed => 136,
            Self::Bench { .. } | Self::Unmeasured { .. } => 138,
            Self::Litmus { .. } => 140,
        }
    }

    /// Makes a function that wraps an I/O error about `path`, for `map_err`.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// Makes a function that wraps an I/O error about the system, for `map_err`.
    pub fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

#[cfg(test)]
mod statuses {
    use super::{Error, STATUS_HELP};

    #[test]
    fn every_status_but_usage_is_even_and_listed() {
        let samples = [
            Error::Usage(String::new()),
            Error::Timeout {
                seconds: 1,
                tail: String::new(),
            },
            Error::Crash {
                text: String::new(),
            },
            Error::Refused {
                text: String::new(),
            },
            Error::Interrupted { by: "x" },
            Error::Panic {
                text: String::new(),
            },
            Error::OutputClosed,
            Error::Qemu {
                reason: String::new(),
            },
        ];
        for error in samples {
            let status = error.status();
            assert_eq!(status % 2, 0, "{error:?}");
            assert!(STATUS_HELP.contains(&format!("{status:>5}  ")), "{error:?}");
        }
    }
}
