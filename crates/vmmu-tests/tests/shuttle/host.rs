//! The embedder: tables with poison, frames that move, kicks.
//!
//! Key type: [`Host`]. Tables are host frames from [`FIRST_TABLE`] on; `state` has all else.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shuttle::sync::atomic::AtomicU64 as Shared;
use vmmu::addr::{Index, Level, Pfn, TABLE_SLOTS};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};

use crate::judge::Counts;
use crate::state::State;

const FIRST_TABLE: u64 = 0x100;
const TABLES: usize = 64;
const POISON: u64 = 0xdead_dead_dead_d000;
/// What allows writing, in entries of every kind.
const WRITE: u64 = 1 << 1;

/// The embedder.
#[derive(Debug)]
pub(crate) struct Host {
    state: Mutex<State>,
    /// What the test has to show.
    pub(crate) counts: Arc<Counts>,
    /// The largest leaf that it allows.
    largest: Level,
    tables: Vec<AtomicU64>,
    bus: Shared,
    /// By vCPU: it is asked to leave its guest.
    kicked: [AtomicU64; 3],
}

impl Host {
    pub(crate) fn new(largest: Level, counts: Arc<Counts>) -> Self {
        let state = State::new((FIRST_TABLE..).take(TABLES));
        Self {
            state: Mutex::new(state),
            counts,
            largest,
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
        &self.words(table.get())[slot.get()]
    }

    fn words(&self, table: u64) -> &[AtomicU64] {
        let first = (table - FIRST_TABLE) as usize * TABLE_SLOTS;
        &self.tables[first..first + TABLE_SLOTS]
    }

    /// Returns an entry while nobody runs.
    pub(crate) fn peek(&self, (table, slot): (u64, usize)) -> u64 {
        self.words(table)[slot].load(Ordering::SeqCst)
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
        let old = sound(self.slot(table, slot).swap(entry, Ordering::SeqCst));
        if entry == 0 {
            let at = (table.get(), slot.get());
            self.state().usage.removed(at);
        }
        old
    }
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let order = Ordering::SeqCst;
        let word = self.slot(table, slot);
        let old = word.compare_exchange(current, new, order, order);
        if old.is_ok() && current & !new & WRITE != 0 {
            let at = (table.get(), slot.get());
            self.state().usage.narrowed(at);
        }
        old.map_err(sound)
    }
}

impl TableAllocator for Host {
    fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
        self.bus();
        // The one that was freed last: whoever has it still is found out.
        let table = self.state().free.pop().ok_or(OutOfTables)?;
        for word in self.words(table) {
            word.store(0, Ordering::SeqCst);
        }
        Ok(Pfn::new(table))
    }
    fn free_table(&self, table: Pfn) {
        self.bus();
        for word in self.words(table.get()) {
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

/// A host that is fickle while its guest runs: now and then it allows less than it could, and what was looked up for reading may not be written.
impl FrameLookup for Host {
    fn look_up(&self, frame: BackedFrame, need: Need) -> Result<HostFrame, LookupError> {
        self.bus();
        let found = {
            let mut state = self.state();
            let gfn = frame.gfn.get();
            state.look_ups += 1;
            let is_small = state.is_fickle && state.look_ups % 3 == 0;
            HostFrame {
                pfn: Pfn::new(state.backing(gfn)),
                largest: if is_small {
                    Level::L1
                } else {
                    state.largest(gfn).min(self.largest)
                },
                writable: need == Need::Write || !state.is_fickle || state.look_ups % 2 == 0,
            }
        };
        self.bus();
        Ok(found)
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
