//! Running an image under QEMU's interpreter.
//!
//! Key function: [`run`]. The guest's memory is a file, which is read when it is over.

use core::time::Duration;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::image::Image;
use crate::layout::{EXIT_PORT, MEMORY};
use crate::record::{self, Run};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// Why QEMU gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// It could not be started, or its files not be made.
    #[error("could not run {QEMU}: {0}")]
    Start(#[from] io::Error),
    /// It ended as it should not.
    #[error("{QEMU} failed: {0}")]
    Failed(String),
}

/// Runs an image; returns what its programs left behind, all of them unless the guest hangs.
pub(crate) fn run(image: &Image, limit: Duration) -> Result<Vec<Run>, QemuError> {
    let folder = tempfile::tempdir()?;
    let (ram, rom) = (folder.path().join("ram"), folder.path().join("rom"));
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&ram)?;
    file.set_len(MEMORY)?;
    for (at, bytes) in &image.memory {
        file.write_all_at(bytes, *at)?;
    }
    std::fs::write(&rom, &image.rom)?;
    let mut child = start(&ram, &rom)?;
    let ended = wait(&mut child, limit);
    if !matches!(ended, Ok(Ended::ByItself)) {
        child.kill()?;
        child.wait()?;
    }
    ended?;
    Ok(record::read(&|at, bytes| {
        // Beyond the end there is nothing, as in memory that was never written.
        if file.read_exact_at(bytes, at).is_err() {
            bytes.fill(0);
        }
    }))
}

fn start(ram: &Path, rom: &Path) -> io::Result<Child> {
    let mut command = Command::new(QEMU);
    command
        .args(["-accel", "tcg,thread=single", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-cpu", "EPYC,-svm,+umip"])
        .arg("-machine")
        .arg("pc,memory-backend=ram")
        .arg("-m")
        .arg(format!("{}M", MEMORY >> 20))
        .arg("-object")
        .arg(format!(
            "memory-backend-file,id=ram,share=on,size={}M,mem-path={}",
            MEMORY >> 20,
            ram.display()
        ))
        .arg("-bios")
        .arg(rom)
        .arg("-device")
        .arg(format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn()
}

/// Whether a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    ByItself,
    NotYet,
}

/// Waits for the end. The guest's own exit is status 1; a shutdown without reboot is 0, and shows in the records.
fn wait(child: &mut Child, limit: Duration) -> Result<Ended, QemuError> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if matches!(status.code(), Some(0 | 1)) {
                return Ok(Ended::ByItself);
            }
            let mut text = String::new();
            if let Some(mut errors) = child.stderr.take() {
                io::Read::read_to_string(&mut errors, &mut text)?;
            }
            return Err(QemuError::Failed(format!("{status}: {text}")));
        }
        if begin.elapsed() > limit {
            return Ok(Ended::NotYet);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
