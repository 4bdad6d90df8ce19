//! Every check is seen failing: a sound structure is damaged in one way, and the audit finds just that.

use super::{AuditFinding as Found, AuditReport, Strictness};
use crate::addr::{Gfn, Gva, Index, Level, Pfn};
use crate::host::{MemoryToken, TableAllocator, TableMemory, TablePlace, VcpuId};
use crate::page::{Flags, Page, PageId, Record, SpteRef};
use crate::rmap::Head;
use crate::spte::Spte;
use crate::sync::{Locks, Ordering};
use crate::testhost::{AD, Guest, PWU, RAM, TestHost, long_mode, machine};
use crate::walk::{Access, AccessKind};
use crate::{AddressSpace, Engine, FaultOutcome, Mmu, SlotConfig, SlotFlags};
use alloc::vec::Vec;

/// Frames of guest RAM.
const FRAMES: usize = 2048;
/// The guest's root table.
const ROOT: Gfn = Gfn::new(100);
/// Four small pages.
const SMALL: u64 = 0x40_0000;
/// A 2 MiB page of the guest, mapped as one.
const LARGE: u64 = 0x4000_0000;
/// A 2 MiB page of the guest over tables: mapped in small pieces by a direct page.
const SPLIT: u64 = 0x8000_0000;

struct World {
    mmu: Mmu<TestHost>,
}

/// Makes a guest with small pages, a large one, and a split one, and touches them.
fn world() -> World {
    let (mmu, _) = machine(Engine::Shadow, (64, FRAMES), |_| {});
    mmu.host().allow(Level::L2);
    let mut guest = Guest::new(ROOT);
    for i in 0..4 {
        let page = (Gfn::new(600 + i), Level::L1);
        guest.map(mmu.host(), SMALL + i * 4096, page, PWU | AD);
    }
    let large = (Gfn::new(1024), Level::L2);
    guest.map(mmu.host(), LARGE, large, PWU | AD);
    let split = (Gfn::new(0), Level::L2);
    guest.map(mmu.host(), SPLIT, split, PWU | AD);
    let world = World { mmu };
    world.set_root();
    for gva in [SMALL, SMALL + 4096, LARGE, SPLIT + 0x20_0000 - 4096] {
        assert_eq!(world.touch(gva, Access::USER_WRITE), FaultOutcome::Resume);
    }
    world
}

impl World {
    fn set_root(&self) {
        let vcpu = self.mmu.vcpu(VcpuId(0)).unwrap();
        vcpu.set_paging(&long_mode(ROOT), AddressSpace::Normal)
            .unwrap();
    }

    fn touch(&self, gva: u64, access: Access) -> FaultOutcome {
        let vcpu = self.mmu.vcpu(VcpuId(0)).unwrap();
        vcpu.handle_fault(Gva::new(gva), access).unwrap()
    }

    fn page(&self, id: PageId) -> &Page {
        self.mmu.pool.get(id)
    }

    /// Follows the tables to the slot for `gva` in the page of `level`.
    fn slot(&self, gva: u64, level: Level) -> (PageId, Index) {
        let local = self.mmu.vcpu(VcpuId(0)).unwrap();
        let mut id = local.shared.local.claim().unwrap().referenced().unwrap();
        loop {
            let at = self.page(id).role().level();
            let index = at.index(gva);
            if at == level {
                return (id, index);
            }
            let Record::Link(child) = self.page(id).record(index) else {
                panic!("{gva:#x} has no page of {level:?}");
            };
            id = child;
        }
    }

    fn spte(&self, (id, slot): (PageId, Index)) -> u64 {
        self.mmu.host().load(self.page(id).table(), slot)
    }

    fn poke(&self, (id, slot): (PageId, Index), spte: u64) {
        self.mmu.host().store(self.page(id).table(), slot, spte);
    }

    /// Returns what the audit finds.
    fn findings(&self, strictness: Strictness) -> Vec<Found> {
        match self.mmu.audit(strictness) {
            Ok(_) => Vec::new(),
            Err(failure) => failure.findings().to_vec(),
        }
    }

    /// Asserts that the audit has one finding, and that it is `expected`.
    #[track_caller]
    fn expect(&self, expected: impl Fn(&Found) -> bool) {
        let found = self.findings(Strictness::Exact);
        assert!(found.len() == 1 && expected(&found[0]), "found {found:#?}");
    }

    /// Asserts that `expected` is among the findings: a damage that breaks several rules at once.
    #[track_caller]
    fn expect_among(&self, expected: impl Fn(&Found) -> bool) {
        let found = self.findings(Strictness::Exact);
        assert!(found.iter().any(expected), "found {found:#?}");
    }
}

const SMALL_SLOT: (u64, Level) = (SMALL, Level::L1);

#[test]
fn a_sound_structure_passes_and_is_counted() {
    let world = world();
    let report = world.mmu.audit(Strictness::Exact).unwrap();
    let expected = AuditReport {
        pages: 7,
        indirect: 6,
        clean: 7,
        links: 6,
        tracked: 6,
        leaves: [3, 1, 0],
        ..AuditReport::default()
    };
    assert_eq!(report, expected);
    assert_eq!(report.leaves(Level::L1), 3);
}

#[test]
fn an_entry_without_presence_bit() {
    let world = world();
    let (id, slot) = world.slot(SMALL_SLOT.0, SMALL_SLOT.1);
    world
        .page(id)
        .clear_present(slot.get() / 64, 1 << (slot.get() % 64));
    world.expect(|f| matches!(f, Found::NoPresenceBit { .. }));
}
