//! The first serial port: a 16550A (vm-superio), with a queue in front of its receive buffer.
//!
//! Invariant: the queue holds bytes only while the receive buffer is full or looped back.

use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};

use super::places::SERIAL;

/// Where the port's eight registers are.
pub(super) const BASE: u16 = SERIAL;
/// The last of them.
pub(super) const LAST: u16 = BASE + 7;
/// Receive and transmit register.
const DATA: u8 = 0;
/// Interrupt identification register.
const IDENTIFICATION: u8 = 2;
/// Modem control register.
const MODEM_CONTROL: u8 = 4;

/// What an access did to the interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// Nothing.
    Same,
    /// A new interrupt: the line has a rising edge and stays high.
    Rises,
    /// The guest has read why: the line is low.
    Falls,
}

/// Notes that the UART wants an interrupt.
#[derive(Debug, Default, Clone)]
struct Wanted(Arc<AtomicBool>);

impl Trigger for Wanted {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The port.
pub(super) struct Serial {
    uart: Uart<Wanted, NoEvents, Box<dyn Write + Send>>,
    wanted: Wanted,
    queue: VecDeque<u8>,
}

impl core::fmt::Debug for Serial {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Serial")
            .field("queue", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// Makes the port; what the guest sends goes to `output`.
    pub(super) fn new(output: Box<dyn Write + Send>) -> Self {
        let wanted = Wanted::default();
        Self {
            uart: Uart::new(wanted.clone(), output),
            wanted,
            queue: VecDeque::new(),
        }
    }

    /// Reads a register, 0 to 7.
    pub(super) fn read(&mut self, register: u8) -> (u8, Line) {
        let value = self.uart.read(register);
        if register == DATA && !self.queue.is_empty() {
            self.refill();
        }
        let line = match self.line() {
            Line::Same if register == IDENTIFICATION => Line::Falls,
            line => line,
        };
        (value, line)
    }

    /// Writes a register. An output that fails loses its byte, as a line without a receiver does.
    pub(super) fn write(&mut self, register: u8, value: u8) -> Line {
        let _lost = self.uart.write(register, value);
        if register == MODEM_CONTROL {
            self.refill();
        }
        self.line()
    }

    /// Receives bytes; none is lost.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Line {
        self.queue.extend(bytes);
        self.refill();
        self.line()
    }

    fn refill(&mut self) {
        let (front, _) = self.queue.as_slices();
        let moved = self.uart.enqueue_raw_bytes(front).unwrap_or(0);
        self.queue.drain(..moved);
    }

    fn line(&self) -> Line {
        if self.wanted.0.swap(false, Ordering::Relaxed) {
            Line::Rises
        } else {
            Line::Same
        }
    }
}

#[cfg(test)]
mod a_16550 {
    use super::{Line, Serial};

    fn serial() -> Serial {
        Serial::new(Box::new(std::io::sink()))
    }

    #[test]
    fn interrupts_for_input_and_lets_go_when_told_why() {
        let mut serial = serial();
        assert_eq!(serial.receive(b"x"), Line::Same);
        assert_eq!(serial.write(1, 1), Line::Rises);
        assert_eq!(serial.read(2), (0xc4, Line::Falls));
        assert_eq!(serial.read(0), (b'x', Line::Same));
        assert_eq!(serial.read(5).0 & 1, 0);
    }

    #[test]
    fn interrupts_when_the_transmitter_is_empty() {
        let mut serial = serial();
        assert_eq!(serial.write(1, 2), Line::Rises);
        assert_eq!(serial.read(2), (0xc2, Line::Falls));
        assert_eq!(serial.write(0, b'a'), Line::Rises);
    }

    #[test]
    fn keeps_what_does_not_fit_its_buffer() {
        let mut serial = serial();
        let sent: Vec<u8> = (0..200).collect();
        serial.receive(&sent);
        let received: Vec<u8> = (0..200).map(|_| serial.read(0).0).collect();
        assert_eq!(received, sent);
        assert_eq!(serial.read(5).0 & 1, 0);
    }

    #[test]
    fn keeps_what_comes_while_it_is_looped_back() {
        let mut serial = serial();
        serial.write(4, 0x10);
        serial.receive(b"z");
        assert_eq!(serial.read(5).0 & 1, 0);
        serial.write(4, 0);
        assert_eq!(serial.read(0).0, b'z');
    }
}
