//! Why there is no table.
//!
//! Key type: [`Failure`].

use crate::machine::Trouble;
use crate::operation::Operation;
use crate::runner::VERSION;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// callgrind is not there.
    #[error("valgrind is not installed: apt-get install valgrind")]
    NoValgrind,
    /// gungraun's other half is not there and could not be installed.
    #[error(
        "gungraun-runner {VERSION} is missing and could not be installed: cargo install gungraun-runner --version {VERSION}"
    )]
    NoRunner,
    /// A process could not be started or failed.
    #[error("{operation}: {reason}")]
    Process {
        /// What it was to play.
        operation: &'static str,
        /// What happened.
        reason: String,
    },
    /// The operation could not be played.
    #[error("{operation}: {trouble}")]
    Trouble {
        /// What was played.
        operation: &'static str,
        /// What happened.
        trouble: Trouble,
    },
}

impl Failure {
    /// Makes a [`Failure::Process`].
    pub(crate) fn of(operation: Operation, reason: &str) -> Self {
        Self::Process {
            operation: operation.names().0,
            reason: reason.trim().to_owned(),
        }
    }
}
