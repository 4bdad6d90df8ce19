//! The board: interrupt controllers, timers, serial port, and what else a guest finds at ports and in device memory.
//!
//! Key types: [`Platform`], the whole board behind shared references; [`PlatformConfig`]; [`Wake`], by which it tells a
//! virtual processor that something is pending; [`Signals`] and [`Effect`], what it answers.
//!
//! | part | modules |
//! |---|---|
//! | decoding, locks | `platform`, `chipset`, `places` |
//! | processors' side of interrupts | `processors`, `local_apic`, `pending`, `message` |
//! | interrupt controllers | `io_apic`, `pic` |
//! | clocks | `pit`, `clock`, `power` (ACPI's) |
//! | input and output | `serial`, `keyboard` (none is attached), `fw_cfg` |
//! | ends and tests | `reset`, `power`, `test_device` |
//!
//! Time is an argument, never read here: the caller's clock is the host's or counted instructions.
//!
//! Known gaps: no x2APIC mode, system-management interrupts, HPET, DMA controller or PCI; nothing drives LINT1, and the 8259s'
//! output is on every LINT0 but on no pin of the I/O APIC. A level-triggered interrupt that no local APIC accepts is not tried
//! again before its entry is written. A count that is written to a running timer takes effect at once, not after the period.
//!
//! Locks, in this order: serial port, chipset, one local APIC. Outputs of guests are written with the serial port's or the
//! debug console's lock held and no other.

mod chipset;
mod clock;
mod fw_cfg;
mod io_apic;
mod keyboard;
mod local_apic;
mod message;
mod pending;
mod pic;
mod pit;
pub(crate) mod places;
mod platform;
mod power;
mod processors;
mod reset;
mod serial;
mod test_device;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use pending::{Pending, Signals};
pub use platform::{Effect, Platform, PlatformConfig, ReservedBits, Wake};

/// A moment, in nanoseconds since the machine started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

/// Locks; a thread that panicked leaves a device as it was after its last access.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
