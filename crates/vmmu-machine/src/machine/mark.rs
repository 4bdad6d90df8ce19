//! What was counted when a guest said that a phase begins or ends.
//!
//! Key type: [`Mark`].

use vmmu::Stats;

use crate::vmm::runner::Exits;

/// Where a phase of one of the project's guests begins or ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edge {
    /// It begins.
    Start,
    /// It ends.
    End,
}

/// All counters at an edge of a phase.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The phase's number.
    pub phase: u8,
    /// Which edge.
    pub edge: Edge,
    /// Operations of the phase, known at its start.
    pub operations: u32,
    /// Instructions of the processor that runs the phase.
    pub instructions: u64,
    /// Its exits.
    pub exits: Exits,
    /// The library's counters.
    pub stats: Stats,
}
