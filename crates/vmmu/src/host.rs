//! What an embedder gives the library: the one file of traits that a hypervisor implements.
//!
//! | trait | what it reaches | called with locks held? |
//! |---|---|---|
//! | [`TableMemory`] | one entry of a table that the processor walks | yes |
//! | [`TableAllocator`] | frames for such tables | never |
//! | [`GuestMemory`] | page-table entries in guest memory | yes: must not block |
//! | [`FrameLookup`] | guest frame to host frame | never: may block |
//! | [`Processors`] | taking a CPU out of its guest | never |
//!
//! [`Host`] is their sum, implemented for everything that implements all five.
//!
//! Invariants that an embedder keeps:
//! 1. A method that this table allows under locks neither blocks, allocates, nor calls back into the library.
//! 2. A method called without locks may block, and may take its time: other threads' faults go on meanwhile. It must not call
//!    back into the library for the same vCPU.
//! 3. Every access to a table or to a guest entry is one atomic access of its size, with at least the ordering named.

use crate::addr::{Gfn, Index, Level, Pfn};

use crate::gate::Strategy;
pub use crate::walk::GpteWidth;

/// The embedder's own name for a piece of host memory that backs a memory slot: a host address, a file handle, an index.
///
/// The library stores it and hands it back, nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct MemoryToken(pub u64);

/// A frame of guest memory as the embedder knows it: the slot's token and the frame's number within the slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackedFrame {
    /// The token given with the memory slot.
    pub token: MemoryToken,
    /// The frame's number counted from the slot's first frame.
    pub frame: u64,
    /// The guest frame number, for embedders that key by it.
    pub gfn: Gfn,
}

/// Access to the entries of tables that the processor walks.
///
/// The processor sets accessed and dirty bits in them at any time, so that nothing here may be cached.
pub trait TableMemory {
    /// Loads an entry (Acquire). Called with and without locks.
    fn load(&self, table: Pfn, slot: Index) -> u64;
    /// Stores an entry (Release). Called under the table's lock, for an entry that is not present.
    fn store(&self, table: Pfn, slot: Index, entry: u64);
    /// Exchanges an entry (AcqRel) and returns the old one. Called under locks.
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64;
    /// Replaces `current` by `new` (AcqRel), or returns what is there (Acquire). Called under locks.
    ///
    /// # Errors
    /// The entry found, when it is not `current`.
    fn compare_exchange(&self, table: Pfn, slot: Index, current: u64, new: u64)
    -> Result<u64, u64>;
}

/// Where a table has to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TablePlace {
    /// Any host frame.
    Anywhere,
    /// Below 4 GiB: the root of PAE-format paging is loaded into a 32-bit CR3.
    Below4Gib,
}

/// No frame is left for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfTables;

/// Frames for tables.
pub trait TableAllocator {
    /// Allocates a frame filled with zeros. No lock is held; may block.
    ///
    /// # Errors
    /// [`OutOfTables`], which the caller of the library sees as [`crate::Error::OutOfTables`] with the structures as before.
    fn allocate_table(&self, place: TablePlace) -> Result<Pfn, OutOfTables>;
    /// Takes a frame back. No lock is held, and no processor can reach the frame any more (rule R8).
    fn free_table(&self, table: Pfn);
}

/// Why guest memory could not be read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GuestMemoryError {
    /// The frame is not there at the moment: the library leaves its locks, looks the frame up ([`FrameLookup::look_up`]) and retries.
    NotResident,
    /// The backing has no such frame.
    OutOfRange,
    /// The memory cannot be written (host-side protection).
    ReadOnly,
}

/// Page-table entries in guest memory.
pub trait GuestMemory {
    /// Loads one entry at `offset` bytes into the frame, naturally aligned (Acquire). May be called under locks: must not block.
    ///
    /// # Errors
    /// See [`GuestMemoryError`].
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
    ) -> Result<u64, GuestMemoryError>;

    /// Replaces `current` by `new` (AcqRel): the accessed and dirty bits of a guest entry. Whoever invalidates the frame waits for it: must not block, nor
    /// call the library.
    ///
    /// The library has checked the slot, has marked nothing yet, and holds off [`crate::Mmu::invalidate_begin`] for the frame (rule R13).
    /// Returns the old entry if it was replaced, and what is there otherwise.
    ///
    /// # Errors
    /// See [`GuestMemoryError`].
    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError>;

    /// Compares the 512 entries of a table with `copy`, under `mask`, and sets a bit of the result for each that differs.
    ///
    /// Called under the table's lock. The default loads one entry at a time; an embedder whose memory is mapped does it in one loop.
    ///
    /// # Errors
    /// See [`GuestMemoryError`].
    fn diff_table(
        &self,
        frame: BackedFrame,
        copy: &[u64; 512],
        mask: u64,
    ) -> Result<[u64; 8], GuestMemoryError> {
        let mut differing = [0; 8];
        for (i, old) in copy.iter().enumerate() {
            let new = self.load_gpte(frame, i as u16 * 8, GpteWidth::Bytes8)?;
            if (new ^ old) & mask != 0 {
                differing[i / 64] |= 1 << (i % 64);
            }
        }
        Ok(differing)
    }
}

/// A host frame, and what the host side allows with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFrame {
    /// The host frame of the 4 KiB asked for.
    pub pfn: Pfn,
    /// The largest block around it that is contiguous, aligned alike in the slot and in host memory, and may be mapped as one.
    pub largest: Level,
    /// Whether the host allows writing (copy-on-write on the host's side says no). After [`Need::Write`], no makes the access one to read-only memory.
    pub writable: bool,
}

/// Why a guest frame has no host frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LookupError {
    /// Nothing backs the frame: the access is to a device.
    Hole,
    /// The host has no memory for it now.
    OutOfMemory,
    /// The frame is poisoned or otherwise gone for good.
    Poisoned,
}

/// From guest frames to host frames.
pub trait FrameLookup {
    /// Finds the host frame of `frame`, writable if `need` says so. No lock is held; may block (paging in).
    ///
    /// # Errors
    /// See [`LookupError`].
    fn look_up(&self, frame: BackedFrame, need: Need) -> Result<HostFrame, LookupError>;
}

/// What an access needs of a host frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Reading or fetching.
    Read,
    /// Writing: break copy-on-write now.
    Write,
}

/// A vCPU's number, below [`crate::Config::vcpus`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u16);

/// The processors that run the guest.
///
/// TLB flushes with completion are the library's own protocol ([`crate::Vcpu::enter`]): a request, a kick, and a wait until the CPU has left its guest.
/// It flushes its own TLB before it enters again, because `enter` tells it to.
pub trait Processors {
    /// How guest writes and new shadow pages are ordered: [`crate::gate::Fenced`], unless there is a barrier on other processors to be had.
    type Gate: Strategy;
    /// Returns it. Called once, when the MMU is made.
    fn gate(&self) -> Self::Gate {
        Self::Gate::default()
    }
    /// Makes the processor that runs `vcpu` leave its guest soon, and [`crate::Vcpu::exited`] be called for it. No lock is held.
    ///
    /// Called again and again until it has left, so that a kick may be lost.
    fn kick(&self, vcpu: VcpuId);
    /// Passes the time in a wait for another CPU, `round` counting from 0. No lock is held.
    fn relax(&self, round: u32) {
        let _ = round;
        core::hint::spin_loop();
    }
}

/// All of an embedder.
pub trait Host:
    TableMemory + TableAllocator + GuestMemory + FrameLookup + Processors + Send + Sync
{
}
impl<T: TableMemory + TableAllocator + GuestMemory + FrameLookup + Processors + Send + Sync> Host
    for T
{
}
