//! Has cargo build the bare-metal programs: the hypervisor image and the guests that commands run.
//!
//! Key type: [`BareMetal`]. When nothing changed this costs a fraction of a second.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tools;
use crate::workspace::Workspace;

/// A bare-metal program of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BareMetal {
    /// The hypervisor.
    Hypervisor,
    /// The guest with the paging operations.
    BenchGuest,
    /// The guest with processes.
    DemoGuest,
    /// The guest that writes to tables while they are made.
    GateGuest,
}

/// A line of cargo's report; lines of other kinds have none of the fields.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl BareMetal {
    const fn what(self) -> &'static str {
        match self {
            Self::Hypervisor => "the hypervisor image",
            Self::BenchGuest => "the bench guest",
            Self::DemoGuest => "the demonstration guest",
            Self::GateGuest => "the gate guest",
        }
    }

    /// Returns package, feature and binary.
    const fn words(self) -> [&'static str; 3] {
        match self {
            Self::Hypervisor => ["vmmu-svm", "image", "vmmu-image"],
            Self::BenchGuest => ["vmmu-guest", "image", "bench-guest"],
            Self::DemoGuest => ["vmmu-guest", "image", "demo-guest"],
            Self::GateGuest => ["vmmu-guest", "image", "gate-guest"],
        }
    }

    /// Builds the program and returns the path of its ELF file.
    ///
    /// # Errors
    ///
    /// [`Error::ToolMissing`] without cargo, [`Error::Build`] when cargo fails.
    pub fn build(self, workspace: &Workspace) -> Result<PathBuf> {
        let root = workspace.root()?;
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        if !cargo.contains('/') && tools::find(&cargo).is_none() {
            return Err(Error::ToolMissing {
                tool: cargo,
                advice: "install Rust 1.95 or later (rustup, or the packages cargo and rustc)"
                    .to_owned(),
            });
        }
        let [package, feature, binary] = self.words();
        let words = [
            "build",
            "--profile",
            "image",
            "-p",
            package,
            "--features",
            feature,
            "--bin",
            binary,
        ];
        let mut command = Command::new(&cargo);
        command
            .args(words)
            .arg("--message-format=json-render-diagnostics")
            .current_dir(root);
        let output = tools::run(
            command,
            &Progress::quiet(&format!("building {}", self.what())),
        )?;
        let failed = |reason: String| Error::Build {
            what: self.what(),
            reason,
            command: format!("cargo {}", words.join(" ")),
        };
        if !output.success {
            return Err(failed(output.reason()));
        }
        executable(&output.stdout, binary)
            .ok_or_else(|| failed("cargo named no executable".to_owned()))
    }
}

fn executable(report: &str, binary: &str) -> Option<PathBuf> {
    let messages = report
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages
        .filter(|m| m.target.as_ref().is_some_and(|t| t.name == binary))
        .find_map(|m| m.executable)
}

#[cfg(test)]
mod cargo_reports {
    use super::executable;
    use std::path::Path;

    #[test]
    fn the_executable_is_that_of_the_binary_asked_for() {
        let report = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vmmu\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"other\"},\"executable\":\"/x/other\"}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vmmu-image\"},\"executable\":\"/x/vmmu-image\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(
            executable(report, "vmmu-image").as_deref(),
            Some(Path::new("/x/vmmu-image"))
        );
        assert_eq!(executable(report, "absent"), None);
    }
}
