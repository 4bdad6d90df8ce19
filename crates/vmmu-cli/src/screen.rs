//! Standard output, shared by the guest's outputs.
//!
//! Key items: [`Screen`]; [`say`] and [`note`], for what is no guest's.

use std::io::{self, Write};

use crate::error::{Error, Result};
use crate::session::Output;
use crate::terminal;

/// One output's way to standard output.
#[derive(Debug)]
pub(crate) struct Screen {
    output: Output,
    line: Vec<u8>,
    /// In raw mode a line needs a carriage return of its own.
    end: &'static [u8],
}

impl Screen {
    pub(crate) fn new(output: Output) -> Self {
        let end: &[u8] = if terminal::is_interactive() {
            b"\r\n"
        } else {
            b"\n"
        };
        Self {
            output,
            line: Vec::new(),
            end,
        }
    }

    /// Shows bytes, now or when their line is complete.
    pub(crate) fn show(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.output {
            Output::Keep => Ok(()),
            Output::Show => write(bytes),
            Output::ShowLines => {
                self.line.extend_from_slice(bytes);
                let lines = self.complete();
                if lines.is_empty() {
                    Ok(())
                } else {
                    write(&lines)
                }
            }
        }
    }

    /// Shows what is left of a last line.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let mut line = core::mem::take(&mut self.line);
        line.extend_from_slice(self.end);
        write(&line)
    }

    fn complete(&mut self) -> Vec<u8> {
        let Some(last) = self.line.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.line.split_off(last + 1);
        let lines = core::mem::replace(&mut self.line, rest);
        let bare = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).to_vec();
        lines[..last]
            .split(|&byte| byte == b'\n')
            .flat_map(|line| [&bare(line), self.end].concat())
            .collect()
    }
}

/// Says something of our own on standard output.
///
/// # Errors
///
/// [`Error::OutputClosed`].
pub(crate) fn say(text: &str) -> Result<()> {
    write(text.as_bytes()).map_err(|_| Error::OutputClosed)
}

/// Says a line on standard error; if nobody takes it, nobody is left to be told.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "vmmu: {line}");
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

#[cfg(test)]
mod lines {
    use super::Screen;
    use crate::session::Output;

    #[test]
    fn only_complete_lines_leave_and_the_rest_waits() {
        let mut screen = Screen {
            output: Output::ShowLines,
            line: b"one\ntwo\r\nthr".to_vec(),
            end: b"\r\n",
        };
        assert_eq!(screen.complete(), b"one\r\ntwo\r\n");
        assert_eq!(screen.complete(), b"");
        screen.line.extend_from_slice(b"ee\n");
        assert_eq!(screen.complete(), b"three\r\n");
    }
}
