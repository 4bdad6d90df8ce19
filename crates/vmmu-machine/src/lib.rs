//! A machine in software: it runs guests in an ordinary process, and every access of theirs goes through tables that [`vmmu`] builds.
//!
//! | part | modules |
//! |---|---|
//! | the processor: interpreter, TLB, walker | [`cpu`] |
//! | the hypervisor: exits, the library's host, answers | [`vmm`] |
//! | the board | [`devices`] |
//! | what comes before the first instruction | [`load`] |
//! | the heavy barrier of a process | [`membarrier`] |
//! | how guest writes and new shadow pages are ordered | [`gate`] |
//! | the judge of every translation | [`check`] |
//! | host memory | [`memory`] |
//! | all of it together | [`machine`] |
//!
//! The design stands in `docs/machine.md`.
//!
//! # Known gaps
//! - With EPT tables the processor is still AMD's but for that: no VPIDs, no exit qualification beyond the fault's cause.
//! - A locked access across two aligned words is no single access, nor is CMPXCHG16B, which is offered to one processor only.
//! - INIT to the bootstrap processor ends the run as a reset does, since there is no firmware to begin in; PCIDs, protection keys and XSAVE are not offered.

#![forbid(unsafe_code)]

mod bulk;
pub mod check;
mod clock;
pub mod cpu;
pub mod devices;
pub mod gate;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "guests of long mode are run from outside")]
mod guests;
pub mod load;
pub mod machine;
pub mod membarrier;
pub mod memory;
pub mod vmm;

pub use clock::Clock;
