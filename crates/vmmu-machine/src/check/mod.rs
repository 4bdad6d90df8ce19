//! The judge: compares every translation that a processor uses with what the specification allows.
//!
//! - [`Observer`]: what the machine tells. `()` is the observer of a run without `--check`.
//! - [`Judge`]: the observer of a run with it; [`Mismatch`], its report.
//! - [`Ground`]: guest memory as the judge reads it.
//!
//! | what | judged by |
//! |---|---|
//! | a translation, at its first use after a fill and after each event that narrows what is allowed | host frame, rights, A and D bits; what the entry grants besides |
//! | a fault that the guest sees | error code |
//! | an access that the hypervisor makes | guest-physical address, reason |
//! | what was taken back | no use, and no entry of a TLB |
//! | freed tables and poisoned entries | not walked |
//!
//! A translation may be as old as the vCPU's last flush of its address, no older: the guest may have changed a table and not flushed yet, then the
//! old and the new value are both right. So the judge records what the guest's tables have been, in `watch`.
//!
//! # Known gaps
//! One address space of slots. PCIDs are not told apart. Where the past of a table is not known, because it was not watched yet, what the present does
//! not explain is let pass until the next flush, and counted. What the hypervisor fetches to emulate is not judged: the processor fetched it before.

mod convert;
mod criterion;
mod ground;
mod judge;
mod judged;
mod land;
mod memo;
mod mismatch;
mod observer;
mod past;
mod ring;
mod view;
mod walks;
mod watch;

pub use ground::{Ground, Home};
pub use judge::Judge;
pub use judged::Judged;
pub use mismatch::{GuestStep, HostStep, Mismatch, Wrong};
pub use observer::{Caught, Emulated, Epoch, GuestFault, Load, Observer, Refused, Time, Used};
pub use ring::{Happened, Noted};
