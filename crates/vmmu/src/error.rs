//! The library's error type.
//!
//! Invariant: an operation that returns an [`Error`] has left the structures as they were, or further along in a way that the
//! caller cannot tell from having been slow (rule R11): repeating it is always right.

use crate::addr::{Gfn, Gpa};
use crate::config::Engine;
use crate::host::{OutOfTables, VcpuId};
use crate::paging::{GuestFormat, PhysBits};
use crate::slots::{AddressSpace, SlotId};

/// Why an operation was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The embedder has no frame for a table.
    #[error("no frame is left for a table")]
    OutOfTables,
    /// The global allocator has no memory for bookkeeping.
    #[error("no memory is left for bookkeeping")]
    OutOfMemory,
    /// All shadow pages are in use by vCPUs, so that reclaim finds none.
    #[error("the limit of {limit} shadow pages is too small for what the vCPUs use at once")]
    PageLimit {
        /// The limit configured.
        limit: u32,
    },
    /// The host cannot provide the frame.
    #[error("the host has no memory for guest frame {gfn}")]
    HostMemory {
        /// The guest frame.
        gfn: Gfn,
    },
    /// The slot overlaps another one of its address space.
    #[error("memory slot at {base} overlaps another one in {space:?}")]
    SlotOverlap {
        /// The slot's first frame.
        base: Gfn,
        /// Its address space.
        space: AddressSpace,
    },
    /// The slot is empty or reaches beyond the guest's physical addresses.
    #[error(
        "memory slot at {base} with {frames} frames is empty or beyond the guest-physical address space"
    )]
    SlotRange {
        /// The slot's first frame.
        base: Gfn,
        /// Its length.
        frames: u64,
    },
    /// All slots are in use.
    #[error("no memory slot is free")]
    TooManySlots,
    /// There is no such slot.
    #[error("no memory slot {0:?}")]
    NoSuchSlot(SlotId),
    /// There is no such vCPU.
    #[error("no vCPU {}", .0.0)]
    NoSuchVcpu(VcpuId),
    /// The fault is the other engine's: served here it would map memory where nobody looks for it.
    #[error("a fault of another engine than {engine:?}")]
    WrongEngine {
        /// The engine configured.
        engine: Engine,
    },
    /// Another thread is in a call for this vCPU.
    #[error("vCPU {} is in use by another thread", .0.0)]
    VcpuBusy(VcpuId),
    /// The engine does not serve guests with this paging format.
    #[error("the engine has no {format:?} paging yet")]
    UnsupportedFormat {
        /// The guest's format.
        format: GuestFormat,
    },
    /// A guest table lies outside guest memory.
    #[error("a guest table lies outside guest memory, at {gpa}")]
    TableMissing {
        /// The entry's address.
        gpa: Gpa,
    },
    /// The configuration asks for what is not there.
    #[error("configuration: {0}")]
    Config(&'static str),
    /// The host's physical addresses are wider than a table entry can hold.
    #[error("physical addresses of {} bits", .0.get())]
    PhysBits(PhysBits),
}

impl From<OutOfTables> for Error {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

impl From<alloc::collections::TryReserveError> for Error {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        Self::OutOfMemory
    }
}
