//! Instructions per library call, on the operations by which shadow MMUs are compared.
//!
//! A guest is played, not run: [`guest`] performs the operations of a page-table benchmark step by step, [`machine`] walks the tables that the
//! library made as a processor would and, where the walk refuses, makes the calls that a hypervisor makes at that exit. Only those calls
//! are measured, by [`meter`]: instructions under callgrind (started through gungraun, [`count`]), nanoseconds without. [`host`] is as cheap as memory on bare metal: a look-up is
//! an addition, an entry one atomic load.
//!
//! `cargo bench -p vmmu-bench` prints the table (docs/benchmarks.md).
//!
//! Invariants:
//! 1. Nothing but calls of the library is inside the measured region; what an empty region costs is subtracted.
//! 2. Each operation is counted in a process of its own, so that none profits from what another left behind.
//!
//! Known gaps: one vCPU, long mode with 4-level tables; no TLB, as if each entry flushed it.
#![forbid(unsafe_code)]

pub mod count;
pub mod failure;
pub mod guest;
pub mod host;
pub mod machine;
pub mod meter;
pub mod operation;
mod process;
pub mod report;
pub mod runner;
