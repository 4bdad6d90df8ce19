//! The `vmmu` command; all of it is in the library beside this file.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vmmu_cli::args::Cli;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => vmmu_cli::main_with(&cli),
        Err(error) => vmmu_cli::refuse(&error),
    }
}
