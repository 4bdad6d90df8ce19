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

/// The UART as a sink of text.
#[derive(Debug)]
struct Uart;

impl Uart {
    fn register(offset: u16) -> Port {
        Port(UART + offset)
    }
    /// Waits until the line status has these bits.
    fn wait(bits: u32) {
        while Self::register(5).read(PortWidth::Byte) & bits == 0 {
            core::hint::spin_loop();
        }
    }
    /// Sets 115,200 bits a second, 8 data bits, FIFOs on, no interrupts.
    fn set_up() {
        for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            Self::register(offset).write(PortWidth::Byte, value);
        }
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Wait until the transmitter takes a byte.
            Self::wait(TAKES_A_BYTE);
            Self::register(0).write(PortWidth::Byte, u32::from(byte));
        }
        Ok(())
    }
}

/// Sets the channel up.
pub fn open() {
    Uart::set_up();
}

/// The one line that is being written.
static LINE: Mutex<()> = Mutex::new(());

/// Writes one object and ends its line.
pub fn send(kind: &str, members: impl FnOnce(&mut Object<'_, dyn Write>) -> fmt::Result) {
    let _line = LINE.lock();
    let mut uart = Uart;
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

/// Leaves QEMU with a status that has `value` in it, once the last line is on its way: what the transmitter still has would be lost.
fn leave(value: u32) -> ! {
    Uart::wait(HAS_SENT_ALL);
    Port(DEBUG_EXIT).write(PortWidth::Dword, value);
    register::halt()
}
