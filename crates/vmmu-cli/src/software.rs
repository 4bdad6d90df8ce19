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

use core::num::{NonZeroU8, NonZeroU64};
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

use vmmu::paging::PhysBits;
use vmmu_machine::machine::{self, End, Handle, Hidden, Ready, Record};

use crate::args::{Feature, Nature, Paging, RunArgs, Tables};
use crate::channel::Message;
use crate::engine::{Engine, Event, Running, Started};
use crate::error::{Error, Result};
use crate::run::Guest;
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

impl Machine {
    /// Describes what the options ask for.
    #[must_use]
    pub fn describe(args: &RunArgs, guest: Guest) -> Self {
        let paging = match args.paging {
            Paging::Nested => machine::Paging::Nested,
            Paging::Shadow | Paging::Native => machine::Paging::Shadow,
        };
        let nature = match args.nature {
            None | Some(Nature::Plain) => machine::Nature::Plain,
            Some(Nature::Hostile) => machine::Nature::Hostile,
            Some(Nature::Deterministic) => machine::Nature::Deterministic,
        };
        let hidden = args
            .hide
            .iter()
            .fold(Hidden::empty(), |all, one| all | hidden(*one));
        let mut description = machine::Machine::new(guest.kernel.bytes)
            .memory(args.memory.bytes())
            .command_line(guest.command_line)
            .paging(paging)
            .nested_tables(match args.tables {
                None | Some(Tables::Npt) => machine::NestedTables::Npt,
                Some(Tables::Ept) => machine::NestedTables::Ept,
            })
            .nature(nature)
            .seed(args.seed.unwrap_or(1))
            .cpus(NonZeroU8::new(args.cpus).unwrap_or(NonZeroU8::MIN))
            .hide(hidden);
        if args.check {
            description = description.check();
        }
        if nature != machine::Nature::Plain {
            description = description.reclaim();
        }
        if let Some(module) = guest.module {
            description = description.module(module);
        }
        if let Some(bits) = args.phys_bits.and_then(PhysBits::new) {
            description = description.phys_bits(bits);
        }
        if let Some(pages) = args.max_pages {
            description = description.max_pages(pages);
        }
        if let Some(every) = args.audit.and_then(|every| NonZeroU64::new(every.into())) {
            description = description.audit(every);
        }
        Self {
            description,
            kernel: guest.kernel.path,
        }
    }
}

const fn hidden(feature: Feature) -> Hidden {
    match feature {
        Feature::Smep => Hidden::SMEP,
        Feature::Smap => Hidden::SMAP,
        Feature::Nx => Hidden::NX,
        // The software machine never shows these.
        Feature::Pku | Feature::La57 => Hidden::empty(),
        Feature::Pdpe1gb => Hidden::PDPE1GB,
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Run {
    handle: Handle,
    is_over: Arc<AtomicBool>,
    /// The guest's ends of its lines.
    lines: [UnixStream; 2],
}

impl Engine for Machine {
    type Running = Run;

    fn start(self, events: &Sender<Event>) -> Result<Started<Run>> {
        let (console, guest_console) = pair()?;
        let (debug, guest_debug) = pair()?;
        let serial = copy(&guest_console)?;
        let ends = [copy(&guest_console)?, copy(&guest_debug)?];
        let lines = Lines(Arc::new(Mutex::new(LineWriter::new(guest_debug))));
        let described = self.description.serial(serial).debug(lines.clone());
        let ready = described
            .ready()
            .map_err(|error| refused(error, &self.kernel))?;
        let running = Run {
            handle: ready.handle(),
            is_over: Arc::default(),
            lines: ends,
        };
        let keys = copy(&guest_console)?;
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
        // A processor may wait for room in a line that nobody reads any more.
        for line in &self.lines {
            let _ = line.shutdown(Shutdown::Both);
        }
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

fn copy(line: &UnixStream) -> Result<UnixStream> {
    line.try_clone().map_err(Error::system("copy a socket"))
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
        End::PowerOff => Some(Message::PowerOff),
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
