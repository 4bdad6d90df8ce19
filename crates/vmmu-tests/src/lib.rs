//! A test machine: the library under the software processor, judged by the specification.
//!
//! | module | what it is |
//! |---|---|
//! | [`host`] | the embedder: host memory, table pool with poison, switches to fail, take back, deny and block |
//! | [`machine`] | processors, vCPUs and guest memory as a hypervisor ties them together |
//! | [`judge`] | what each access may show: the criterion for a virtual TLB, accessed and dirty bits |
//! | [`guest`] | guest tables: entries and a tree that most tests begin with |
//! | [`program`] | random programs |
//! | [`stage`] | what the scenarios begin with |
//! | [`convert`] | one type of the library, the processor or the specification as another's |
//!
//! Each word that the guest, the embedder or the library's walker stores in guest memory goes into the specification's log. An access of
//! the guest then has to show what the specification allows for that history, and has to touch the host frame that backs the guest frame now.
//!
//! Invariants:
//! 1. A machine is deterministic: one seed and one program give one run.
//! 2. A failed check is a panic with the access and what was allowed.
//! 3. Nothing here looks into the library: it is used through its public interface.
//!
//! # Known gaps
//! Protection keys are judged in the walker's tests only: the shadow engine has no keys in its entries.
#![forbid(unsafe_code)]

pub mod convert;
pub mod guest;
pub mod host;
pub mod judge;
pub mod machine;
pub mod program;
pub mod stage;
