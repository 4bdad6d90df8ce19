//! One run of a machine from start to end.
//!
//! Key types: [`Session`] (what to show, how long), [`Record`] (what happened), [`End`].
//! [`crate::run`] turns a record into a status, [`mod@crate::bench`] into figures.
//!
//! Invariants:
//! 1. Each line of the machine is read by a thread of its own, always, so that the machine never blocks on us.
//! 2. Every way out ends the machine and restores the terminal: both happen on drop.
//! 3. The hypervisor's final message decides how a run ended; QEMU's status only where there is none.

use core::time::Duration;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::Value;

use crate::channel::{Mark, Message};
use crate::engine::{Engine, Event, Running, Started};
use crate::error::{Error, Result};
use crate::input::{self, Keys};
use crate::number::Limit;
use crate::screen::{self, Screen};
use crate::signals;
use crate::tail::Tail;
use crate::terminal::RawMode;

/// What is done with what a line brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It goes to standard output as it comes (the last of it is kept as well).
    Show,
    /// It goes to standard output in whole lines, because another output goes there as well.
    ShowLines,
    /// It is kept.
    Keep,
}

/// How a run is conducted.
#[derive(Debug)]
pub struct Session {
    /// The guest's console.
    pub console: Output,
    /// Port 0xE9.
    pub debug: Output,
    /// Where keys come from.
    pub keys: Keys,
    /// The time limit.
    pub limit: Option<Limit>,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The hypervisor said so.
    Said(Message),
    /// QEMU ended, and no hypervisor said why.
    Qemu(ExitStatus),
}

/// What happened in a run.
#[derive(Debug)]
pub struct Record {
    /// How it ended, if nothing cut it short.
    pub end: End,
    /// What cut it short.
    pub cut: Option<Error>,
    /// The hypervisor's counters.
    pub stats: Option<Value>,
    /// The bench guest's marks.
    pub marks: Vec<Mark>,
    /// What came from port 0xE9.
    pub debug: Tail,
    /// The end of what came from the console.
    pub console: Tail,
    /// From the machine's start to its end.
    pub wall: Duration,
    /// QEMU's last line on standard error, warnings apart.
    pub last_words: Option<String>,
}

impl Record {
    /// Returns the record of a run that came to its own end.
    ///
    /// # Errors
    ///
    /// What cut it short.
    pub fn whole(mut self) -> Result<Self> {
        match self.cut.take() {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

const POLL: Duration = Duration::from_millis(20);
/// How often it is looked whether a line was read to its end.
const LOOK: Duration = Duration::from_millis(1);
/// How long what a stopped machine said last may take to standard output, which perhaps nobody reads.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the machine may live on after the hypervisor's final message.
const LINGER: Duration = Duration::from_secs(5);

impl Session {
    /// Starts the machine and stays with it until it ends. What cuts a run short stands in its record: [`Error::Timeout`], [`Error::Interrupted`],
    /// [`Error::OutputClosed`].
    ///
    /// # Errors
    ///
    /// Those of [`Engine::start`].
    pub fn run(&self, machine: impl Engine) -> Result<Record> {
        let start = Instant::now();
        let (sender, events) = mpsc::channel();
        let Started {
            mut running,
            console,
            debug,
            teller,
        } = machine.start(&sender)?;
        let raw = match self.keys {
            Keys::None => None,
            Keys::Shell | Keys::Any => RawMode::enter(),
        };
        let readers = Readers::start(self, console, debug, &sender)?;
        drop(sender);
        let mut seen = Seen::default();
        let stopped = self.watch(&mut running, &events, start, &mut seen);
        running.stop();
        // A teller that panicked has told nothing more.
        let _ = teller.join();
        let (console, debug) = readers.join(stopped.is_err());
        drop(raw);
        let stopped = stopped.and_then(|status| signals::check().map(|()| status));
        let (status, mut cut) = match stopped {
            Ok(status) => (status, None),
            Err(error) => (ExitStatus::default(), Some(error)),
        };
        while let Ok(event) = events.try_recv() {
            if let Err(error) = seen.take(event) {
                cut.get_or_insert(error);
            }
        }
        if let Some(Error::Timeout { tail, .. }) = &mut cut {
            *tail = self.hidden_tail(&console);
        }
        let end = match seen.last.take() {
            Some(message) => End::Said(message),
            None => End::Qemu(status),
        };
        let last_words = running.last_words();
        Ok(Record {
            end,
            cut,
            stats: seen.stats,
            marks: seen.marks,
            debug,
            console,
            wall: start.elapsed(),
            last_words,
        })
    }

    /// Returns the console's last lines for a message, unless they were shown already.
    #[must_use]
    pub fn hidden_tail(&self, console: &Tail) -> String {
        if self.console != Output::Keep {
            String::new()
        } else {
            console.quoted()
        }
    }

    fn watch(
        &self,
        running: &mut impl Running,
        events: &Receiver<Event>,
        start: Instant,
        seen: &mut Seen,
    ) -> Result<ExitStatus> {
        let mut finished = None;
        loop {
            match events.recv_timeout(POLL) {
                Ok(event) => seen.take(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
            }
            if let Some(status) = running.ended()? {
                return Ok(status);
            }
            signals::check()?;
            if let Some(limit) = self.limit
                && start.elapsed() > limit.duration()
            {
                return Err(Error::Timeout {
                    seconds: limit.duration().as_secs(),
                    tail: String::new(),
                });
            }
            if seen.last.is_some() && finished.get_or_insert_with(Instant::now).elapsed() > LINGER {
                return Ok(ExitStatus::default());
            }
        }
    }
}

/// What was heard so far.
#[derive(Debug, Default)]
struct Seen {
    last: Option<Message>,
    stats: Option<Value>,
    marks: Vec<Mark>,
}

impl Seen {
    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Leave => return Err(Error::Interrupted { by: "Ctrl-A X" }),
            Event::OutputClosed => return Err(Error::OutputClosed),
            Event::Message(Message::Stats(stats)) => self.stats = Some(stats),
            Event::Message(Message::Mark(mark)) => self.marks.push(mark),
            Event::Message(message) if message.is_final() => self.last = Some(message),
            Event::Message(Message::Garbled(line)) if !line.trim().is_empty() => {
                screen::note(&format!(
                    "the hypervisor said something unforeseen: {line}\r"
                ));
            }
            Event::Message(_) => {}
        }
        Ok(())
    }
}

/// The threads that read the machine's lines.
struct Readers {
    console: JoinHandle<Tail>,
    debug: JoinHandle<Tail>,
}

impl Readers {
    fn start(
        session: &Session,
        console: UnixStream,
        debug: UnixStream,
        events: &Sender<Event>,
    ) -> Result<Self> {
        let (ready, shell) = mpsc::channel();
        let keyboard = console
            .try_clone()
            .map_err(Error::system("copy a socket"))?;
        input::forward(session.keys, keyboard, shell, events.clone());
        let (show_console, show_debug) = (session.console, session.debug);
        let console_events = events.clone();
        let debug_events = events.clone();
        Ok(Self {
            console: thread::spawn(move || {
                let mut watch = input::ReadyWatch::new(ready);
                copy(
                    console,
                    show_console,
                    Tail::lines(),
                    &console_events,
                    |bytes| watch.feed(bytes),
                )
            }),
            debug: thread::spawn(move || {
                let kept = if show_debug == Output::Keep {
                    Tail::all()
                } else {
                    Tail::lines()
                };
                copy(debug, show_debug, kept, &debug_events, |_| ())
            }),
        })
    }

    /// Waits until the machine's side of every line is closed and all is read; of a run that was stopped, or when a signal comes, only [`LAST_WORDS`] long.
    fn join(self, is_stopped: bool) -> (Tail, Tail) {
        let begin = Instant::now();
        let join = |reader: JoinHandle<Tail>| {
            while !reader.is_finished() {
                if (is_stopped || signals::raised()) && begin.elapsed() > LAST_WORDS {
                    return Tail::lines();
                }
                thread::sleep(LOOK);
            }
            // A reader that panicked kept nothing.
            reader.join().unwrap_or_else(|_| Tail::lines())
        };
        (join(self.console), join(self.debug))
    }
}

fn copy(
    mut from: UnixStream,
    output: Output,
    mut kept: Tail,
    events: &Sender<Event>,
    mut look: impl FnMut(&[u8]),
) -> Tail {
    let mut buffer = [0; 4096];
    let mut screen = Screen::new(output);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..length];
        kept.push(bytes);
        look(bytes);
        if screen.show(bytes).is_err() {
            screen = Screen::new(Output::Keep);
            // The receiver is gone only when the run is over anyway.
            let _ = events.send(Event::OutputClosed);
        }
    }
    // As above; a last line without its end is still a line.
    let _ = screen.end();
    kept
}
