//! The gate's protocols as small programs, explored exhaustively under x86-TSO.
//!
//! The question: may a guest write that the hypervisor performs read the count of indirect shadow pages without a lock, and which barriers does that
//! need? A [`Scheme`] is an answer, right or wrong. It becomes a [`Program`] of up to four threads (two creators of shadow pages, a guest write, a
//! destroyer), and [`explore`] walks every interleaving of their instructions and of the moments at which stores leave the processors' store buffers.
//! A wrong scheme ends in a [`Trace`]: the shortest way to a shadow entry that disagrees with the guest's, with nobody left to notice.
//!
//! | module | noun |
//! |---|---|
//! | `machine` | processors with store buffers: [`Op`], [`State`], [`Step`] |
//! | `program` | threads and what must hold: [`Program`], [`Thread`] |
//! | `explore` | every interleaving, shortest first: [`explore`], [`Outcome`] |
//! | `trace` | an interleaving for people: [`Trace`] |
//! | `scheme` | strategies and mistakes as data: [`Scheme`] |
//! | `threads` | a scheme as programs |
//! | `table` | every row that is judged, with the verdict it must get: [`ROWS`] |
//! | `export` | the same programs as litmus files |
//!
//! The model of the processor is that of Sewell et al., "x86-TSO: A Rigorous and Usable Programmer's Model for x86 Multiprocessors" (CACM 53(7), 2010): each processor
//! has a first-in first-out buffer of its own stores and reads through it; a locked instruction and MFENCE wait until it is empty; the oldest store
//! may reach memory at any time. A heavy barrier (an interrupt to every other processor, or membarrier(2)) empties their buffers one after the other.
//!
//! # Known gaps
//! x86-TSO only: what a weaker model would allow in addition is loom's affair, for the rows that loom can express.

#![forbid(unsafe_code)]

mod explore;
mod export;
mod machine;
mod program;
mod scheme;
mod table;
mod threads;
mod trace;

pub use explore::{Outcome, explore};
pub use export::{Flavour, LitmusFile, files};
pub use machine::{Cell, LockKind, Op, Register, State, Step, Test, Value};
pub use program::{Program, Thread};
pub use scheme::{Barrier, Destroy, Heavy, Increment, LookUp, Reread, Scheme, WriteSide};
pub use table::{Judged, Model, ROWS, Row, Verdict, judge};
pub use threads::Setting;
pub use trace::Trace;
