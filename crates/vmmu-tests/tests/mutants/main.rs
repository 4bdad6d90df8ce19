//! Promises pinned one by one, rule by rule: each test is the one that kills some mutant of the library (docs/mutants.md).
//!
//! Where a promise is about two processors, the second one acts inside a callback of the embedder (a look-up, a kick): a race that happens the same
//! way each time, on one thread.
//!
//! | module | rule |
//! |---|---|
//! | [`r01`] ... [`r13`] | R1 to R13 |
//! | [`protocol`] | what processors promise each other |
#![forbid(unsafe_code)]

mod protocol;
mod r01;
mod r02;
mod r03;
mod r04;
mod r05;
mod r06;
mod r07;
mod r08;
mod r09;
mod r10;
mod r11;
mod r12;
mod r13;
mod stage;
