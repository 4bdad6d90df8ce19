//! The library's embedder: guest RAM, table frames, and the devices that pass through.
//!
//! A memory slot's token is the host frame of its first frame, with its top bit set if it is no RAM. All memory is resident: nothing here
//! blocks.

use alloc::sync::Arc;

use vmmu::addr::{Index, Level, Pfn};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    MemoryToken, Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};

use crate::arch::guest_ram::GuestRam;
use crate::arch::physical::TableWord;
use crate::cpus::Cpus;
use crate::tables::TableFrames;

/// Marks the token of a slot of device memory.
const DEVICE: u64 = 1 << 63;

/// The embedder.
#[derive(Debug)]
pub struct SvmHost {
    ram: Arc<GuestRam>,
    /// Frames for tables.
    pub tables: TableFrames,
    cpus: Arc<Cpus>,
}

impl SvmHost {
    /// Makes the embedder.
    pub const fn new(ram: Arc<GuestRam>, tables: TableFrames, cpus: Arc<Cpus>) -> Self {
        Self { ram, tables, cpus }
    }
    /// Returns the token of a slot of RAM that starts at a host frame.
    pub const fn ram_token(first: Pfn) -> MemoryToken {
        MemoryToken(first.get())
    }
    /// Returns the token of a slot of device memory that starts at a host frame.
    pub const fn device_token(first: Pfn) -> MemoryToken {
        MemoryToken(first.get() | DEVICE)
    }
    #[inline]
    fn frame(frame: BackedFrame) -> Pfn {
        Pfn::new((frame.token.0 & !DEVICE) + frame.frame)
    }
    /// Returns the host frame of RAM.
    #[inline]
    fn ram_frame(frame: BackedFrame) -> Result<Pfn, GuestMemoryError> {
        if frame.token.0 & DEVICE == 0 {
            Ok(Self::frame(frame))
        } else {
            Err(GuestMemoryError::OutOfRange)
        }
    }
}

impl TableMemory for SvmHost {
    #[inline]
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        self.tables.frames.word(table, slot).load()
    }
    #[inline]
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        self.tables.frames.word(table, slot).store(entry);
    }
    #[inline]
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        self.tables.frames.word(table, slot).exchange(entry)
    }
    #[inline]
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        self.tables
            .frames
            .word(table, slot)
            .compare_exchange(current, new)
    }
}

impl TableAllocator for SvmHost {
    // All frames lie below 4 GiB.
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        self.tables.allocate().ok_or(OutOfTables)
    }
    fn free_table(&self, table: Pfn) {
        self.tables.free(table);
    }
}

impl GuestMemory for SvmHost {
    #[inline]
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        let frame = Self::ram_frame(frame)?;
        let loaded = match width {
            GpteWidth::Bytes8 => self.ram.frame_word64(frame, offset).map(TableWord::load),
            GpteWidth::Bytes4 => self.ram.frame_load32(frame, offset).map(u64::from),
        };
        loaded.ok_or(GuestMemoryError::OutOfRange)
    }

    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        let frame = Self::ram_frame(frame)?;
        let result = match width {
            GpteWidth::Bytes8 => self
                .ram
                .frame_word64(frame, offset)
                .map(|word| word.compare_exchange(current, new)),
            GpteWidth::Bytes4 => self
                .ram
                .frame_compare_exchange32(frame, offset, current as u32, new as u32)
                .map(|result| result.map(u64::from).map_err(u64::from)),
        };
        result.ok_or(GuestMemoryError::OutOfRange)
    }

    fn diff_table(
        &self,
        frame: BackedFrame,
        copy: &[u64; 512],
        mask: u64,
    ) -> Result<[u64; 8], GuestMemoryError> {
        let frame = Self::ram_frame(frame)?;
        self.ram
            .frame_diff(frame, copy, mask)
            .ok_or(GuestMemoryError::OutOfRange)
    }
}

impl FrameLookup for SvmHost {
    #[inline]
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        let pfn = Self::frame(frame);
        let largest = if frame.token.0 & DEVICE != 0 {
            Level::L1
        } else {
            alike(pfn, frame)
        };
        Ok(HostFrame {
            pfn,
            largest,
            writable: true,
        })
    }
}

/// Returns the largest block that host and guest frame lie alike in. Slots are contiguous; the library keeps to their edges itself.
#[inline]
fn alike(pfn: Pfn, frame: BackedFrame) -> Level {
    let apart = pfn.get() ^ frame.gfn.get();
    if apart & (Level::L3.frames() - 1) == 0 {
        Level::L3
    } else if apart & (Level::L2.frames() - 1) == 0 {
        Level::L2
    } else {
        Level::L1
    }
}

impl Processors for SvmHost {
    type Gate = vmmu::gate::Fenced;
    fn kick(&self, vcpu: VcpuId) {
        self.cpus.kick(vcpu);
    }
    fn relax(&self, round: u32) {
        self.cpus.relax(round);
    }
}
