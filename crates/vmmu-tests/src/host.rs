//! The embedder of the tests: host memory, and the library's host traits over it.
//!
//! Key types: [`Host`] (what the library gets), [`HostState`] (what tests turn the switches of), [`Hooks`].
//!
//! Guest RAM lies at a host offset of its own; a slot's token is the host frame that its first frame begins at. Single frames can be moved elsewhere:
//! the host took the old one back.
//!
//! Invariants:
//! 1. Tables come from a pool that poisons what is freed and knows when it was freed.
//! 2. A frame that was taken back backs nothing any more and holds poison.
//! 3. Every word that the library stores in guest memory is noted, in order.

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vmmu::Mmu;
use vmmu::addr::{Gfn, Index, Level, Pfn};
use vmmu::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    MemoryToken, Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};
use vmmu_cpu::{Frame, Hpa, POISON, PhysMemory, Zone};

/// Host frames, all together.
pub const FRAMES: u64 = 0x8_0000;
/// Where the pool for tables and for moved frames lies.
pub const POOL: core::ops::Range<u64> = 0x100..0x3000;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Says whether this thread is in a method of the embedder: what is allocated there is not the library's.
#[must_use]
pub fn inside_host() -> bool {
    DEPTH.get() != 0
}

/// Marks a method of the embedder.
#[derive(Debug)]
struct Inside;

impl Inside {
    fn new() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// A function to run inside a call of the library.
pub type Hook<T> = Arc<dyn Fn(T) + Send + Sync>;

/// What runs inside calls of the library: to block there, or to do what another CPU could do just then.
#[derive(Clone, Default)]
pub struct Hooks {
    /// In a look-up, before its result is found.
    pub look_up: Option<Hook<BackedFrame>>,
    /// In a look-up, after its result was found.
    pub looked_up: Option<Hook<BackedFrame>>,
    /// Instead of taking the vCPU out of its guest.
    pub kick: Option<Hook<VcpuId>>,
    /// Before a table is allocated.
    pub allocate: Option<Hook<()>>,
    /// After an entry of a guest table was loaded, with its guest-physical address; under locks: it must not call the library.
    pub gpte: Option<Hook<u64>>,
    /// After an entry of a table was loaded; under locks, of tables perhaps: it may take frames back, and nothing else.
    pub entry: Option<Hook<(Pfn, Index)>>,
}

impl core::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// What changes under a lock.
#[derive(Debug, Default)]
struct Frames {
    /// Host frames of single guest frames that were moved, by token and number in the slot.
    moved: BTreeMap<(u64, u64), u64>,
    /// Frames that the host has write-protected until they are asked for to write.
    read_only: BTreeSet<(u64, u64)>,
    /// Frames that are not there at all.
    holes: BTreeSet<(u64, u64)>,
    /// Words that the library stored in guest memory: address, new value.
    gpte_writes: Vec<(u64, u64)>,
    kicks: Vec<VcpuId>,
    hooks: Hooks,
    table_frees: Vec<u64>,
}

/// The embedder's state.
#[derive(Debug)]
pub struct HostState {
    /// Host memory.
    pub memory: Arc<PhysMemory>,
    mmu: OnceLock<Weak<Mmu<Host>>>,
    frames: Mutex<Frames>,
    inside: Vec<AtomicBool>,
    /// 0: no limit; otherwise the largest level that a look-up grants.
    largest: AtomicU64,
    tables: AtomicU64,
    /// Counts table allocations, failed ones included.
    asked: AtomicU64,
    fail_at: AtomicU64,
    out_of_memory: AtomicBool,
}

/// The embedder as the library sees it.
#[derive(Clone, Debug)]
pub struct Host(pub Arc<HostState>);

impl HostState {
    /// Makes an embedder for `vcpus` vCPUs.
    #[must_use]
    pub fn new(vcpus: usize) -> Arc<Self> {
        let pool = Frame::new(POOL.start)..Frame::new(POOL.end);
        Arc::new(Self {
            memory: Arc::new(PhysMemory::with_pool(FRAMES, pool)),
            mmu: OnceLock::new(),
            frames: Mutex::default(),
            inside: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            largest: AtomicU64::new(0),
            tables: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            fail_at: AtomicU64::new(0),
            out_of_memory: AtomicBool::new(false),
        })
    }

    /// Tells the embedder whose vCPUs it kicks.
    pub fn attach(&self, mmu: &Arc<Mmu<Host>>) {
        let _ = self.mmu.set(Arc::downgrade(mmu));
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the host frame behind a frame of a slot.
    #[must_use]
    pub fn frame_of(&self, token: MemoryToken, frame: u64) -> u64 {
        let at = (token.0, frame);
        self.frames()
            .moved
            .get(&at)
            .copied()
            .unwrap_or(token.0 + frame)
    }

    /// Moves a frame to a new host frame with the same content, for every slot that shows it, and poisons the old one.
    ///
    /// # Panics
    /// If the pool is empty.
    pub fn move_frame(&self, shown: &[(MemoryToken, u64)]) {
        let Some((token, frame)) = shown.first() else {
            return;
        };
        let old = self.frame_of(*token, *frame);
        let new = self.memory.alloc(Zone::Any).expect("a frame in the pool");
        for word in 0..512 {
            let value = self.memory.load(Hpa::new((old << 12) + word * 8));
            self.memory.store(new.hpa().plus(word * 8), value);
        }
        for (token, frame) in shown {
            self.frames().moved.insert((token.0, *frame), new.get());
        }
        if POOL.contains(&old) {
            self.memory.free(Frame::new(old)).expect("it was allocated");
        } else {
            self.memory.fill(Frame::new(old), POISON);
        }
    }

    /// Makes a frame read-only on the host's side until it is asked for to write.
    pub fn share(&self, token: MemoryToken, frame: u64) {
        self.frames().read_only.insert((token.0, frame));
    }

    /// Makes a frame a hole, or memory again.
    pub fn set_hole(&self, token: MemoryToken, frame: u64, hole: Hole) {
        let mut frames = self.frames();
        match hole {
            Hole::Hole => frames.holes.insert((token.0, frame)),
            Hole::Memory => frames.holes.remove(&(token.0, frame)),
        };
    }

    /// Tells whether a frame was made a hole.
    #[must_use]
    pub fn is_hole(&self, token: MemoryToken, frame: u64) -> bool {
        self.frames().holes.contains(&(token.0, frame))
    }

    /// Limits the size that a look-up grants; `None` takes the limit away.
    pub fn limit_size(&self, largest: Option<Level>) {
        let limit = largest.map_or(0, |level| u64::from(level.get()));
        self.largest.store(limit, Ordering::SeqCst);
    }

    /// Lets look-ups fail for want of memory, or not.
    pub fn set_out_of_memory(&self, out: bool) {
        self.out_of_memory.store(out, Ordering::SeqCst);
    }

    /// Lets the `k`th table allocation from now fail (1: the next); 0: none.
    pub fn fail_table(&self, k: u64) {
        let at = if k == 0 {
            0
        } else {
            self.asked.load(Ordering::SeqCst) + k
        };
        self.fail_at.store(at, Ordering::SeqCst);
    }

    /// Returns how many tables were asked for.
    #[must_use]
    pub fn tables_asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// Returns how many tables the library has.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.tables.load(Ordering::SeqCst)
    }

    /// Returns the tables freed since the last call.
    pub fn take_table_frees(&self) -> Vec<u64> {
        core::mem::take(&mut self.frames().table_frees)
    }

    /// Returns the words that the library stored in guest memory since the last call.
    pub fn take_gpte_writes(&self) -> Vec<(u64, u64)> {
        core::mem::take(&mut self.frames().gpte_writes)
    }

    /// Returns the vCPUs kicked since the last call.
    pub fn take_kicks(&self) -> Vec<VcpuId> {
        core::mem::take(&mut self.frames().kicks)
    }

    /// Sets what runs inside calls.
    pub fn set_hooks(&self, hooks: Hooks) {
        self.frames().hooks = hooks;
    }

    /// Tells whether a vCPU is in its guest.
    #[must_use]
    pub fn is_inside(&self, vcpu: usize) -> bool {
        self.inside[vcpu].load(Ordering::SeqCst)
    }

    /// Notes that a vCPU has entered its guest.
    pub fn entered(&self, vcpu: usize) {
        self.inside[vcpu].store(true, Ordering::SeqCst);
    }

    /// Takes a vCPU out of its guest, if it is in there: the exit that a kick causes, or the guest.
    pub fn exit(&self, vcpu: usize) {
        if self.inside[vcpu].swap(false, Ordering::SeqCst)
            && let Some(mmu) = self.mmu.get().and_then(Weak::upgrade)
            && let Ok(handle) = mmu.vcpu(VcpuId(vcpu as u16))
        {
            handle.exited();
        }
    }

    fn gpte(&self, frame: BackedFrame, offset: u16) -> Result<Hpa, GuestMemoryError> {
        if self.frames().holes.contains(&(frame.token.0, frame.frame)) {
            return Err(GuestMemoryError::OutOfRange);
        }
        let frame = self.frame_of(frame.token, frame.frame);
        Ok(Hpa::new((frame << 12) + u64::from(offset)))
    }

    /// Returns the largest block around a frame that is contiguous and aligned alike.
    fn largest(&self, frame: BackedFrame, pfn: u64) -> Level {
        let mut best = Level::L1;
        let limit = self.largest.load(Ordering::SeqCst);
        let frames = self.frames();
        for level in [Level::L2, Level::L3] {
            let offset = frame.gfn.get() & (level.frames() - 1);
            if pfn & (level.frames() - 1) != offset || frame.frame < offset {
                break;
            }
            let first = frame.frame - offset;
            let block = (frame.token.0, first)..(frame.token.0, first + level.frames());
            let whole = frames.moved.range(block.clone()).next().is_none()
                && frames.read_only.range(block.clone()).next().is_none()
                && frames.holes.range(block).next().is_none();
            if !whole || (limit != 0 && u64::from(level.get()) > limit) {
                break;
            }
            best = level;
        }
        best
    }
}

/// Whether there is memory behind a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hole {
    /// There is none.
    Hole,
    /// There is.
    Memory,
}

fn slot_address(table: Pfn, slot: Index) -> Hpa {
    Hpa::new((table.get() << 12) + slot.get() as u64 * 8)
}

impl TableMemory for Host {
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        let _inside = Inside::new();
        let entry = self.0.memory.load(slot_address(table, slot));
        let hook = self.0.frames().hooks.entry.clone();
        if let Some(hook) = hook {
            hook((table, slot));
        }
        entry
    }
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        let _inside = Inside::new();
        // A store to a present entry would be the end of rule R3.
        let old = self.0.memory.swap(slot_address(table, slot), entry);
        assert_eq!(old, 0, "a present entry was overwritten");
    }
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        let _inside = Inside::new();
        self.0.memory.swap(slot_address(table, slot), entry)
    }
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let _inside = Inside::new();
        self.0
            .memory
            .compare_exchange(slot_address(table, slot), current, new)
    }
}

impl TableAllocator for Host {
    fn allocate_table(&self, place: TablePlace) -> Result<Pfn, OutOfTables> {
        let _inside = Inside::new();
        let hook = self.0.frames().hooks.allocate.clone();
        if let Some(hook) = hook {
            hook(());
        }
        let asked = self.0.asked.fetch_add(1, Ordering::SeqCst) + 1;
        if asked == self.0.fail_at.load(Ordering::SeqCst) {
            return Err(OutOfTables);
        }
        let zone = match place {
            TablePlace::Anywhere => Zone::Any,
            TablePlace::Below4Gib => Zone::Below4G,
        };
        let frame = self.0.memory.alloc(zone).ok_or(OutOfTables)?;
        self.0.tables.fetch_add(1, Ordering::SeqCst);
        Ok(Pfn::new(frame.get()))
    }
    fn free_table(&self, table: Pfn) {
        let _inside = Inside::new();
        self.0
            .memory
            .free(Frame::new(table.get()))
            .expect("a table is freed once");
        self.0.tables.fetch_sub(1, Ordering::SeqCst);
        self.0.frames().table_frees.push(table.get());
    }
}

impl GuestMemory for Host {
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        let _inside = Inside::new();
        let at = self.0.gpte(frame, offset)?;
        let entry = match width {
            GpteWidth::Bytes4 => u64::from(self.0.memory.load32(at)),
            GpteWidth::Bytes8 => self.0.memory.load(at),
        };
        let hook = self.0.frames().hooks.gpte.clone();
        if let Some(hook) = hook {
            hook(gpa_of(frame.gfn) + u64::from(offset));
        }
        Ok(entry)
    }

    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        width: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        let _inside = Inside::new();
        let at = self.0.gpte(frame, offset)?;
        let result = match width {
            GpteWidth::Bytes4 => self
                .0
                .memory
                .compare_exchange32(at, current as u32, new as u32)
                .map(u64::from)
                .map_err(u64::from),
            GpteWidth::Bytes8 => self.0.memory.compare_exchange(at, current, new),
        };
        if result.is_ok() {
            let gpa = (frame.gfn.get() << 12) + u64::from(offset);
            self.0.frames().gpte_writes.push((gpa, new));
        }
        Ok(result)
    }
}

impl FrameLookup for Host {
    fn look_up(&self, frame: BackedFrame, need: Need) -> Result<HostFrame, LookupError> {
        let _inside = Inside::new();
        let hooks = self.0.frames().hooks.clone();
        if let Some(hook) = hooks.look_up {
            hook(frame);
        }
        if self.0.out_of_memory.load(Ordering::SeqCst) {
            return Err(LookupError::OutOfMemory);
        }
        let at = (frame.token.0, frame.frame);
        if self.0.frames().holes.contains(&at) {
            return Err(LookupError::Hole);
        }
        if need == Need::Write {
            self.0.frames().read_only.remove(&at);
        }
        let pfn = self.0.frame_of(frame.token, frame.frame);
        let found = HostFrame {
            pfn: Pfn::new(pfn),
            largest: self.0.largest(frame, pfn),
            writable: !self.0.frames().read_only.contains(&at),
        };
        if let Some(hook) = hooks.looked_up {
            hook(frame);
        }
        Ok(found)
    }
}

impl Processors for Host {
    type Gate = vmmu::gate::Fenced;
    fn kick(&self, vcpu: VcpuId) {
        let _inside = Inside::new();
        let hook = {
            let mut frames = self.0.frames();
            frames.kicks.push(vcpu);
            frames.hooks.kick.clone()
        };
        match hook {
            Some(hook) => hook(vcpu),
            None => self.0.exit(usize::from(vcpu.0)),
        }
    }
    fn relax(&self, round: u32) {
        let _inside = Inside::new();
        if round > 64 {
            std::thread::yield_now();
        }
    }
}

/// Returns the token of memory that begins at a host frame.
#[must_use]
pub const fn token(first: u64) -> MemoryToken {
    MemoryToken(first)
}

/// Returns a guest frame number's first address.
#[must_use]
pub const fn gpa_of(gfn: Gfn) -> u64 {
    gfn.get() << 12
}

impl HostState {
    /// Returns the numbers of frames of a slot that were moved to a host frame.
    #[must_use]
    pub fn moved_to(&self, token: MemoryToken, host: u64) -> Vec<u64> {
        let range = (token.0, 0)..(token.0, u64::MAX);
        let frames = self.frames();
        let moved = frames.moved.range(range);
        moved
            .filter(|(_, to)| **to == host)
            .map(|((_, number), _)| *number)
            .collect()
    }
}
