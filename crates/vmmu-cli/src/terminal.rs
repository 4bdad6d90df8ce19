//! The person's terminal: raw mode while a guest owns it, and the keys that leave.
//!
//! Key types: [`RawMode`], [`Escape`].
//!
//! Invariants:
//! 1. Raw mode ends when [`RawMode`] is dropped, on every way out that unwinds or returns.
//! 2. [`Escape`] passes on every byte but the escape itself, in order.

use std::io::IsTerminal;

use rustix::termios::{self, OptionalActions, Termios};

/// The terminal in raw mode; dropping it restores what was before.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters raw mode if standard input is a terminal.
    #[must_use]
    pub fn enter() -> Option<Self> {
        if !is_interactive() {
            return None;
        }
        let before = termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing is left to do if the terminal went away.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Tells whether a person types and reads here.
#[must_use]
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Returns the terminal's rows and columns.
#[must_use]
pub fn window() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// What typed bytes amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Bytes for the guest, then the end: Ctrl-A X was typed.
    Leave(Vec<u8>),
}

const CTRL_A: u8 = 1;

/// Finds the escape in what is typed: Ctrl-A X leaves, Ctrl-A Ctrl-A is one Ctrl-A.
#[derive(Debug, Default)]
pub struct Escape {
    pending: Option<()>,
}

impl Escape {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            match (self.pending.take(), byte) {
                (None, CTRL_A) => self.pending = Some(()),
                (None, _) | (Some(()), CTRL_A) => out.push(byte),
                (Some(()), b'x' | b'X') => return Typed::Leave(out),
                (Some(()), _) => out.extend([CTRL_A, byte]),
            }
        }
        Typed::Bytes(out)
    }
}

#[cfg(test)]
mod escape_keys {
    use super::{Escape, Typed};

    #[test]
    fn ordinary_bytes_pass_and_ctrl_c_is_one_of_them() {
        assert_eq!(
            Escape::default().feed(b"ls\x03\n"),
            Typed::Bytes(b"ls\x03\n".to_vec())
        );
    }

    #[test]
    fn ctrl_a_x_leaves_even_when_it_comes_in_two_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"ab\x01"), Typed::Bytes(b"ab".to_vec()));
        assert_eq!(escape.feed(b"xcd"), Typed::Leave(vec![]));
    }

    #[test]
    fn ctrl_a_before_other_keys_reaches_the_guest() {
        assert_eq!(
            Escape::default().feed(b"\x01\x01\x01b"),
            Typed::Bytes(b"\x01\x01b".to_vec())
        );
    }
}
