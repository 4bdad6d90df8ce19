//! Other programs: is it there, run it with its last lines shown, install it where that is allowed.
//!
//! Key functions: [`require`], [`run`]. Neighbours: [`crate::debian`] and [`crate::image`] run tools through here.
//!
//! Invariants:
//! 1. Nothing is installed without saying so on standard error.
//! 2. Only root, or a user whom sudo lets through without a password, installs anything.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::screen;

/// What a tool left behind.
#[derive(Debug)]
pub struct Output {
    /// Whether it ended with status 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Returns the line that tells most about a failure: the first with "error" in it, else the last.
    #[must_use]
    pub fn reason(&self) -> String {
        let lines = || self.stderr.lines().map(str::trim).filter(|l| !l.is_empty());
        let telling = lines().find(|l| l.starts_with("error") || l.starts_with("E:"));
        telling
            .or_else(|| lines().next_back())
            .unwrap_or("it gave no reason")
            .to_owned()
    }
}

/// Finds a program on the search path.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Makes sure that `program` is there, installing `package` if need be and allowed.
///
/// # Errors
///
/// [`Error::ToolMissing`] with the package to install.
pub fn require(program: &str, package: &str) -> Result<()> {
    if find(program).is_some() {
        return Ok(());
    }
    let advice = format!("install the package {package} (apt-get install {package})");
    let missing = || Error::ToolMissing {
        tool: program.to_owned(),
        advice: advice.clone(),
    };
    let Some(prefix) = installer() else {
        return Err(missing());
    };
    screen::note(&format!(
        "{program} is missing; installing the package {package} with apt-get"
    ));
    let progress = Progress::begin(&format!("installing {package}"));
    let install = |words: &[&str]| {
        let mut words: Vec<&str> = prefix
            .iter()
            .copied()
            .chain(words.iter().copied())
            .collect();
        let mut command = Command::new(words.remove(0));
        command.args(words).env("DEBIAN_FRONTEND", "noninteractive");
        run(command, &progress)
    };
    let words = [
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        package,
    ];
    if !install(&words)?.success {
        install(&["apt-get", "update"])?;
        install(&words)?;
    }
    if find(program).is_some() {
        Ok(())
    } else {
        Err(missing())
    }
}

/// Returns the words before apt-get with which this user may install packages.
fn installer() -> Option<&'static [&'static str]> {
    find("apt-get")?;
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    let sudo = Command::new(find("sudo")?)
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    sudo.is_ok_and(|status| status.success())
        .then_some(&["sudo", "-n"])
}

/// Runs a tool to its end, showing its last line.
///
/// # Errors
///
/// [`Error::ToolMissing`] when it can't be started.
pub fn run(mut command: Command, progress: &Progress) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::ToolMissing {
        tool: name.clone(),
        advice: format!("it can't be started ({e}); install it and put it on the search path"),
    })?;
    let mut out = child.stdout.take().map(BufReader::new);
    let (stdout, stderr) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut text = Vec::new();
            if let Some(out) = &mut out {
                // A broken pipe ends the output like its end does.
                let _ = out.read_to_end(&mut text);
            }
            text
        });
        let mut errors = String::new();
        for line in child
            .stderr
            .take()
            .map(BufReader::new)
            .into_iter()
            .flat_map(|r| r.split(b'\n'))
            .map_while(core::result::Result::ok)
        {
            let line = String::from_utf8_lossy(&line);
            progress.line(&line);
            errors.push_str(&line);
            errors.push('\n');
        }
        (reader.join().unwrap_or_default(), errors)
    });
    let status = child.wait().map_err(Error::system("wait for a tool"))?;
    crate::signals::check()?;
    Ok(Output {
        success: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr,
    })
}

#[cfg(test)]
mod running_tools {
    use super::{find, run};
    use crate::progress::Progress;
    use std::process::Command;

    #[test]
    fn both_streams_and_the_status_come_back() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo out; echo 'error: bad' >&2; echo later >&2; exit 3",
        ]);
        let output = run(command, &Progress::quiet("x")).expect("sh runs");
        assert!(!output.success);
        assert_eq!(output.stdout, "out\n");
        assert_eq!(output.reason(), "error: bad");
    }

    #[test]
    fn a_missing_tool_is_said_to_be_missing() {
        let error = run(Command::new("no-such-tool-here"), &Progress::quiet("x")).unwrap_err();
        assert_eq!(error.status(), 116);
        assert_eq!(find("no-such-tool-here"), None);
    }
}
