//! From standard input to the guest's console.
//!
//! Key types: [`Keys`], `ReadyWatch`.
//!
//! Invariants:
//! 1. On a terminal every key goes to the guest at once, but Ctrl-A X leaves.
//! 2. A pipe or file is held back until the guest's shell reads (what a serial port gets before is lost),
//!    and its end is passed on as Ctrl-D until the shell takes it.

use core::time::Duration;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use crate::engine::Event;
use crate::initramfs::SHELL_READY;
use crate::terminal::{Escape, Typed, is_interactive};

/// Where the guest's keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// There are none.
    None,
    /// Standard input, for the shell of `run linux`.
    Shell,
    /// Standard input, for a guest of unknown kind.
    Any,
}

const CTRL_D: &[u8] = &[4];
const AGAIN: Duration = Duration::from_secs(1);

/// Looks for the line that says the shell is ready.
#[derive(Debug)]
pub(crate) struct ReadyWatch {
    recent: Vec<u8>,
    ready: Option<Sender<()>>,
}

impl ReadyWatch {
    pub(crate) const fn new(ready: Sender<()>) -> Self {
        Self {
            recent: Vec::new(),
            ready: Some(ready),
        }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let Some(ready) = &self.ready else { return };
        self.recent.extend_from_slice(bytes);
        if self
            .recent
            .windows(SHELL_READY.len())
            .any(|w| w == SHELL_READY.as_bytes())
        {
            // Nobody listens when keys come from a terminal.
            let _ = ready.send(());
            self.ready = None;
            self.recent = Vec::new();
        } else {
            let keep = self.recent.len().min(SHELL_READY.len());
            self.recent.drain(..self.recent.len() - keep);
        }
    }
}

/// Starts the thread that reads standard input; it ends with the process.
pub(crate) fn forward(keys: Keys, to: UnixStream, shell: Receiver<()>, events: Sender<Event>) {
    match keys {
        Keys::None => {}
        _ if is_interactive() => {
            thread::spawn(move || from_terminal(to, &events));
        }
        Keys::Shell => {
            thread::spawn(move || {
                if shell.recv().is_ok() {
                    from_pipe(to, Keys::Shell);
                }
            });
        }
        Keys::Any => {
            thread::spawn(move || from_pipe(to, Keys::Any));
        }
    }
}

fn from_terminal(mut to: UnixStream, events: &Sender<Event>) {
    let mut escape = Escape::default();
    let mut buffer = [0; 256];
    while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
        let (bytes, leave) = match escape.feed(&buffer[..length]) {
            Typed::Bytes(bytes) => (bytes, false),
            Typed::Leave(bytes) => (bytes, true),
        };
        if to.write_all(&bytes).is_err() {
            return;
        }
        if leave {
            // The run may just be over.
            let _ = events.send(Event::Leave);
            return;
        }
    }
}

fn from_pipe(mut to: UnixStream, keys: Keys) {
    let mut buffer = [0; 256];
    while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    while keys == Keys::Shell && to.write_all(CTRL_D).is_ok() {
        thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod readiness {
    use super::{ReadyWatch, SHELL_READY};
    use std::sync::mpsc;

    #[test]
    fn the_line_is_found_however_it_is_cut() {
        for cut in 0..=SHELL_READY.len() {
            let (sender, receiver) = mpsc::channel();
            let mut watch = ReadyWatch::new(sender);
            watch.feed(b"boot noise ");
            watch.feed(&SHELL_READY.as_bytes()[..cut]);
            watch.feed(&SHELL_READY.as_bytes()[cut..]);
            assert!(receiver.try_recv().is_ok(), "{cut}");
        }
    }
}
