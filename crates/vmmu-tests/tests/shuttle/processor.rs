//! A vCPU's thread: a processor with a TLB and a cache of tables that keep what they may, and the guest's accesses and writes.
//!
//! Key type: [`Processor`]. A kick is served between two accesses, as by a processor that finishes its instruction.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmmu::addr::{Gpa, Gva, Index, Pfn, TABLE_SLOTS};
use vmmu::host::{TableMemory, VcpuId};
use vmmu::paging::{Cr0, Cr3, PagingState};
use vmmu::{AddressSpace, FaultOutcome, Mmu, TlbFlush, Vcpu};
use vmmu_spec::{Access, ErrorCode, Kind, Observation, Physical, Privilege};
use vmmu_tests::convert;
use vmmu_tests::guest::long4;

use crate::host::Host;
use crate::judge::{Begun, Flushes};
use crate::program::{self, Slots};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// How often an access is repeated.
const TRIES: usize = 60;

/// A processor and its vCPU.
#[derive(Debug)]
pub(crate) struct Processor {
    mmu: Arc<Mmu<Host>>,
    slots: Arc<Slots>,
    id: u16,
    /// `None` before the first load.
    paging: Option<PagingState>,
    inside: bool,
    root: u64,
    /// Leaves, by page.
    tlb: BTreeMap<u64, u64>,
    /// Level-1 tables, by 2 MiB.
    tables: BTreeMap<u64, u64>,
    flushes: Flushes,
    pub(crate) random: fastrand::Rng,
}

/// Where an access went, or what it raised.
enum Shown {
    Memory(u64),
    Other(Observation),
}

impl Processor {
    pub(crate) fn new(mmu: &Arc<Mmu<Host>>, slots: &Arc<Slots>, id: u16) -> Self {
        Self {
            mmu: Arc::clone(mmu),
            slots: Arc::clone(slots),
            id,
            paging: None,
            inside: false,
            root: 0,
            tlb: BTreeMap::new(),
            tables: BTreeMap::new(),
            flushes: Flushes::default(),
            random: fastrand::Rng::with_seed(0),
        }
    }

    fn vcpu(&self) -> Vcpu<'_, Host> {
        self.mmu.vcpu(VcpuId(self.id)).expect("the vCPU")
    }

    /// Leaves the guest, if it is in there.
    pub(crate) fn leave(&mut self) {
        if core::mem::take(&mut self.inside) {
            self.vcpu().exited();
        }
    }

    /// Serves a kick, and is in its guest.
    fn go_on(&mut self) {
        if self.mmu.host().take_kick(self.id) {
            self.leave();
        }
        if self.inside {
            return;
        }
        let entry = self.vcpu().enter().expect("there is memory");
        if entry.flush {
            self.tlb.clear();
            self.tables.clear();
        }
        (self.root, self.inside) = (entry.root.get() >> 12, true);
    }

    /// Loads CR3, or switches CR0.WP: everything is flushed.
    pub(crate) fn set_paging(&mut self, root: u64, protects: bool) {
        self.leave();
        let at = self.mmu.host().state().log.now();
        let mut paging = PagingState {
            cr3: Cr3::new(root << 12),
            ..long4(root)
        };
        paging.cr0.set(Cr0::WP, protects);
        let is_load = self.paging.is_some_and(|old| old.cr0 == paging.cr0);
        self.paging = Some(paging);
        if is_load {
            self.vcpu().load_cr3(paging.cr3).expect("there is memory");
        } else {
            let space = AddressSpace::Normal;
            let set = self.vcpu().set_paging(&paging, space);
            set.expect("there is memory");
        }
        self.flushes.flush(at);
    }

    pub(crate) fn load_root(&mut self, root: u64) {
        let protects = self.paging.is_none_or(|old| old.cr0.contains(Cr0::WP));
        self.set_paging(root, protects);
    }

    /// Executes INVLPG.
    pub(crate) fn invlpg(&mut self, va: u64) {
        self.leave();
        let at = self.mmu.host().state().log.now();
        let flush = TlbFlush::Address(Gva::new(va));
        self.vcpu().invalidate(flush).expect("there is memory");
        self.flushes.flush_page(va, at);
    }

    /// Stores an entry of a guest table as an emulator does, and reports it.
    pub(crate) fn write_and_report(&mut self, gpa: u64, value: u64) {
        self.leave();
        let before = {
            let mut state = self.mmu.host().state();
            let before = state.log.now();
            state.unreported.push(before);
            state.store(gpa, value);
            before
        };
        self.mmu.host().bus();
        self.mmu.guest_wrote(Gpa::new(gpa), 8);
        let mut state = self.mmu.host().state();
        let at = state.unreported.iter().position(|time| *time == before);
        state.unreported.swap_remove(at.expect("it was put there"));
    }

    /// Reads or writes as a user; `value` is what a write to a table stores.
    pub(crate) fn access(&mut self, va: u64, value: Option<u64>) {
        let kind = if value.is_some() {
            Kind::Write
        } else {
            Kind::Read
        };
        let access = Access::new(kind, Privilege::User);
        let begun = Begun::now(&self.mmu.host().state());
        for _ in 0..TRIES {
            self.go_on();
            let shown = match self.translate(va, access.is_write()) {
                Some(frame) => Shown::Memory(frame),
                None => match self.fault(va, access, value) {
                    Some(seen) => Shown::Other(seen),
                    None => continue,
                },
            };
            self.judge(&begun, (va, access), &shown);
            if let (Shown::Memory(frame), Some(value)) = (shown, value) {
                self.store(frame, va, value);
            }
            return;
        }
    }

    fn judge(&self, begun: &Begun, (va, access): (u64, Access), shown: &Shown) {
        let state = self.mmu.host().state();
        let seen = match shown {
            Shown::Memory(frame) => {
                let gfn = state
                    .backed(*frame)
                    .expect("a frame that was taken back is used");
                assert!(
                    !state.taken.contains(&gfn),
                    "a frame that is taken back is used"
                );
                self.slots.judge(gfn, access.is_write());
                Observation::Access(Physical::new((gfn << 12) + (va & 0xfff)))
            }
            Shown::Other(seen) => *seen,
        };
        let paging = self.paging.as_ref().expect("a root is loaded");
        begun.judge(&state, paging, &self.flushes, (va, access), seen);
    }

    /// Stores what the guest writes through its translation.
    fn store(&self, frame: u64, va: u64, value: u64) {
        let mut state = self.mmu.host().state();
        let gfn = state.backed(frame).expect("it was there just now");
        if gfn < program::DATA {
            state.store((gfn << 12) + (va & 0xfff), value);
        } else {
            *state.versions.entry(gfn).or_default() += 1;
        }
    }

    /// Finds the host frame of an address, in the TLB or by a walk; `None` is a fault.
    fn translate(&mut self, va: u64, writes: bool) -> Option<u64> {
        let bits = if writes { WRITE | DIRTY } else { 0 };
        let cached = self.tlb.get(&(va >> 12)).copied();
        if let Some(leaf) = cached.filter(|leaf| leaf & bits == bits) {
            return Some((leaf & FRAME) >> 12);
        }
        let leaf = self.walk(va, writes)?;
        if self.random.u8(..4) != 0 {
            self.tlb.insert(va >> 12, leaf);
        }
        Some((leaf & FRAME) >> 12)
    }

    fn walk(&mut self, va: u64, writes: bool) -> Option<u64> {
        let (mut table, mut level) = (self.root, 4);
        if let Some(known) = self.tables.get(&(va >> 21)) {
            (table, level) = (*known, 1);
        }
        while level > 1 {
            let link = self.visit(table, va, level, false)?;
            table = (link & FRAME) >> 12;
            level -= 1;
        }
        if self.random.bool() {
            self.tables.insert(va >> 21, table);
        }
        self.visit(table, va, 1, writes)
    }

    /// Reads an entry and sets its accessed bit, and for a write its dirty bit; `None` if it does not allow the access.
    fn visit(&self, table: u64, va: u64, level: u32, writes: bool) -> Option<u64> {
        let host = self.mmu.host();
        let slot = (va >> (12 + 9 * (level - 1)) & 511) as usize;
        let (table, slot) = (Pfn::new(table), Index::truncate(slot % TABLE_SLOTS));
        let mut old = host.load(table, slot);
        loop {
            if old & PRESENT == 0 || (writes && old & WRITE == 0) {
                return None;
            }
            let marked = old | ACCESSED | if writes { DIRTY } else { 0 };
            if marked == old {
                return Some(old);
            }
            match host.compare_exchange(table, slot, old, marked) {
                Ok(_) => return Some(marked),
                Err(found) => old = found,
            }
        }
    }

    /// Lets the library serve a fault; returns what the access shows, or `None` if it has to be repeated.
    fn fault(&mut self, va: u64, access: Access, value: Option<u64>) -> Option<Observation> {
        self.leave();
        self.tlb.remove(&(va >> 12));
        let outcome = self
            .vcpu()
            .handle_fault(Gva::new(va), convert::access(access));
        match outcome.expect("there is memory") {
            FaultOutcome::Resume | FaultOutcome::Retry => None,
            FaultOutcome::InjectPageFault { code, .. } => {
                let code = ErrorCode::from_bits_truncate(code.bits());
                Some(Observation::PageFault(code))
            }
            FaultOutcome::EmulateWrite { gpa, .. } => {
                let value = value.expect("only a write is emulated");
                self.write_and_report(gpa.get(), value);
                Some(Observation::Access(Physical::new(gpa.get())))
            }
            FaultOutcome::EmulateMmio { gpa, .. } => {
                Some(Observation::Access(Physical::new(gpa.get())))
            }
            other => panic!("{va:#x}: {other:?}"),
        }
    }
}
