//! Faults of several vCPUs at once: how much two processors do together, beside one lock round the whole MMU.
//!
//! The library is driven as a hypervisor drives it, on real guest tables in a flat memory, one vCPU to a thread; no instruction is executed. A fault is the
//! guest's exit, the library's answer, the entry, and then the access through the tables that the library made.
//!
//! | module | noun |
//! |---|---|
//! | [`memory`], [`host`] | guest memory and tables, and the embedder over them |
//! | [`guest`] | the guest's page tables |
//! | [`load`] | what the vCPUs touch |
//! | [`rig`] | an MMU with its guest, and a fault on it |
//! | [`crew`] | two threads on two processors |
//! | [`faults`] | rounds of measurements, and what they say |
//! | [`latency`] | how long faults take beside a zap of everything |
//! | `counts` | locks and atomics of a fault, and its accesses (feature `count`) |
//! | [`simulate`] | the accesses of many vCPUs in virtual time |
//! | [`report`] | counts and simulations, from one program to another |
//! | [`spread`] | a median with its quartiles |
//! | [`stale`] | the gate: one thread makes tables, another writes to them |
//!
//! Invariants:
//! 1. What is compared is measured in the same round, within milliseconds; a round in which two threads that share nothing gain less than
//!    [`faults::LEAST_GAIN`] is discarded.
//! 2. Each access is checked to reach the frame that the guest's tables name.
//!
//! `vmmu bench parallel` prints the tables (docs/parallel.md).
#![forbid(unsafe_code)]

#[cfg(feature = "count")]
pub mod counts;
pub mod crew;
pub mod faults;
pub mod guest;
pub mod host;
pub mod latency;
pub mod load;
pub mod memory;
pub mod report;
pub mod rig;
pub mod simulate;
pub mod spread;
pub mod stale;
mod trouble;

pub use trouble::Trouble;
