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

/// The debug console and the first serial port: every text goes to both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| {
            Port::DEBUG.write_u8(byte);
            write_serial(byte);
        });
        Ok(())
    }
}

/// Writes `byte` to the serial port once its transmitter is empty, or after a while in any case: a machine without
/// the port must not stop its guest.
fn write_serial(byte: u8) {
    const LINE_STATUS: Port = Port::COM1.register(5);
    const TRANSMITTER_EMPTY: u8 = 0x20;
    for _ in 0..10_000 {
        if LINE_STATUS.read_u8() & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    Port::COM1.write_u8(byte);
}
