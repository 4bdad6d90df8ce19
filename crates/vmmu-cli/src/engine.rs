//! What runs a guest, seen from a run: something that is started, has two lines, tells what happens, and ends.
//!
//! Key types: [`Engine`], [`Running`], [`Started`], [`Event`]. [`crate::qemu`] is one engine;
//! [`crate::session`] drives either from start to end.
//!
//! Invariants:
//! 1. An engine that was started tells its end: by a final [`Message`], or by [`Running::ended`].
//! 2. Dropping [`Running`] ends the guest, and closes the far side of every line.

use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use crate::channel::Message;
use crate::error::Result;

/// What a run is told while it goes on.
#[derive(Debug)]
pub enum Event {
    /// The hypervisor said something.
    Message(Message),
    /// The person left.
    Leave,
    /// Standard output doesn't take any more.
    OutputClosed,
}

/// A machine with its guest, ready to be started.
pub trait Engine {
    /// It, once it runs.
    type Running: Running;

    /// Starts the machine, which from then on tells `events` what its hypervisor says.
    ///
    /// # Errors
    ///
    /// Why it can't be started.
    fn start(self, events: &Sender<Event>) -> Result<Started<Self::Running>>;
}

/// A machine that was just started.
#[derive(Debug)]
pub struct Started<R> {
    /// The machine.
    pub running: R,
    /// The guest's console, both ways.
    pub console: UnixStream,
    /// What the guest writes to port 0xE9.
    pub debug: UnixStream,
    /// The thread that tells what the hypervisor says; it ends with the machine.
    pub teller: JoinHandle<()>,
}

/// A machine that runs.
pub trait Running {
    /// Returns how its process ended, if it did.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::System`] if the system doesn't tell.
    fn ended(&mut self) -> Result<Option<ExitStatus>>;

    /// Ends it, and waits for that.
    fn stop(&mut self);

    /// Returns its last complaint, once, after its end.
    fn last_words(&mut self) -> Option<String>;
}
