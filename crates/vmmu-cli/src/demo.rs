//! `vmmu` without a subcommand: a small guest of the project's own on the software machine, under shadow and under nested paging.
//!
//! Key function: [`demo()`]. The guest is `vmmu-guest`'s `demo-guest`; its source begins with the story.
//!
//! | module | noun |
//! |---|---|
//! | [`phase`] | what the guest did in a phase, and what was counted meanwhile |
//! | [`story`] | the output |

pub mod phase;
pub mod story;

use std::io::Write;

use vmmu_machine::machine::{End, Machine, Paging, Record};

use crate::error::{Error, Result};
use crate::image::BareMetal;
use crate::progress::Progress;
use crate::screen::say;
use crate::workspace::Workspace;

/// The guest needs 64 MiB.
const MEMORY: u64 = 64 << 20;

/// What one run came to.
#[derive(Debug)]
pub struct Run {
    /// What the machine says.
    pub record: Record,
    /// What the guest said.
    pub text: String,
}

/// Runs the guest twice and tells what happened.
///
/// # Errors
///
/// Those of building the guest; [`Error::NoStatus`] and others when it does not end as it must.
pub fn demo() -> Result<u8> {
    let image = BareMetal::DemoGuest.build(&Workspace::find())?;
    let kernel = std::fs::read(&image).map_err(Error::file("read", &image))?;
    say(story::OPENING)?;
    let progress = Progress::quiet("running the guest under shadow paging");
    let shadow = run(kernel.clone(), Paging::Shadow)?;
    drop(progress);
    let progress = Progress::quiet("running the guest under nested paging");
    let nested = run(kernel, Paging::Nested)?;
    drop(progress);
    say(&story::tell(&shadow, &nested)?)?;
    Ok(0)
}

fn run(kernel: Vec<u8>, paging: Paging) -> Result<Run> {
    let (to, output) = output();
    let machine = Machine::new(kernel).memory(MEMORY).paging(paging).debug(to);
    let ready = machine.ready().map_err(|error| Error::Refused {
        text: error.to_string(),
    })?;
    let record = crate::software::watched(ready)?;
    let text = output();
    match &record.end {
        End::Exit(0) => Ok(Run { record, text }),
        End::TripleFault(report) => Err(Error::Crash {
            text: report.clone(),
        }),
        End::Broken(report) => Err(Error::Panic {
            text: report.clone(),
        }),
        other => Err(Error::NoStatus {
            reason: format!("{other:?}"),
            tail: format!("; it said:\n{text}"),
        }),
    }
}

/// Returns a writer, and a function that returns what was written.
fn output() -> (impl Write + Send + 'static, impl FnOnce() -> String) {
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let reader = std::sync::Arc::clone(&kept);
    let bytes = move || {
        let kept = reader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    };
    (Kept(kept), bytes)
}

/// Keeps what is written.
struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kept = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
