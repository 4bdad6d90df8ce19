//! The last events of a machine, for reports.
//!
//! Key types: [`Ring`], [`Happened`].

use core::fmt;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use vmmu::TlbFlush;
use vmmu::addr::{Gfn, Gpa};
use vmmu::host::VcpuId;
use vmmu_cpu::Va;
use vmmu_spec::Time;

use super::observer::{GuestFault, Load};

/// How many events are kept.
const EVENTS: usize = 256;

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Happened {
    /// Control registers were loaded.
    Loaded(Load),
    /// CR3 was loaded.
    RootLoaded(u64),
    /// The guest flushed.
    Flushed(TlbFlush),
    /// The guest saw a fault.
    Faulted(Va, GuestFault),
    /// The hypervisor made an access for the guest.
    Emulated(Va, Gpa),
    /// Guest frames were taken back, or a slot changed.
    Remapped(Gfn, u64),
    /// A word of a guest table changed.
    TableChanged {
        /// Where it lies.
        gpa: Gpa,
        /// What it was.
        old: u64,
        /// What it is.
        new: u64,
    },
    /// A translation was used that the present tables do not give, and that a cache may show.
    Stale(Va),
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootLoaded(cr3) => write!(f, "MOV to CR3 of {cr3:#x}"),
            Self::Loaded(Load::Control) => write!(f, "control registers changed"),
            Self::Loaded(Load::Machine) => write!(f, "registers set by the machine"),
            Self::Flushed(TlbFlush::Address(gva)) => write!(f, "INVLPG of {:#x}", gva.get()),
            Self::Flushed(_) => write!(f, "flush of everything"),
            Self::Faulted(va, GuestFault::Page(code)) => {
                write!(f, "#PF at {va}, code {:#x}", code.bits())
            }
            Self::Faulted(va, GuestFault::NotCanonical) => write!(f, "#GP for {va}"),
            Self::Emulated(va, gpa) => write!(f, "emulated access at {va} to gpa {:#x}", gpa.get()),
            Self::Remapped(gfn, frames) => {
                write!(f, "host changed gfn {:#x}, {frames} frames", gfn.get())
            }
            Self::TableChanged { gpa, old, new } => {
                write!(f, "entry at gpa {:#x}: {old:#x} -> {new:#x}", gpa.get())
            }
            Self::Stale(va) => write!(f, "stale translation of {va} used, as a cache may"),
        }
    }
}

/// An event with when, and for which vCPU, it happened.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Noted {
    /// When.
    pub time: Time,
    /// Whose it is; `None` for the host's.
    pub vcpu: Option<VcpuId>,
    /// What.
    pub what: Happened,
}

impl fmt::Display for Noted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10}  ", self.time.get())?;
        match self.vcpu {
            Some(vcpu) => write!(f, "vcpu {}  {}", vcpu.0, self.what),
            None => write!(f, "host    {}", self.what),
        }
    }
}

/// The last events.
#[derive(Debug, Default)]
pub(super) struct Ring(Mutex<VecDeque<Noted>>);

impl Ring {
    pub(super) fn push(&self, noted: Noted) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= EVENTS {
            events.pop_front();
        }
        events.push_back(noted);
    }

    /// Returns the last `count` events, oldest first.
    pub(super) fn last(&self, count: usize) -> Vec<Noted> {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = events.len().saturating_sub(count);
        events.iter().skip(skip).copied().collect()
    }
}
