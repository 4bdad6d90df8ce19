//! Memory slots that change, against those who install what they found in them.

use super::world::{
    ALL, D, LoomMmu, SLOT, TABLE, bare_call, explore_less, gpte, role, walk_to, way, world_of_slots,
};
use crate::addr::Level;
use crate::config::Engine;
use crate::page::PageId;
use crate::slots::{SlotFlags, SlotId};
use crate::spte::Spte;
use crate::walk::AccessKind;
use loom::thread;
use std::sync::Arc;

/// The slot of [`D`].
const DATA: SlotId = SlotId(1);

/// A VM whose data have a slot of their own.
fn world_of_two() -> (Arc<LoomMmu>, PageId) {
    let slots = [(0, 0x200), (0x200, 0x200)];
    let mmu = world_of_slots(Engine::Shadow, &slots, SlotFlags::empty(), |_| {});
    mmu.poke(TABLE, SLOT, gpte(D));
    let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
    mmu.run_guest(0);
    (mmu, page)
}

/// Installs [`D`] as a fault does, with what its slot allows, and lets the processor touch it.
fn install(mmu: &LoomMmu, page: PageId) {
    let call = bare_call(mmu);
    if let Some(leaf) = call.leaf_in_slot(D, ALL) {
        let walk = walk_to(D);
        let way = way(&walk, page, AccessKind::Read);
        let _ = call.place(&way, page, Level::L1, SLOT, &leaf);
        mmu.touch(page, SLOT);
    }
}

/// L4: a slot is removed between its look-up and the installation: when that returns nothing maps it, and nothing does later.
///
/// Two counts tell of it, and either suffices: red under the mutant SlotChangeUnseen, which hides both. Red under SlotChangeKeepsMappings.
#[test]
fn a_removed_slot_is_not_mapped() {
    explore_less("slot removal | look-up and install", || {
        let (mmu, page) = world_of_two();
        loom::explore();
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || install(&mmu, page))
        };
        mmu.remove_slot(DATA).unwrap();
        assert_eq!(mmu.spte(page, SLOT), 0);
        assert_eq!(mmu.host.tlb(), 0);
        installer.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.spte(page, SLOT), 0);
        assert_eq!(mmu.host.tlb(), 0);
    });
}

/// L4: the same for a slot that becomes read-only: no entry that allows writing outlives that.
///
/// Red under the mutants SlotChangeUnseen and SlotChangeKeepsMappings.
#[test]
fn a_slot_that_becomes_read_only_is_not_mapped_writable() {
    explore_less("slot flags | look-up and install", || {
        let (mmu, page) = world_of_two();
        loom::explore();
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || install(&mmu, page))
        };
        mmu.set_slot_flags(DATA, SlotFlags::READ_ONLY).unwrap();
        assert_eq!(mmu.spte(page, SLOT) & Spte::WRITE, 0);
        assert_eq!(mmu.host.tlb() & Spte::WRITE, 0);
        installer.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.spte(page, SLOT) & Spte::WRITE, 0);
        assert_eq!(mmu.host.tlb() & Spte::WRITE, 0);
    });
}
