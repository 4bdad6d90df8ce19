//! Text output on the debug console and on the first serial port.

use core::fmt;

use crate::machine::Port;

/// The debug console: each byte is one port write, nothing to wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugConsole;

impl fmt::Write for DebugConsole {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| Port::DEBUG.write_u8(byte));
        Ok(())
    }
}
