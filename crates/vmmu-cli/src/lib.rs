//! The `vmmu` command: starts guests on the software machine or on the hypervisor image inside QEMU, and measures.
//!
//! | module | noun |
//! |---|---|
//! | [`args`], [`error`], [`number`] | options; failures and statuses; sizes and figures |
//! | [`workspace`], [`debian`], [`image`], [`tools`], [`progress`] | sources and cache; packages; bare-metal builds; other programs |
//! | [`kernel`], [`cpio`], [`port`], [`initramfs`], [`bundle`] | what the guest is made of |
//! | [`engine`], [`software`], [`qemu`], [`channel`], [`session`], [`input`], [`terminal`], [`signals`], [`tail`], `screen` | a run |
//! | [`run`], [`stats`], [`mod@bench`], [`mod@litmus`], [`mod@demo`] | the subcommands, and what there is without one |
//!
//! The image it builds and talks to is `vmmu-svm`; `docs/image-protocol.md` is the contract between them.
//!
//! # Known gaps
//! Debian and its derivatives only, for the packages. The output of `--exec` does not keep standard output and
//! error apart, and a background process that keeps them open keeps the guest alive.
#![forbid(unsafe_code)]

pub mod args;
pub mod bench;
pub mod bundle;
pub mod channel;
pub mod cpio;
pub mod debian;
pub mod demo;
pub mod engine;
pub mod error;
pub mod image;
pub mod initramfs;
pub mod input;
pub mod kernel;
pub mod litmus;
pub mod number;
pub mod port;
pub mod progress;
pub mod qemu;
pub mod run;
mod screen;
pub mod session;
pub mod signals;
pub mod software;
pub mod stats;
pub mod tail;
pub mod terminal;
pub mod tools;
pub mod workspace;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::error::ErrorKind;
use error::Error;

/// Prints help if that was asked for; otherwise says in one line what is wrong with the command line.
#[must_use]
pub fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return fail(&Error::Usage(args::one_line(error)));
    }
    // Nothing is left to do if nobody reads the help.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

fn fail(error: &Error) -> ExitCode {
    screen::note(&error.to_string());
    ExitCode::from(error.status())
}

/// Carries out a command line and returns the process's status; failures are printed to standard error.
#[must_use]
pub fn main_with(cli: &Cli) -> ExitCode {
    let done = signals::watch().and_then(|()| match &cli.command {
        None => demo::demo(),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Bench(args)) => bench::bench(args),
        Some(Command::Litmus(args)) => litmus::litmus(args),
    });
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error),
    }
}
