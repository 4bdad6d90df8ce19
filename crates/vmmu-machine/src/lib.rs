//! A machine in software: it runs guests in an ordinary process, and every access of theirs goes through tables that [`vmmu`] builds.
//!
//! | part | modules |
//! |---|---|
//! | the processor: interpreter, TLB, walker | [`cpu`] |
//! | the hypervisor: exits, the library's host, answers | [`vmm`] |
//! | the board | [`devices`] |
//! | what comes before the first instruction | [`load`] |
//! | the heavy barrier of a process | [`membarrier`] |
//! | the judge of every translation | [`check`] |
//! | host memory | [`memory`] |
//! | all of it together | [`machine`] |
//!
//! The design stands in `docs/machine.md`.
//!
//! # Known gaps
//! - Nested tables are AMD's; EPT is walked by `vmmu-cpu`, but no machine offers it yet.
//! - A locked access across two aligned words is no single access, nor is CMPXCHG16B, which is offered to one processor only.
//! - INIT makes the bootstrap processor wait for a start-up message like any other; PCIDs, protection keys and XSAVE are not offered.

#![forbid(unsafe_code)]

mod bulk;
pub mod check;
mod clock;
pub mod cpu;
pub mod devices;
pub mod load;
pub mod machine;
pub mod membarrier;
pub mod memory;
pub mod vmm;

pub use clock::Clock;
