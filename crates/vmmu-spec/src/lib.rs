//! x86 address translation as one pure function, written from the processor manuals.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod address;
mod allowed;
mod controls;
mod format;
mod history;
mod memory;
mod outcome;
mod rights;
mod translate;
mod walk;

pub use access::{Access, AccessSet, Kind, Privilege};
pub use address::{GuestPhysical, Linear, PhysBits, Physical};
pub use allowed::{Window, allowed, is_allowed};
pub use controls::{
    Controls, ControlsError, Cr0, Cr3, Cr4, Efer, Features, Mode, Pdptes, Pkru, Processor,
    ProtectionKey,
};
pub use format::{Level, PageSize};
pub use history::{Candidate, History, Time, WriteLog};
pub use memory::{Memory, Width};
pub use outcome::{
    Cause, ErrorCode, Observation, Outcome, PageFault, Translation, Unbacked, Update,
};
pub use rights::{Denial, Rights, RightsFlags};
pub use translate::{error_code, translate};
pub use walk::{Mapping, Path, Progress, Scope, Slot, Start, Step, Stop, Walk};
