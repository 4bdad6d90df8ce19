//! Tools that the parts need; what may be installed is installed, and that is said.
//!
//! Key function: [`check`].

use vmmu_cli::qemu::{QEMU, QEMU_PACKAGE};
use vmmu_cli::tools;

use crate::part::Part;
use crate::step;

/// A tool that is missing and could not be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    #[error("{0}")]
    Tool(#[from] vmmu_cli::error::Error),
    #[error("cargo {0} is missing: run `rustup component add {1}` or install the package {1}")]
    Component(&'static str, &'static str),
}

/// Makes sure that every tool of the parts is there.
pub(crate) fn check(parts: &[Part]) -> Result<(), Missing> {
    for part in parts {
        match part {
            Part::Fmt => component("fmt", "rustfmt")?,
            Part::Clippy => component("clippy", "clippy")?,
            Part::Qemu => {
                tools::require(QEMU, QEMU_PACKAGE)?;
                tools::require("dpkg-deb", "dpkg")?;
            }
            Part::Soak(soak) => {
                if soak.needs_qemu() {
                    tools::require(QEMU, QEMU_PACKAGE)?;
                }
                tools::require("dpkg-deb", "dpkg")?;
            }
            Part::Software | Part::Matrix => tools::require("dpkg-deb", "dpkg")?,
            Part::Doc | Part::Unit | Part::Loom(_) | Part::Shuttle(_) | Part::Mutants(_) => {}
        }
    }
    Ok(())
}

fn component(subcommand: &'static str, name: &'static str) -> Result<(), Missing> {
    let works = || {
        step::cargo(&[subcommand, "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if works() {
        return Ok(());
    }
    if tools::find("rustup").is_some() {
        println!("cargo {subcommand} is missing; installing the component {name} with rustup");
        let mut add = std::process::Command::new("rustup");
        add.args(["component", "add", name]);
        // Whether it worked shows below.
        let _ = step::succeeds(add);
    }
    if works() {
        Ok(())
    } else {
        Err(Missing::Component(subcommand, name))
    }
}
