//! The x86 memory-management unit of a hypervisor: shadow paging and nested paging behind one interface.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod addr;
mod clean;
mod config;
mod debt;
mod derive;
mod direct;
mod dirty;
mod edge;
mod error;
mod frames;
mod gate;
pub mod host;
mod invalidate;
mod memory;
mod mmu;
mod outcome;
mod page;
pub mod paging;
mod pool;
mod prefetch;
mod report;
mod retire;
mod rmap;
mod role;
mod shadow;
mod slots;
mod spte;
mod stats;
mod sync;
mod tree;
mod vcpu;
pub mod walk;
mod zap;

pub use config::{Config, Engine};
pub use error::Error;
pub use invalidate::Invalidation;
pub use mmu::Mmu;
pub use outcome::{EmulateReason, Entry, FaultOutcome, Unprotected};
pub use slots::{AddressSpace, MAX_SLOTS, SlotConfig, SlotFlags, SlotId};
pub use spte::EntryFormat;
pub use stats::{EVENTS, Event, Observer, Stats};
pub use vcpu::{TlbFlush, Vcpu};
