//! The software machine as an engine: a guest in this very process.
//!
//! Key types: [`Machine`] (what to start), [`Run`] (the running machine).
//!
//! The machine's lines are socket pairs, as QEMU's are sockets, so that a session needs to know nothing of the difference. A thread runs the machine and tells how it
//! ended; another passes keys on.
//!
//! Invariants:
//! 1. When the machine has ended, the far side of the console is shut down, so that nobody waits for more.
//! 2. A panic of the machine's is told as what it is: a bug.

use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io::{LineWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::catch_unwind;
use std::process::ExitStatus;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use vmmu_machine::machine::{self, End, Handle, Ready, Record};

use crate::channel::Message;
use crate::engine::{Engine, Event, Running, Started};
use crate::error::{Error, Result};
use crate::{signals, stats};

/// How often a machine that runs is looked at.
const POLL: Duration = Duration::from_millis(2);

/// A machine to start.
#[derive(Debug)]
pub struct Machine {
    /// Its description, without outputs.
    pub description: machine::Machine,
    /// Where its kernel came from, for messages.
    pub kernel: std::path::PathBuf,
}

/// A running machine.
#[derive(Debug)]
pub struct Run {
    handle: Handle,
    is_over: Arc<AtomicBool>,
}

impl Engine for Machine {
    type Running = Run;

    fn start(self, events: &Sender<Event>) -> Result<Started<Run>> {
        let (console, guest_console) = pair()?;
        let (debug, guest_debug) = pair()?;
        let serial = guest_console
            .try_clone()
            .map_err(Error::system("copy a socket"))?;
        let lines = Lines(Arc::new(Mutex::new(LineWriter::new(guest_debug))));
        let described = self.description.serial(serial).debug(lines.clone());
        let ready = described
            .ready()
            .map_err(|error| refused(error, &self.kernel))?;
        let running = Run {
            handle: ready.handle(),
            is_over: Arc::default(),
        };
        let keys = guest_console
            .try_clone()
            .map_err(Error::system("copy a socket"))?;
        let handle = running.handle.clone();
        thread::spawn(move || pass_keys(keys, &handle));
        let (events, is_over) = (events.clone(), Arc::clone(&running.is_over));
        let teller = thread::spawn(move || {
            for message in run(ready) {
                // The receiver is gone only when the run is over anyway.
                let _ = events.send(Event::Message(message));
            }
            // Both fail only if the session has closed its side already. Handles may keep the machine, and so its ends of the lines.
            let _ = guest_console.shutdown(Shutdown::Both);
            lines.end();
            is_over.store(true, Ordering::Release);
        });
        Ok(Started {
            running,
            console,
            debug,
            teller,
        })
    }
}

impl Running for Run {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let is_over = self.is_over.load(Ordering::Acquire);
        Ok(is_over.then(ExitStatus::default))
    }

    fn stop(&mut self) {
        self.handle.stop();
    }

    fn last_words(&mut self) -> Option<String> {
        None
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The debug port's output: whole lines, and at the end what is left of the last.
#[derive(Clone)]
struct Lines(Arc<Mutex<LineWriter<UnixStream>>>);

impl Lines {
    fn writer(&self) -> MutexGuard<'_, LineWriter<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut writer = self.writer();
        // As for the console.
        let _ = writer.flush();
        let _ = writer.get_ref().shutdown(Shutdown::Both);
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer().flush()
    }
}

/// Runs a machine to its end, or until a signal comes.
///
/// # Errors
///
/// [`Error::Interrupted`]; [`Error::Panic`] for a panic of the machine's.
pub fn watched(ready: Ready) -> Result<Record> {
    let handle = ready.handle();
    let running = thread::spawn(move || ready.run());
    while !running.is_finished() {
        if signals::raised() {
            handle.stop();
        }
        thread::sleep(POLL);
    }
    signals::check()?;
    running.join().map_err(|panic| Error::Panic {
        text: words(&*panic),
    })
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().map_err(Error::system("open a socket"))
}

/// Passes what is typed on to the guest's serial port.
fn pass_keys(mut from: UnixStream, to: &Handle) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        to.serial_input(&buffer[..length]);
    }
}

/// Runs the machine; returns what is to be told.
fn run(ready: Ready) -> Vec<Message> {
    // Nothing of the machine is used after a panic.
    match catch_unwind(AssertUnwindSafe(|| ready.run())) {
        Ok(record) => told(record),
        Err(panic) => vec![Message::Panic {
            text: words(&*panic),
        }],
    }
}

/// Returns a panic's message.
fn words(panic: &(dyn core::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

fn told(record: Record) -> Vec<Message> {
    let mut messages = vec![Message::Stats(stats::of_software(&record))];
    let shutdown = |reason: &str| Message::Shutdown {
        reason: reason.to_owned(),
    };
    let last = match record.end {
        End::Exit(value) => Some(Message::Exit { value }),
        End::PowerOff => Some(shutdown("it powered off")),
        End::Reset => Some(shutdown("it reset the machine")),
        End::Halted => Some(shutdown("every processor halted with interrupts off")),
        End::TripleFault(text) => Some(Message::Crash { text }),
        End::Refused(text) => Some(Message::Refused { text }),
        End::Broken(text) => Some(Message::Panic { text }),
        // Whoever stopped it knows why.
        End::Timeout | End::Stopped => None,
        other => Some(Message::Panic {
            text: format!("an end without a name: {other:?}"),
        }),
    };
    messages.extend(last);
    messages
}

fn refused(error: machine::Error, kernel: &std::path::Path) -> Error {
    match error {
        machine::Error::Load(reason) => Error::NotAKernel {
            path: kernel.to_owned(),
            reason: reason.to_string(),
        },
        machine::Error::NoMemory(reason) => Error::System {
            action: "reserve the machine's memory",
            source: std::io::Error::other(reason.to_string()),
        },
        other => Error::Refused {
            text: other.to_string(),
        },
    }
}
