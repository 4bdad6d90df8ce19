//! A host for loom: tables, guest entries and host frames are loom atomics, and each vCPU has a TLB with one entry.
//!
//! Key types: [`LoomHost`] (the embedder), [`Cpu`] (a processor that may be in its guest).
//!
//! Invariants:
//! 1. A table that was freed is poisoned, and every access to one panics.
//! 2. A kicked processor empties its TLB, leaves, and stays outside: what it does meanwhile happens before the kick.

use crate::addr::{Gfn, Index, Level, Pfn, TABLE_SLOTS};
use crate::host::{
    BackedFrame, FrameLookup, GpteWidth, GuestMemory, GuestMemoryError, HostFrame, LookupError,
    Need, OutOfTables, Processors, TableAllocator, TableMemory, TablePlace, VcpuId,
};
use crate::mmu::Mmu;
use crate::spte::Spte;
use crate::sync::{AtomicU64, Counter, Ordering};
use loom::sync::Mutex;
use std::sync::{OnceLock, Weak};

/// What a freed table holds.
const POISON: u64 = 0xdead_dead_dead_d000;
/// Tables that the allocator has.
const TABLES: u64 = 8;
/// Host frame of the first table.
const FIRST_TABLE: u64 = 0x100;
/// Guest frames with entries: 0 to 4.
const GUEST_TABLES: u64 = 5;
/// Where guest memory lies in host memory.
pub(super) const OFFSET: u64 = 0x1000;

/// A processor: whether it runs its guest, and the one translation that its TLB has, 0 for none.
#[derive(Debug, Default)]
pub(super) struct Cpu {
    pub(super) in_guest: bool,
    pub(super) tlb: u64,
}

/// The embedder of the tests.
#[derive(Debug)]
pub(super) struct LoomHost {
    tables: [[AtomicU64; TABLE_SLOTS]; TABLES as usize],
    given: Counter,
    pub(super) gptes: [[AtomicU64; TABLE_SLOTS]; GUEST_TABLES as usize],
    /// Raised when the host moves its frames: what backs a guest frame then.
    pub(super) moved: AtomicU64,
    pub(super) cpus: [Mutex<Cpu>; 1],
    /// How often a processor was kicked that nobody plays here.
    pub(super) kicks: AtomicU64,
    pub(super) mmu: OnceLock<Weak<Mmu<LoomHost>>>,
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    core::array::from_fn(|_| AtomicU64::new(0))
}

impl LoomHost {
    pub(super) fn new() -> Self {
        Self {
            tables: core::array::from_fn(|_| zeros()),
            given: Counter::new(0),
            gptes: core::array::from_fn(|_| zeros()),
            moved: AtomicU64::new(0),
            cpus: core::array::from_fn(|_| Mutex::new(Cpu::default())),
            kicks: AtomicU64::new(0),
            mmu: OnceLock::new(),
        }
    }

    fn entry(&self, table: Pfn, slot: Index) -> &AtomicU64 {
        &self.tables[(table.get() - FIRST_TABLE) as usize][slot.get()]
    }

    /// Walks as the processor in its guest does: from its TLB, else from the table, filling the TLB. Returns what it uses, 0 for a fault or
    /// if it is not in its guest.
    pub(super) fn touch(&self, table: Pfn, slot: Index) -> u64 {
        let mut cpu = self.cpus[0].lock().unwrap();
        if cpu.in_guest && cpu.tlb == 0 {
            cpu.tlb = self.load(table, slot);
        }
        cpu.tlb
    }

    /// Sets accessed and dirty bits in an entry, as the processor in its guest does while it walks: DIRTY for a write, which the entry has to allow.
    /// Fills the TLB, and does `then` before it can be taken out of its guest; tells whether it did.
    pub(super) fn walk(&self, table: Pfn, slot: Index, bits: u64, then: impl FnOnce()) -> bool {
        let mut cpu = self.cpus[0].lock().unwrap();
        let entry = self.entry(table, slot);
        let mut old = entry.load(Ordering::Acquire);
        while cpu.in_guest && Spte::new(old).is_present() {
            if bits & Spte::DIRTY != 0 && old & Spte::WRITE == 0 {
                return false;
            }
            let marked =
                entry.compare_exchange(old, old | bits, Ordering::AcqRel, Ordering::Acquire);
            match marked {
                Ok(_) => {
                    cpu.tlb = old | bits;
                    then();
                    return true;
                }
                Err(found) => old = found,
            }
        }
        false
    }

    /// Writes a guest entry as the guest does, through the TLB entry that the processor has, if that is writable.
    pub(super) fn write_through_tlb(&self, table: Gfn, slot: Index, value: u64) {
        let cpu = self.cpus[0].lock().unwrap();
        if cpu.in_guest && cpu.tlb & Spte::WRITE != 0 {
            self.gptes[table.get() as usize][slot.get()].store(value, Ordering::Relaxed);
        }
    }

    /// Returns what the processor's TLB has.
    pub(super) fn tlb(&self) -> u64 {
        self.cpus[0].lock().unwrap().tlb
    }
}

fn sound(entry: u64) -> u64 {
    assert_ne!(entry, POISON, "a freed table was used");
    entry
}

impl TableMemory for LoomHost {
    fn load(&self, table: Pfn, slot: Index) -> u64 {
        sound(self.entry(table, slot).load(Ordering::Acquire))
    }
    fn store(&self, table: Pfn, slot: Index, entry: u64) {
        self.entry(table, slot).store(entry, Ordering::Release);
    }
    fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
        sound(self.entry(table, slot).swap(entry, Ordering::AcqRel))
    }
    fn compare_exchange(
        &self,
        table: Pfn,
        slot: Index,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        self.entry(table, slot)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            .map_err(sound)
    }
}

impl TableAllocator for LoomHost {
    fn allocate_table(&self, _place: TablePlace) -> Result<Pfn, OutOfTables> {
        let n = self.given.fetch_add(1, Ordering::Relaxed);
        if n < TABLES {
            Ok(Pfn::new(FIRST_TABLE + n))
        } else {
            Err(OutOfTables)
        }
    }
    fn free_table(&self, table: Pfn) {
        for slot in 0..TABLE_SLOTS {
            self.store(table, Index::truncate(slot), POISON);
        }
    }
}

impl GuestMemory for LoomHost {
    fn load_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _width: GpteWidth,
    ) -> Result<u64, GuestMemoryError> {
        Ok(self.gptes[frame.frame as usize][usize::from(offset) / 8].load(Ordering::Acquire))
    }
    fn compare_exchange_gpte(
        &self,
        frame: BackedFrame,
        offset: u16,
        _width: GpteWidth,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, GuestMemoryError> {
        Ok(
            self.gptes[frame.frame as usize][usize::from(offset) / 8].compare_exchange(
                current,
                new,
                Ordering::AcqRel,
                Ordering::Acquire,
            ),
        )
    }
}

impl FrameLookup for LoomHost {
    fn look_up(&self, frame: BackedFrame, _need: Need) -> Result<HostFrame, LookupError> {
        Ok(HostFrame {
            pfn: self.backing(frame.gfn, self.moved.load(Ordering::Acquire)),
            largest: Level::L3,
            writable: true,
        })
    }
}

impl LoomHost {
    /// Returns the host frame of `gfn` after `moved` moves.
    pub(super) fn backing(&self, gfn: Gfn, moved: u64) -> Pfn {
        Pfn::new(OFFSET * (1 + moved) + gfn.get())
    }
}

impl Processors for LoomHost {
    type Gate = crate::gate::Fenced;
    fn kick(&self, vcpu: VcpuId) {
        let mut cpu = self.cpus[usize::from(vcpu.0)].lock().unwrap();
        if cpu.in_guest {
            *cpu = Cpu::default();
            if let Some(mmu) = self.mmu.get().and_then(Weak::upgrade)
                && let Ok(vcpu) = mmu.vcpu(vcpu)
            {
                vcpu.exited();
            }
        } else {
            self.kicks.fetch_add(1, Ordering::AcqRel);
        }
    }
    fn relax(&self, _round: u32) {}
}
