//! The board as a whole: decodes ports and device memory, and keeps what waits for each processor.
//!
//! Key types: [`Platform`], [`PlatformConfig`], [`Wake`], [`Effect`].

use core::num::NonZeroU8;
use core::ops::Range;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmmu::addr::Gpa;
use vmmu::paging::PhysBits;

use super::Time;
use super::pending::{Pending, PendingWord, Signals};
use super::serial::{self, Serial};

/// The debug console: each byte written is a byte of output, reading tells that it is there.
const DEBUG_CONSOLE: u16 = 0xe9;
/// A 32-bit write ends the run with its value.
const DEBUG_EXIT: u16 = 0xf4;
/// The diagnostics port, written for its delay.
const DELAY: u16 = 0x80;

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
    /// A phase of a benchmark begins (a 32-bit write to port E0h).
    MarkStart(u32),
    /// It ends (a 32-bit write to port E1h).
    MarkEnd(u32),
}

/// A value that sets bits that are reserved: the writer gets #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("reserved bits are set in {0:#x}")]
pub struct ReservedBits(pub u64);

/// The board. All methods take shared references; processors call them from their own threads.
pub struct Platform {
    pending: Box<[PendingWord]>,
    serial: Mutex<Serial>,
    debug: Mutex<Box<dyn Write + Send>>,
    apic_base: Box<[Mutex<u64>]>,
    #[expect(dead_code, reason = "no device interrupts yet")]
    wake: Arc<dyn Wake>,
}

impl core::fmt::Debug for Platform {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Platform").finish_non_exhaustive()
    }
}

/// Locks; a thread that panicked leaves a device as it was after its last access.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Platform {
    /// Makes a board in the state in which firmware hands it over.
    #[must_use]
    pub fn new(config: PlatformConfig, wake: Arc<dyn Wake>) -> Self {
        let cpus = usize::from(config.cpus.get());
        Self {
            pending: (0..cpus).map(|_| PendingWord::default()).collect(),
            serial: Mutex::new(Serial::new(config.serial)),
            debug: Mutex::new(config.debug),
            apic_base: (0..cpus)
                .map(|cpu| Mutex::new(0xfee0_0800 | u64::from(cpu == 0) << 8))
                .collect(),
            wake,
        }
    }

    /// Reads a port, `bytes` wide (1, 2 or 4). Where nothing is, all bits are set.
    pub fn port_read(&self, cpu: usize, now: Time, port: u16, bytes: usize) -> u32 {
        let _ = (cpu, now);
        let value = match port {
            serial::BASE..=0x3ff => {
                u32::from(lock(&self.serial).read((port - serial::BASE) as u8).0)
            }
            DEBUG_CONSOLE => u32::from(DEBUG_CONSOLE),
            _ => u32::MAX,
        };
        truncate(value, bytes)
    }

    /// Writes a port, `bytes` wide (1, 2 or 4).
    pub fn port_write(&self, cpu: usize, now: Time, port: u16, bytes: usize, value: u32) -> Effect {
        let _ = (cpu, now);
        match port {
            serial::BASE..=0x3ff => {
                lock(&self.serial).write((port - serial::BASE) as u8, value as u8);
            }
            DEBUG_CONSOLE => {
                // An output that is gone loses its bytes.
                let _lost = lock(&self.debug).write_all(&[value as u8]);
            }
            DEBUG_EXIT if bytes == 4 => return Effect::DebugExit(value),
            DELAY => {}
            _ => {}
        }
        Effect::None
    }

    /// Reads device memory, up to 8 bytes wide. Where nothing is, all bits are set.
    pub fn mmio_read(&self, cpu: usize, now: Time, gpa: Gpa, bytes: usize) -> u64 {
        let _ = (cpu, now, gpa);
        u64::MAX >> (64 - 8 * bytes.clamp(1, 8))
    }

    /// Writes device memory, up to 8 bytes wide.
    pub fn mmio_write(&self, cpu: usize, now: Time, gpa: Gpa, bytes: usize, value: u64) -> Effect {
        let _ = (cpu, now, gpa, bytes, value);
        Effect::None
    }

    /// Sends bytes to the guest through the first serial port; what its buffer can't hold yet waits.
    pub fn serial_input(&self, now: Time, bytes: &[u8]) {
        let _ = now;
        lock(&self.serial).receive(bytes);
    }

    /// Tells when [`Platform::advance`] has something to do next, if ever. Without locks.
    pub fn next_event(&self, now: Time) -> Option<Time> {
        let _ = now;
        None
    }

    /// Does what is due: timers fire. Cheap when nothing is.
    pub fn advance(&self, now: Time) {
        let _ = now;
    }

    /// Tells what waits for a processor: one load.
    #[inline]
    #[must_use]
    pub fn pending(&self, cpu: usize) -> Pending {
        self.pending[cpu].get()
    }

    /// Tells whether anything waits for a processor: one load.
    #[inline]
    #[must_use]
    pub fn has_pending(&self, cpu: usize) -> bool {
        !self.pending(cpu).is_empty()
    }

    /// Acknowledges an interrupt, as a processor with RFLAGS.IF set does, and returns its vector; `None` if the request went away.
    pub fn acknowledge(&self, cpu: usize, now: Time) -> Option<u8> {
        let _ = (cpu, now);
        None
    }

    /// Takes the signals that came for a processor.
    pub fn take_signals(&self, cpu: usize) -> Signals {
        self.pending[cpu].take_signals()
    }

    /// Returns IA32_APIC_BASE.
    #[must_use]
    pub fn apic_base(&self, cpu: usize) -> u64 {
        *lock(&self.apic_base[cpu])
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// [`ReservedBits`] (x2APIC mode among them): #GP.
    pub fn set_apic_base(&self, cpu: usize, now: Time, value: u64) -> Result<(), ReservedBits> {
        let _ = now;
        *lock(&self.apic_base[cpu]) = value;
        Ok(())
    }

    /// Returns the task priority class, as CR8 reads it: 0 to 15.
    #[must_use]
    pub fn task_priority(&self, cpu: usize) -> u8 {
        let _ = cpu;
        0
    }

    /// Sets the task priority class, as CR8 writes it: 0 to 15. The sub-class becomes 0.
    pub fn set_task_priority(&self, cpu: usize, class: u8) {
        let _ = (cpu, class);
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
