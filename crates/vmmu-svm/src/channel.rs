//! The channel to the command: one JSON object a line on the second serial port.
//!
//! The objects stand in `docs/image-protocol.md`. Nothing here needs the heap.
//!
//! Invariants:
//! 1. One processor at a time writes, a whole line.
//! 2. One processor ends the run, the first that comes to it; the others stop there.

use core::fmt::{self, Display, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use crate::arch::port::{Port, PortWidth};
use crate::arch::register;
use crate::exit::EXITS;
use crate::json::Object;

/// The first port of the channel's UART; eight belong to it.
pub const UART: u16 = 0x2f8;
/// The port of QEMU's `isa-debug-exit`.
pub const DEBUG_EXIT: u16 = 0xf4;

/// When the guest was first entered.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// The bit of the line status that says that the transmitter takes a byte.
const TAKES_A_BYTE: u32 = 0x20;
/// The bit that says that it has sent all of them.
const HAS_SENT_ALL: u32 = 0x40;

/// The registers of a UART, by their offsets.
trait Registers {
    fn read(&mut self, offset: u16) -> u32;
    fn write(&mut self, offset: u16, value: u32);
}

/// Those of the channel.
#[derive(Debug)]
struct Ports;

impl Registers for Ports {
    fn read(&mut self, offset: u16) -> u32 {
        Port(UART + offset).read(PortWidth::Byte)
    }
    fn write(&mut self, offset: u16, value: u32) {
        Port(UART + offset).write(PortWidth::Byte, value);
    }
}

/// A UART as a sink of text.
#[derive(Debug)]
struct Uart<R>(R);

impl<R: Registers> Uart<R> {
    const LINE_STATUS: u16 = 5;

    /// Waits until the line status has one of these bits.
    fn wait(&mut self, bits: u32) {
        while self.0.read(Self::LINE_STATUS) & bits == 0 {
            core::hint::spin_loop();
        }
    }
    /// Sets 115,200 bits a second, 8 data bits, FIFOs on, no interrupts.
    fn set_up(&mut self) {
        for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            self.0.write(offset, value);
        }
    }
    /// Waits until all that was written is on its way: what the transmitter still has when QEMU ends would be lost.
    fn finish(&mut self) {
        self.wait(HAS_SENT_ALL);
    }
}

impl<R: Registers> Write for Uart<R> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.wait(TAKES_A_BYTE);
            self.0.write(0, u32::from(byte));
        }
        Ok(())
    }
}

/// Sets the channel up.
pub fn open() {
    Uart(Ports).set_up();
}

/// The one line that is being written.
static LINE: Mutex<()> = Mutex::new(());

/// Writes one object and ends its line.
pub fn send(kind: &str, members: impl FnOnce(&mut Object<'_, dyn Write>) -> fmt::Result) {
    let _line = LINE.lock();
    let mut uart = Uart(Ports);
    let to: &mut dyn Write = &mut uart;
    // The port takes everything; an error could only come from a `Display`.
    let _ = Object::write(to, |object| {
        object.text("type", kind)?;
        members(object)
    });
    let _ = to.write_char('\n');
}

/// Says that the guest is about to be entered, and takes the time.
pub fn ready() {
    send("ready", |_| Ok(()));
    STARTED.store(register::tsc(), Ordering::Relaxed);
}

/// Returns the time-stamp counter's advance since the guest was first entered.
pub fn elapsed() -> u64 {
    match STARTED.load(Ordering::Relaxed) {
        0 => 0,
        started => register::tsc() - started,
    }
}

/// Tells the counters.
pub fn stats(mmu: &[(&str, u64)], bytes: &[(&str, u64)]) {
    let elapsed = elapsed();
    send("stats", |object| {
        object.object("mmu", |object| {
            mmu.iter()
                .try_for_each(|(name, value)| object.number(name, *value))
        })?;
        object.object("exits", |object| EXITS.write(object))?;
        object.object("bytes", |object| {
            bytes
                .iter()
                .try_for_each(|(name, value)| object.number(name, *value))
        })?;
        object.number("tsc", elapsed)
    });
}

/// How a run ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest wrote this to the exit port.
    Exit(u32),
    /// The guest asked for a reset.
    Shutdown(&'static str),
    /// The guest crashed; the text is the report.
    Crash(alloc::string::String),
    /// The guest, or its file, needs what isn't there.
    Refused(alloc::string::String),
}

/// Claims the end of the run for this processor; another that comes later stops here for good.
pub fn claim_end() {
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    if CLAIMED.swap(true, Ordering::AcqRel) {
        register::halt()
    }
}

/// Tells how the run ended, and leaves the machine.
pub fn end(end: &End) -> ! {
    match end {
        End::Exit(value) => {
            send("exit", |object| object.number("value", u64::from(*value)));
            leave(*value)
        }
        End::Shutdown(reason) => {
            send("shutdown", |object| object.text("reason", reason));
            leave(0x40)
        }
        End::Crash(text) => {
            send("crash", |object| object.text("text", text));
            leave(0x41)
        }
        End::Refused(text) => {
            send("refused", |object| object.text("text", text));
            leave(0x42)
        }
    }
}

/// Reports a bug of the hypervisor, and leaves the machine.
pub fn bug(text: impl Display) -> ! {
    stats(&[], &[]);
    send("panic", |object| object.text("text", text));
    leave(0x43)
}

/// Leaves QEMU with a status that has `value` in it, once the last line is on its way.
fn leave(value: u32) -> ! {
    Uart(Ports).finish();
    Port(DEBUG_EXIT).write(PortWidth::Dword, value);
    register::halt()
}

#[cfg(test)]
mod a_line_is_sent {
    use super::*;
    use alloc::string::String;

    /// A transmitter with a FIFO of two bytes and a register that shifts out, one byte in three reads of the status.
    #[derive(Default)]
    struct Slow {
        waiting: String,
        shifting: Option<char>,
        reads: u32,
        sent: String,
    }

    impl Registers for Slow {
        fn read(&mut self, _: u16) -> u32 {
            self.reads += 1;
            if self.reads.is_multiple_of(3) {
                self.sent.extend(self.shifting.take());
                if !self.waiting.is_empty() {
                    self.shifting = Some(self.waiting.remove(0));
                }
            }
            let takes = if self.waiting.len() < 2 {
                TAKES_A_BYTE
            } else {
                0
            };
            let done = self.waiting.is_empty() && self.shifting.is_none();
            takes | if done { HAS_SENT_ALL } else { 0 }
        }
        fn write(&mut self, _: u16, value: u32) {
            assert!(self.waiting.len() < 2, "a byte is lost");
            self.waiting.push(char::from(value as u8));
        }
    }

    #[test]
    fn to_its_last_byte_before_the_machine_is_left() {
        let mut uart = Uart(Slow::default());
        uart.write_str("{\"type\":\"exit\"}\n").unwrap();
        assert_ne!(uart.0.sent, "{\"type\":\"exit\"}\n");
        uart.finish();
        assert_eq!(uart.0.sent, "{\"type\":\"exit\"}\n");
    }
}
