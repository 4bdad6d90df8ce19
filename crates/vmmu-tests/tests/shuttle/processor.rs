//! A vCPU's thread: a processor with a TLB that keeps what it may, and the guest's accesses and writes.
//!
//! Key type: [`Processor`]. It walks the library's tables with the guest's addresses; under nested paging those are guest-physical. A kick is served between two accesses, as by a processor that finishes its instruction.

use std::sync::Arc;

use vmmu::addr::{Gpa, Gva, Index, Pfn, TABLE_SLOTS};
use vmmu::host::{TableMemory, VcpuId};
use vmmu::paging::{Cr0, Cr3, PagingState};
use vmmu::walk::AccessKind;
use vmmu::{AddressSpace, Engine, FaultOutcome, Mmu, TlbFlush, Vcpu};
use vmmu_spec::{Access, ErrorCode, Kind, Observation, Physical, Privilege};
use vmmu_tests::convert;
use vmmu_tests::guest::long4;

use crate::host::Host;
use crate::judge::{self, Begun, Flushes};
use crate::program::{self, Slots};
use crate::tlb::{Leaf, SMALL, Tlb, frame_of};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
/// How often an access is repeated.
const TRIES: usize = 60;

/// Returns the accessed and the dirty bit of an engine's entries.
pub(crate) fn used_bits(engine: Engine) -> (u64, u64) {
    match engine {
        Engine::Ept => (1 << 8, 1 << 9),
        _ => (1 << 5, 1 << 6),
    }
}

/// A processor and its vCPU.
#[derive(Debug)]
pub(crate) struct Processor {
    mmu: Arc<Mmu<Host>>,
    slots: Arc<Slots>,
    id: u16,
    engine: Engine,
    /// `None` before the first load.
    paging: Option<PagingState>,
    inside: bool,
    root: u64,
    tlb: Tlb,
    flushes: Flushes,
    pub(crate) random: fastrand::Rng,
}

/// Where an access went, or what it raised.
enum Shown {
    Memory(u64),
    Other(Observation),
}

impl Processor {
    pub(crate) fn new(mmu: &Arc<Mmu<Host>>, slots: &Arc<Slots>, id: u16, engine: Engine) -> Self {
        Self {
            mmu: Arc::clone(mmu),
            slots: Arc::clone(slots),
            id,
            engine,
            paging: None,
            inside: false,
            root: 0,
            tlb: Tlb::default(),
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
            self.tlb.flush();
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

    /// Stores an entry of a guest table as an emulator does: announced, stored, reported.
    pub(crate) fn write_and_report(&mut self, gpa: u64, value: u64) {
        self.leave();
        let writing = self.mmu.begin_write(Gpa::new(gpa), 8);
        self.mmu.host().state().store(gpa, value);
        self.mmu.host().bus();
        writing.report();
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
        if self.engine != Engine::Shadow {
            program::judge_nested(va, seen);
            judge::count(&self.mmu.host().counts.judged, 1);
            return;
        }
        let paging = self.paging.as_ref().expect("a root is loaded");
        let counts = &self.mmu.host().counts;
        begun.judge(&state, paging, &self.flushes, (va, access), seen, counts);
    }

    /// Stores what the guest writes through its translation.
    fn store(&self, frame: u64, va: u64, value: u64) {
        let mut state = self.mmu.host().state();
        let gfn = state.backed(frame).expect("it was there just now");
        if self.engine == Engine::Shadow && gfn < program::DATA {
            state.store((gfn << 12) + (va & 0xfff), value);
        } else {
            *state.versions.entry(gfn).or_default() += 1;
        }
    }

    /// Finds the host frame of an address, in the TLB or by a walk; `None` is a fault.
    fn translate(&mut self, va: u64, writes: bool) -> Option<u64> {
        let (_, dirty) = used_bits(self.engine);
        let bits = if writes { WRITE | dirty } else { 0 };
        let cached = self.tlb.find(va).filter(|leaf| leaf.entry & bits == bits);
        // Whatever it has cached, a processor may walk.
        if let Some(leaf) = cached
            && self.random.u8(..4) != 0
        {
            return Some(leaf.frame(va));
        }
        let Some(leaf) = self.walk(va, writes) else {
            return cached.map(|leaf| leaf.frame(va));
        };
        if self.random.u8(..4) != 0 {
            self.tlb.keep(va, leaf);
        }
        Some(leaf.frame(va))
    }

    fn walk(&mut self, va: u64, writes: bool) -> Option<Leaf> {
        let (mut table, mut level) = (self.root, 4);
        if let Some(known) = self.tlb.table(va) {
            (table, level) = (known, SMALL);
        }
        while level > SMALL {
            let entry = self.visit(table, va, level, writes)?;
            if entry & LARGE != 0 {
                return Some(Leaf { entry, level });
            }
            table = frame_of(entry);
            level -= 1;
        }
        if self.random.bool() {
            self.tlb.keep_table(va, table);
        }
        let entry = self.visit(table, va, level, writes)?;
        Some(Leaf { entry, level })
    }

    /// Reads an entry and sets its accessed bit, and for a write that of a leaf's dirty bit; `None` if it does not allow the access.
    fn visit(&self, table: u64, va: u64, level: u32, writes: bool) -> Option<u64> {
        let host = self.mmu.host();
        let (accessed, dirty) = used_bits(self.engine);
        let slot = (va >> (12 + 9 * (level - 1)) & 511) as usize % TABLE_SLOTS;
        let (page, index) = (Pfn::new(table), Index::truncate(slot));
        let mut old = host.load(page, index);
        loop {
            let is_leaf = level == SMALL || old & LARGE != 0;
            let writes = writes && is_leaf;
            if old & PRESENT == 0 || (writes && old & WRITE == 0) {
                return None;
            }
            let marked = old | accessed | if writes { dirty } else { 0 };
            if marked != old
                && let Err(found) = host.compare_exchange(page, index, old, marked)
            {
                old = found;
                continue;
            }
            if is_leaf {
                let mut state = host.state();
                let frame = Leaf { entry: old, level }.frame(va);
                let gfn = state.backed(frame).expect("a leaf maps guest memory");
                state.usage.walked((table, slot), gfn, writes);
            }
            return Some(marked);
        }
    }

    /// Lets the library serve a fault; returns what the access shows, or `None` if it has to be repeated.
    fn fault(&mut self, va: u64, access: Access, value: Option<u64>) -> Option<Observation> {
        self.leave();
        self.tlb.drop_leaf(va);
        let outcome = if self.engine == Engine::Shadow {
            self.vcpu()
                .handle_fault(Gva::new(va), convert::access(access))
        } else {
            let kind = if access.is_write() {
                AccessKind::Write
            } else {
                AccessKind::Read
            };
            self.vcpu().handle_nested_fault(Gpa::new(va), kind)
        };
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
