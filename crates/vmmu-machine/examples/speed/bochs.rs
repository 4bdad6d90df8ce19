//! Bochs, run as a program on a floppy disk made for it.
//!
//! Key type: [`Bochs`].

use core::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::guest::Loop;
use crate::spent::Spent;

/// An installed Bochs, with a directory for its files.
pub(crate) struct Bochs {
    directory: PathBuf,
}

impl Bochs {
    /// Finds it.
    pub(crate) fn find() -> Result<Option<Self>, Box<dyn Error>> {
        let there = Command::new("bochs")
            .arg("--help")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if there.is_err() {
            return Ok(None);
        }
        let directory = std::env::temp_dir().join(format!("vmmu-speed-{}", std::process::id()));
        std::fs::create_dir(&directory)?;
        Ok(Some(Self { directory }))
    }

    /// Runs a loop and returns its checksum.
    pub(crate) fn run(&self, what: Loop) -> Result<(Spent, String), Box<dyn Error>> {
        let [disk, log, config, commands] =
            ["disk", "log", "config", "commands"].map(|name| self.directory.join(name));
        std::fs::write(&disk, what.floppy())?;
        // A text display whose output is discarded but for port E9h; time in counted instructions, so that devices cost as little as they can.
        let lines = format!(
            "display_library: term\n\
             romimage: file=$BXSHARE/BIOS-bochs-latest, options=fastboot\n\
             vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest\n\
             memory: guest=32, host=32\n\
             cpu: ips=100000000\n\
             clock: sync=none\n\
             floppya: 1_44={}, status=inserted\n\
             boot: floppy\n\
             port_e9_hack: enabled=1\n\
             log: {}\n\
             panic: action=fatal\n",
            disk.display(),
            log.display()
        );
        std::fs::write(&config, lines)?;
        // Debian's build has a debugger, which waits to be told to go on.
        std::fs::write(&commands, "continue\n")?;
        let (spent, output) = Spent::on(|| {
            let output = Command::new("timeout")
                .args(["300", "bochs", "-q", "-f"])
                .arg(&config)
                .arg("-rc")
                .arg(&commands)
                .env("TERM", "xterm")
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output()?;
            Ok(output.stdout)
        })?;
        let sum = checksum(&output).ok_or_else(|| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let panics: Vec<_> = log.lines().filter(|line| line.contains("PANIC")).collect();
            format!("Bochs printed no checksum: {}", panics.join("; "))
        })?;
        Ok((spent, sum))
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        // It lies among temporary files: nothing depends on its going.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Finds eight letters from A to P in a row.
fn checksum(text: &[u8]) -> Option<String> {
    let places = text.windows(8);
    let mut sums =
        places.filter(|letters| letters.iter().all(|letter| (b'A'..=b'P').contains(letter)));
    sums.next_back()
        .map(|sum| String::from_utf8_lossy(sum).into_owned())
}
