//! Roots that a vCPU remembers, against their end.

use super::world::{LoomMmu, SLOT, TABLE, explore_less, paging, role, world};
use crate::addr::{Gfn, Level, Pfn};
use crate::host::{TableMemory, VcpuId};
use crate::page::PageId;
use crate::paging::Cr3;
use crate::slots::{AddressSpace, SlotFlags};
use crate::sync::Locks;
use crate::walk::Rights;
use loom::thread;
use std::sync::Arc;

/// What CR3 names first and last.
const FIRST: Gfn = Gfn::new(4);
/// What it names in between.
const SECOND: Gfn = Gfn::new(3);

fn page_of(mmu: &LoomMmu, table: Pfn) -> Option<PageId> {
    let locks = Locks::default();
    let mut ids = mmu.pool.ids(&locks);
    ids.find(|id| mmu.pool.get(*id).table() == table)
}

/// T10, rule R8: a root that a vCPU had before is loaded again while it is zapped and its page is used for another table: the vCPU runs on a
/// table of its own, that nobody frees.
///
/// Red under the mutants SwitchUnguarded, ReferencesIgnored.
#[test]
fn a_previous_root_is_not_taken_for_another_page() {
    explore_less("previous root | zap", || {
        let mmu = world(SlotFlags::empty());
        let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
        vcpu.set_paging(&paging(), AddressSpace::Normal).unwrap();
        let first = vcpu.shared.local.claim().unwrap().roots.loaded().unwrap();
        vcpu.load_cr3(Cr3::new(SECOND.address().get())).unwrap();
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
                vcpu.load_cr3(Cr3::new(FIRST.address().get())).unwrap();
                let entry = vcpu.enter().unwrap();
                let table = Pfn::new(entry.root.get() >> 12);
                mmu.host.load(table, SLOT);
                let page = page_of(&mmu, table).expect("the root's table is a page's");
                assert_eq!(mmu.pool.get(page).gfn(), FIRST);
                vcpu.exited();
            })
        };
        assert!(mmu.zap(first));
        // The end of that call has freed the page, unless somebody is at it.
        let other = mmu.make_page(TABLE, role(Level::L4, Rights::all()));
        guest.join().unwrap();
        loom::stop_exploring();
        let page = mmu.pool.get(other);
        assert!(page.is_alive() && page.gfn() == TABLE);
    });
}
