//! The embedder: tables with poison, guest memory as a history, frames that move.
//!
//! Key types: [`Host`], [`State`] (what changes). Frame numbers: tables from [`FIRST_TABLE`] on; guest frame `n` begins as `n` + [`OFFSET`] and moves
//! to frames that were never used before.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shuttle::sync::atomic::AtomicU64 as Shared;
use vmmu::addr::{Index, Level, Pfn, TABLE_SLOTS};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};
use vmmu_spec::{Memory, Physical, Time, Width, WriteLog};

/// Guest frames, all together.
pub(crate) const FRAMES: u64 = 0x600;
const OFFSET: u64 = 0x1_0000;
const FIRST_TABLE: u64 = 0x100;
const TABLES: usize = 64;
const POISON: u64 = 0xdead_dead_dead_d000;

/// Guest memory begins as zeros.
#[derive(Debug)]
pub(crate) struct Zeros;

impl Memory for Zeros {
    fn read(&self, at: Physical, _: Width) -> Option<u64> {
        (at.get() >> 12 < FRAMES).then_some(0)
    }
}

/// What changes; no other thread runs while it is borrowed.
#[derive(Debug)]
pub(crate) struct State {
    /// What guest tables hold and held.
    pub(crate) log: WriteLog<Zeros>,
    /// Where guest frames are that have moved, and which guest frame is where.
    moved: BTreeMap<u64, u64>,
    next: u64,
    /// Frames that are taken back: nobody uses them, and nothing is stored in them.
    pub(crate) taken: BTreeSet<u64>,
    /// Writes to tables that are in memory and not yet reported: the time before each.
    pub(crate) unreported: Vec<Time>,
    /// How often each frame of data was written, and what of that has been copied after a harvest.
    pub(crate) versions: BTreeMap<u64, u64>,
    pub(crate) copied: BTreeMap<u64, u64>,
    free: Vec<u64>,
}

impl State {
    /// Returns the host frame of a guest frame.
    pub(crate) fn backing(&self, gfn: u64) -> u64 {
        self.moved.get(&gfn).copied().unwrap_or(OFFSET + gfn)
    }

    /// Returns the guest frame that a host frame backs now.
    pub(crate) fn backed(&self, pfn: u64) -> Option<u64> {
        let home = pfn.checked_sub(OFFSET).filter(|gfn| *gfn < FRAMES);
        let moved = self.moved.iter().find(|(_, at)| **at == pfn);
        let is_home = home.filter(|gfn| !self.moved.contains_key(gfn));
        moved.map(|(gfn, _)| *gfn).or(is_home)
    }

    /// Moves a guest frame to a host frame that was never used.
    pub(crate) fn move_frame(&mut self, gfn: u64) {
        self.moved.insert(gfn, self.next);
        self.next += 1;
    }

    /// Returns an entry of a guest table.
    pub(crate) fn entry(&self, gpa: u64) -> u64 {
        self.log.read(Physical::new(gpa), Width::Eight).unwrap_or(0)
    }

    /// Stores an entry of a guest table.
    pub(crate) fn store(&mut self, gpa: u64, value: u64) {
        self.log.write(Physical::new(gpa), Width::Eight, value);
    }
}

/// The embedder.
#[derive(Debug)]
pub(crate) struct Host {
    state: Mutex<State>,
    tables: Vec<AtomicU64>,
    bus: Shared,
    /// By vCPU: it is asked to leave its guest.
    kicked: [AtomicU64; 3],
}

impl Host {
    pub(crate) fn new() -> Self {
        let state = State {
            log: WriteLog::new(Zeros),
            moved: BTreeMap::new(),
            next: 4 * OFFSET,
            taken: BTreeSet::new(),
            unreported: Vec::new(),
            versions: BTreeMap::new(),
            copied: BTreeMap::new(),
            free: (FIRST_TABLE..).take(TABLES).collect(),
        };
        Self {
            state: Mutex::new(state),
            tables: (0..TABLES * TABLE_SLOTS)
                .map(|_| AtomicU64::new(0))
                .collect(),
            bus: Shared::new(0),
            kicked: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Passes a point where the scheduler may choose somebody else.
    pub(crate) fn bus(&self) {
        self.bus.load(Ordering::SeqCst);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether a vCPU was asked to leave its guest, since this was last asked.
    pub(crate) fn take_kick(&self, vcpu: u16) -> bool {
        self.kicked[usize::from(vcpu)].swap(0, Ordering::SeqCst) != 0
    }

    /// An entry of a table, reached over the bus.
    fn slot(&self, table: Pfn, slot: Index) -> &AtomicU64 {
        self.bus();
        let at = (table.get() - FIRST_TABLE) as usize * TABLE_SLOTS + slot.get();
        &self.tables[at]
    }
}

fn sound(entry: u64) -> u64 {
    assert_ne!(entry, POISON, "a freed table was used");
    entry
}

impl TableMemory for Host {
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        sound(self.slot(table, slot).load(Ordering::SeqCst))
    }
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        let old = self.slot(table, slot).swap(entry, Ordering::SeqCst);
        assert_eq!(old, 0, "a present entry was overwritten");
    }
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        sound(self.slot(table, slot).swap(entry, Ordering::SeqCst))
    }
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let order = Ordering::SeqCst;
        let slot = self.slot(table, slot);
        slot.compare_exchange(current, new, order, order)
            .map_err(sound)
    }
}

impl TableAllocator for Host {
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        self.bus();
        // The one that was freed last: whoever has it still is found out.
        let table = self.state().free.pop().ok_or(OutOfTables)?;
        let first = (table - FIRST_TABLE) as usize * TABLE_SLOTS;
        for word in &self.tables[first..first + TABLE_SLOTS] {
            word.store(0, Ordering::SeqCst);
        }
        Ok(Pfn::new(table))
    }
    fn free_table(&self, table: Pfn) {
        self.bus();
        let first = (table.get() - FIRST_TABLE) as usize * TABLE_SLOTS;
        for word in &self.tables[first..first + TABLE_SLOTS] {
            word.store(POISON, Ordering::SeqCst);
        }
        self.state().free.push(table.get());
    }
}

impl GuestMemory for Host {
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        self.bus();
        Ok(self
            .state()
            .entry(frame.gfn.address().get() + u64::from(offset)))
    }
    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        self.bus();
        let mut state = self.state();
        let is_taken = state.taken.contains(&frame.gfn.get());
        assert!(!is_taken, "a bit in a frame that was taken back");
        let gpa = frame.gfn.address().get() + u64::from(offset);
        let found = state.entry(gpa);
        if found == current {
            state.store(gpa, new);
            return Ok(Ok(found));
        }
        Ok(Err(found))
    }
}

impl FrameLookup for Host {
    fn look_up(&self, frame: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
        self.bus();
        let pfn = self.state().backing(frame.gfn.get());
        self.bus();
        Ok(HostFrame {
            pfn: Pfn::new(pfn),
            largest: Level::L1,
            writable: true,
        })
    }
}

impl Processors for Host {
    type Gate = vmmu::gate::Fenced;
    fn kick(&self, vcpu: VcpuId) {
        self.bus();
        self.kicked[usize::from(vcpu.0)].store(1, Ordering::SeqCst);
    }
    fn relax(&self, _: u32) {
        shuttle::thread::yield_now();
    }
}
