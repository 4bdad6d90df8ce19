//! The board as a whole: decodes ports and device memory, and keeps what waits for each processor.
//!
//! Key types: [`Platform`], [`PlatformConfig`], [`Wake`], [`Effect`].

use core::num::NonZeroU8;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::io::Write;
use std::sync::{Arc, Mutex};

use vmmu::addr::Gpa;
use vmmu::paging::PhysBits;

use super::chipset::{Chipset, Context};
use super::local_apic::{Acknowledged, Action, BASE_BOOTSTRAP, BASE_ENABLED, Register};
use super::pending::{Pending, Signals};
use super::processors::{NEVER, Processors};
use super::serial::{self, Line, Serial};
use super::{Time, lock, places};

/// The debug console: each byte written is a byte of output, reading tells that it is there.
const DEBUG_CONSOLE: u16 = 0xe9;
/// A 32-bit write ends the run with its value.
const DEBUG_EXIT: u16 = 0xf4;
/// Where the project's guests say that a phase begins, with 32 bits.
const MARK_START: u16 = 0x5e0;
/// Where they say that it ends.
const MARK_END: u16 = 0x5e4;
/// The diagnostics port, written for its delay.
const DELAY: u16 = 0x80;
/// The serial port's interrupt request.
const SERIAL_REQUEST: u8 = 4;
const PAGE: u64 = 0x1000;

/// Tells a processor that something is pending for it.
pub trait Wake: Send + Sync {
    /// Called whenever something is newly pending for `cpu`: its word is already set. Locks of the platform may be held: the
    /// implementation neither blocks nor calls the platform.
    fn wake(&self, cpu: usize);
}

/// What a platform is made of.
pub struct PlatformConfig {
    /// How many processors there are; their local APICs have the identifiers from 0 on.
    pub cpus: NonZeroU8,
    /// RAM, in order: it decides only what CMOS and fw_cfg report.
    pub ram: Vec<Range<Gpa>>,
    /// The width of physical addresses that the guest is shown.
    pub phys_bits: PhysBits,
    /// The calendar's time at [`Time`] 0, in seconds since 1970-01-01 00:00 UTC.
    pub epoch: u64,
    /// Where the first serial port sends. It is written and flushed byte by byte.
    pub serial: Box<dyn Write + Send>,
    /// Where the debug console (port E9h) sends.
    pub debug: Box<dyn Write + Send>,
}

impl core::fmt::Debug for PlatformConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PlatformConfig")
            .field("cpus", &self.cpus)
            .field("ram", &self.ram)
            .field("phys_bits", &self.phys_bits)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// What the machine has to do after a write to a device.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// Switch off: the guest entered the sleep state S5.
    PowerOff,
    /// Reset.
    Reset,
    /// End the run with this value.
    DebugExit(u32),
    /// Drop the host's mapping of the page at this address, as if the host had taken it back.
    DropMapping(Gpa),
    /// A phase of one of the project's guests begins: `phase << 24 | operations` was written to port 5E0h.
    MarkStart(u32),
    /// It ends: its number was written to port 5E4h.
    MarkEnd(u32),
}

/// A value that sets bits that are reserved: the writer gets #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("reserved bits are set in {0:#x}")]
pub struct ReservedBits(pub u64);

/// The board. All methods take shared references; processors call them from their own threads.
#[derive(Debug)]
pub struct Platform {
    processors: Processors,
    chipset: Mutex<Chipset>,
    /// When the chipset has something to do, or [`NEVER`].
    deadline: AtomicU64,
    serial: Mutex<Serial>,
    debug: Mutex<DebugOutput>,
    phys_bits: PhysBits,
}

struct DebugOutput(Box<dyn Write + Send>);

impl core::fmt::Debug for DebugOutput {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("DebugOutput")
    }
}

impl Platform {
    /// Makes a board in the state in which firmware hands it over.
    #[must_use]
    pub fn new(config: PlatformConfig, wake: Arc<dyn Wake>) -> Self {
        let platform = Self {
            processors: Processors::new(config.cpus.get(), wake),
            chipset: Mutex::new(Chipset::new(&config)),
            deadline: AtomicU64::new(NEVER),
            serial: Mutex::new(Serial::new(config.serial)),
            debug: Mutex::new(DebugOutput(config.debug)),
            phys_bits: config.phys_bits,
        };
        // Publishes when the timer, which runs from the start, is due.
        platform.chipset(Time(0), Chipset::advance);
        platform
    }

    /// Does something with the chipset locked.
    fn chipset<R>(&self, now: Time, work: impl FnOnce(&mut Chipset, Context<'_>) -> R) -> R {
        let context = Context {
            now,
            processors: &self.processors,
            deadline: &self.deadline,
        };
        work(&mut lock(&self.chipset), context)
    }

    /// Does something with the serial port, and lets its line follow.
    fn serial<R>(&self, now: Time, work: impl FnOnce(&mut Serial) -> (R, Line)) -> R {
        let mut serial = lock(&self.serial);
        let (result, line) = work(&mut serial);
        let levels: &[bool] = match line {
            Line::Same => &[],
            Line::Level(true) => &[true],
            Line::Level(false) => &[false],
            Line::Pulse => &[false, true],
        };
        if !levels.is_empty() {
            self.chipset(now, |chipset, context| {
                for &level in levels {
                    chipset.set_request(context, SERIAL_REQUEST, level);
                }
            });
        }
        result
    }

    /// Reads a port, `bytes` wide (1, 2 or 4). Where nothing is, all bits are set.
    pub fn port_read(&self, now: Time, port: u16, bytes: usize) -> u32 {
        let value = match port {
            serial::BASE..=serial::LAST => self.serial(now, |serial| {
                let (value, line) = serial.read((port - serial::BASE) as u8);
                (u32::from(value), line)
            }),
            DEBUG_CONSOLE => u32::from(DEBUG_CONSOLE),
            DELAY => u32::MAX,
            _ => self.chipset(now, |chipset, context| chipset.read(context, port, bytes)),
        };
        truncate(value, bytes)
    }

    /// Writes a port, `bytes` wide (1, 2 or 4).
    pub fn port_write(&self, now: Time, port: u16, bytes: usize, value: u32) -> Effect {
        match port {
            serial::BASE..=serial::LAST => self.serial(now, |serial| {
                let line = serial.write((port - serial::BASE) as u8, value as u8);
                ((), line)
            }),
            DEBUG_CONSOLE => {
                // An output that is gone loses its bytes.
                let _lost = lock(&self.debug).0.write_all(&[value as u8]);
            }
            DELAY => {}
            DEBUG_EXIT if bytes == 4 => return Effect::DebugExit(value),
            MARK_START if bytes == 4 => return Effect::MarkStart(value),
            MARK_END if bytes == 4 => return Effect::MarkEnd(value),
            _ => {
                return self.chipset(now, |chipset, context| {
                    chipset.write(context, port, bytes, truncate(value, bytes))
                });
            }
        }
        Effect::None
    }

    /// Reads device memory, up to 8 bytes wide. Where nothing is, all bits are set.
    pub fn mmio_read(&self, cpu: usize, now: Time, gpa: Gpa, bytes: usize) -> u64 {
        let mask = u64::MAX >> (64 - 8 * bytes.clamp(1, 8));
        let (page, offset) = (gpa.get() & !(PAGE - 1), (gpa.get() % PAGE) as u16);
        let register = if self.is_local_apic(cpu, page) {
            self.processors
                .update(cpu, |apic| apic.read(now, Register::at(offset)))
        } else if page == u64::from(places::IO_APIC) {
            self.chipset(now, |chipset, _| chipset.read_io_apic(offset & !3))
        } else {
            return mask;
        };
        // Registers are of 32 bits; what lies beside them is void.
        u64::from(register) >> (8 * (offset & 3)) & mask
    }

    /// Writes device memory, up to 8 bytes wide. Registers take 32 bits at once; other widths have no effect.
    pub fn mmio_write(&self, cpu: usize, now: Time, gpa: Gpa, bytes: usize, value: u64) -> Effect {
        let (page, offset) = (gpa.get() & !(PAGE - 1), (gpa.get() % PAGE) as u16);
        if bytes != 4 || offset % 16 != 0 {
            return Effect::None;
        }
        let value = value as u32;
        if self.is_local_apic(cpu, page) {
            let action = self
                .processors
                .update(cpu, |apic| apic.write(now, Register::at(offset), value));
            self.act(cpu, now, action);
        } else if page == u64::from(places::IO_APIC) {
            self.chipset(now, |chipset, context| {
                chipset.write_io_apic(context, offset, value);
            });
        }
        Effect::None
    }

    fn is_local_apic(&self, cpu: usize, page: u64) -> bool {
        let base = self.processors.base(cpu);
        base & BASE_ENABLED != 0 && page == base & !(PAGE - 1)
    }

    fn act(&self, cpu: usize, now: Time, action: Action) {
        match action {
            Action::None => {}
            Action::Send(message) => self.processors.deliver(Some(cpu), &message),
            Action::EndOfInterrupt(vector) => self.chipset(now, |chipset, context| {
                chipset.end_of_interrupt(context, vector);
            }),
        }
    }

    /// Sends bytes to the guest through the first serial port; what its buffer can't hold yet waits.
    pub fn serial_input(&self, now: Time, bytes: &[u8]) {
        self.serial(now, |serial| ((), serial.receive(bytes)));
    }

    /// Tells when [`Platform::advance`] has something to do next, if ever: perhaps in the past. Without locks.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        // Relaxed: see `Processors::update`.
        let chipset = self.deadline.load(Ordering::Relaxed);
        let next = chipset.min(self.processors.next_event());
        (next != NEVER).then_some(Time(next))
    }

    /// Does what is due: timers fire. Without locks when nothing is.
    pub fn advance(&self, now: Time) {
        // Relaxed: see `Processors::update`.
        if self.deadline.load(Ordering::Relaxed) <= now.0 {
            self.chipset(now, Chipset::advance);
        }
        self.processors.advance(now);
    }

    /// Tells what waits for a processor: one load.
    #[inline]
    #[must_use]
    pub fn pending(&self, cpu: usize) -> Pending {
        self.processors.pending(cpu).get()
    }

    /// Tells whether anything waits for a processor: one load.
    #[inline]
    #[must_use]
    pub fn has_pending(&self, cpu: usize) -> bool {
        !self.pending(cpu).is_empty()
    }

    /// Acknowledges an interrupt, as a processor with RFLAGS.IF set does, and returns its vector; `None` if the request went
    /// away.
    #[must_use]
    pub fn acknowledge(&self, cpu: usize, now: Time) -> Option<u8> {
        match self.processors.update(cpu, |apic| apic.acknowledge()) {
            Acknowledged::Nothing => None,
            Acknowledged::Vector(vector) => Some(vector),
            Acknowledged::External => self.chipset(now, Chipset::acknowledge),
        }
    }

    /// Takes the signals that came for a processor.
    #[must_use]
    pub fn take_signals(&self, cpu: usize) -> Signals {
        self.processors.pending(cpu).take_signals()
    }

    /// Returns IA32_APIC_BASE.
    #[must_use]
    pub fn apic_base(&self, cpu: usize) -> u64 {
        self.processors.base(cpu)
    }

    /// Writes IA32_APIC_BASE. Which processor is the bootstrap processor doesn't change.
    ///
    /// # Errors
    /// [`ReservedBits`] (x2APIC mode among them): #GP.
    pub fn set_apic_base(&self, cpu: usize, value: u64) -> Result<(), ReservedBits> {
        let address = (1u64 << self.phys_bits.get()) - PAGE;
        if value & !(address | BASE_ENABLED | BASE_BOOTSTRAP) != 0 {
            return Err(ReservedBits(value));
        }
        let bootstrap = self.processors.base(cpu) & BASE_BOOTSTRAP;
        self.processors
            .set_base(cpu, value & !BASE_BOOTSTRAP | bootstrap);
        Ok(())
    }

    /// Returns the task priority class, as CR8 reads it: 0 to 15.
    #[must_use]
    pub fn task_priority(&self, cpu: usize) -> u8 {
        self.processors.update(cpu, |apic| apic.task_priority()) >> 4
    }

    /// Sets the task priority class, as CR8 writes it: 0 to 15. The sub-class becomes 0.
    pub fn set_task_priority(&self, cpu: usize, class: u8) {
        self.processors
            .update(cpu, |apic| apic.set_task_priority(class << 4));
    }
}

/// Keeps the low bytes.
fn truncate(value: u32, bytes: usize) -> u32 {
    match bytes {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value,
    }
}

#[cfg(test)]
mod tests;
