//! The first serial port: a 16550A (PC16550D data sheet), with a queue of input in front of it.
//!
//! Registers, receive buffer, loop-back and output are vm-superio's. Its interrupts are events; here they are derived as the
//! level that the chip's pin has: received data while there is any, and the empty transmitter until it was told.
//!
//! Invariants:
//! 1. The queue holds bytes only while the receive buffer is full or looped back.
//! 2. Nothing that was sent to the guest is lost: clearing the buffers clears nothing.

use core::convert::Infallible;
use std::collections::VecDeque;
use std::io::Write;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};

use super::places::SERIAL;

/// Where the port's eight registers are.
pub(super) const BASE: u16 = SERIAL;
/// The last of them.
pub(super) const LAST: u16 = BASE + 7;

/// Offsets of registers.
mod register {
    /// Received and transmitted bytes.
    pub(super) const DATA: u8 = 0;
    pub(super) const INTERRUPT_ENABLE: u8 = 1;
    /// Interrupt identification when read, FIFO control when written.
    pub(super) const IDENTIFICATION: u8 = 2;
    pub(super) const LINE_CONTROL: u8 = 3;
    pub(super) const MODEM_CONTROL: u8 = 4;
    pub(super) const LINE_STATUS: u8 = 5;
}

/// Line control: the first two registers are the divisor.
const DIVISOR: u8 = 0x80;
/// Line status: a byte was received.
const RECEIVED: u8 = 0x01;
/// Interrupt enable.
const ON_RECEIVED: u8 = 0x01;
const ON_EMPTY: u8 = 0x02;
/// FIFO control: there is one.
const FIFO: u8 = 0x01;
/// Interrupt identification: the same.
const HAS_FIFO: u8 = 0xc0;
/// Modem control: OUT2, which lets interrupts pass on a PC, and the loop, which cuts it off.
const OUT2: u8 = 0x08;
const LOOP: u8 = 0x10;

/// What an access did to the interrupt request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// Nothing.
    Same,
    /// It has this level now.
    Level(bool),
    /// It was high, fell, and rose again.
    Pulse,
}

/// vm-superio's events, which aren't used.
#[derive(Clone, Copy, Debug)]
struct Ignored;

impl Trigger for Ignored {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The port.
pub(super) struct Serial {
    uart: Uart<Ignored, NoEvents, Box<dyn Write + Send>>,
    queue: VecDeque<u8>,
    enabled: u8,
    has_fifo: bool,
    /// That the transmitter is empty is still to be told.
    empty: bool,
    /// The level that was last answered.
    level: bool,
}

impl core::fmt::Debug for Serial {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Serial")
            .field("enabled", &self.enabled)
            .field("queue", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// Makes the port; what the guest sends goes to `output`.
    pub(super) fn new(output: Box<dyn Write + Send>) -> Self {
        Self {
            uart: Uart::new(Ignored, output),
            queue: VecDeque::new(),
            enabled: 0,
            has_fifo: false,
            empty: false,
            level: false,
        }
    }

    /// Reads a register, 0 to 7.
    pub(super) fn read(&mut self, register: u8) -> (u8, Line) {
        let value = match register {
            register::IDENTIFICATION => self.identify(),
            register::DATA => self.uart.read(register),
            // Reading the others changes nothing.
            _ => return (self.uart.read(register), Line::Same),
        };
        // A buffer that is empty for a moment lets the line fall, so that each byte is an edge without a FIFO.
        let fell = self.level && !self.pin();
        self.refill();
        match self.line() {
            Line::Same if fell => (value, Line::Pulse),
            line => (value, line),
        }
    }

    /// Tells why there is an interrupt: the reason of the highest priority (table IV of the data sheet).
    fn identify(&mut self) -> u8 {
        let fifo = if self.has_fifo { HAS_FIFO } else { 0 };
        fifo | if self.has_received() && self.enabled & ON_RECEIVED != 0 {
            0x04
        } else if self.enabled & ON_EMPTY != 0 && core::mem::take(&mut self.empty) {
            0x02
        } else {
            0x01
        }
    }

    /// Writes a register. An output that fails loses its byte, as a line without a receiver does.
    pub(super) fn write(&mut self, register: u8, value: u8) -> Line {
        let _lost = self.uart.write(register, value);
        let divisor = self.uart.read(register::LINE_CONTROL) & DIVISOR != 0;
        match register {
            // The byte is sent at once.
            register::DATA if !divisor => self.empty = true,
            register::INTERRUPT_ENABLE if !divisor => {
                self.empty |= value & !self.enabled & ON_EMPTY != 0;
                self.enabled = value & 0xf;
            }
            register::IDENTIFICATION => self.has_fifo = value & FIFO != 0,
            _ => {}
        }
        self.refill();
        self.line()
    }

    /// Receives bytes; none is lost.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Line {
        self.queue.extend(bytes);
        self.refill();
        self.line()
    }

    fn has_received(&mut self) -> bool {
        self.uart.read(register::LINE_STATUS) & RECEIVED != 0
    }

    /// Moves bytes from the queue to the receive buffer, which is of one byte without a FIFO.
    fn refill(&mut self) {
        if self.queue.is_empty() || !self.has_fifo && self.has_received() {
            return;
        }
        let most = if self.has_fifo { usize::MAX } else { 1 };
        let (front, _) = self.queue.as_slices();
        let front = &front[..front.len().min(most)];
        let moved = self.uart.enqueue_raw_bytes(front).unwrap_or(0);
        self.queue.drain(..moved);
    }

    /// Returns the level of the interrupt request.
    fn pin(&mut self) -> bool {
        let received = self.has_received() && self.enabled & ON_RECEIVED != 0;
        let empty = self.empty && self.enabled & ON_EMPTY != 0;
        let control = self.uart.read(register::MODEM_CONTROL);
        (received || empty) && control & (OUT2 | LOOP) == OUT2
    }

    fn line(&mut self) -> Line {
        let level = self.pin();
        if core::mem::replace(&mut self.level, level) == level {
            Line::Same
        } else {
            Line::Level(level)
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
    fn interrupts_while_there_is_input() {
        let mut serial = serial();
        assert_eq!(serial.write(2, 1), Line::Same);
        assert_eq!(serial.receive(b"xy"), Line::Same);
        assert_eq!(serial.write(1, 1), Line::Level(true));
        assert_eq!(serial.read(2), (0xc4, Line::Same));
        assert_eq!(serial.read(0), (b'x', Line::Same));
        assert_eq!(serial.read(2), (0xc4, Line::Same));
        assert_eq!(serial.read(0), (b'y', Line::Level(false)));
        assert_eq!(serial.read(2), (0xc1, Line::Same));
        assert_eq!(serial.read(5).0 & 1, 0);
    }

    #[test]
    fn interrupts_for_each_byte_without_its_fifo() {
        let mut serial = serial();
        serial.write(1, 1);
        assert_eq!(serial.receive(b"abc"), Line::Level(true));
        assert_eq!(serial.read(2), (0x04, Line::Same));
        assert_eq!(serial.read(0), (b'a', Line::Pulse));
        assert_eq!(serial.read(0), (b'b', Line::Pulse));
        assert_eq!(serial.read(0), (b'c', Line::Level(false)));
    }

    /// Reading why, or disabling it, ends the interrupt of the empty transmitter.
    #[test]
    fn interrupts_once_when_the_transmitter_is_empty() {
        let mut serial = serial();
        assert_eq!(serial.write(1, 2), Line::Level(true));
        assert_eq!(serial.read(2), (0x02, Line::Level(false)));
        assert_eq!(serial.read(2), (0x01, Line::Same));
        assert_eq!(serial.write(1, 2), Line::Same);
        assert_eq!(serial.write(0, b'a'), Line::Level(true));
        assert_eq!(serial.write(1, 0), Line::Level(false));
        assert_eq!(serial.write(1, 2), Line::Level(true));
    }

    #[test]
    fn tells_of_input_before_the_empty_transmitter() {
        let mut serial = serial();
        serial.write(1, 3);
        serial.receive(b"x");
        assert_eq!(serial.read(2).0, 0x04);
        assert_eq!(serial.read(0), (b'x', Line::Same));
        assert_eq!(serial.read(2), (0x02, Line::Level(false)));
    }

    #[test]
    fn interrupts_only_with_out2() {
        let mut serial = serial();
        serial.write(4, 0);
        serial.write(1, 1);
        assert_eq!(serial.receive(b"x"), Line::Same);
        assert_eq!(serial.write(4, 0x08), Line::Level(true));
        assert_eq!(serial.write(4, 0x18), Line::Level(false));
    }

    #[test]
    fn takes_no_divisor_for_data_or_enables() {
        let mut serial = serial();
        serial.write(3, 0x83);
        assert_eq!(serial.write(1, 2), Line::Same);
        assert_eq!(serial.write(0, 1), Line::Same);
        serial.write(3, 0x03);
        assert_eq!((serial.read(1).0, serial.read(2).0), (0, 0x01));
    }

    #[test]
    fn keeps_what_does_not_fit_its_buffer() {
        for fifo in [0, 1] {
            let mut serial = serial();
            serial.write(2, fifo);
            let sent: Vec<u8> = (0..200).collect();
            serial.receive(&sent);
            let received: Vec<u8> = (0..200).map(|_| serial.read(0).0).collect();
            assert_eq!(received, sent);
            assert_eq!(serial.read(5).0 & 1, 0);
        }
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

    #[test]
    fn hears_itself_when_looped_back() {
        let mut serial = serial();
        serial.write(4, 0x1a);
        // RTS and OUT2 come back as CTS and DCD.
        assert_eq!(serial.read(6).0 & 0xf0, 0x90);
        serial.write(0, b'q');
        assert_eq!(serial.read(0).0, b'q');
    }
}
