//! Whole faults, from the walk of the guest's tables to the leaf, against what the pairs of the other files play step by step.

use super::world::{
    ALL, D, E, LoomMmu, SLOT, TABLE, UPPER, explore, frame_of, gpte, paging, role, world,
};
use crate::addr::{Gfn, Gpa, Gva, Index, Level};
use crate::host::VcpuId;
use crate::outcome::FaultOutcome;
use crate::page::PageId;
use crate::slots::{AddressSpace, SlotFlags};
use crate::sync::{Locks, Ordering};
use crate::walk::{Access, AccessKind, Privilege};
use loom::thread;
use std::sync::Arc;

fn fault(mmu: &LoomMmu, gva: u64) -> FaultOutcome {
    let privilege = Privilege::new(3, crate::paging::Rflags::empty());
    mmu.vcpu(VcpuId(0))
        .unwrap()
        .handle_fault(Gva::new(gva), Access::new(AccessKind::Read, privilege))
        .unwrap()
}

/// A VM whose guest has mapped slot 1 of [`TABLE`] already, so that all tables above it are there; returns the shadow of [`TABLE`].
fn running() -> (Arc<LoomMmu>, PageId) {
    let mmu = world(SlotFlags::empty());
    for (table, target) in [(4, Gfn::new(3)), (3, UPPER), (2, TABLE), (1, D)] {
        mmu.poke(Gfn::new(table), SLOT, gpte(target));
    }
    mmu.poke(TABLE, Index::truncate(1), gpte(E));
    let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    vcpu.set_paging(&paging(), AddressSpace::Normal).unwrap();
    assert_eq!(fault(&mmu, 0x1000), FaultOutcome::Resume);
    let locks = Locks::default();
    let page = mmu
        .frames
        .lock(&locks, TABLE)
        .find(&mmu.pool, TABLE, role(Level::L1, ALL))
        .unwrap();
    (mmu, page)
}

/// T5 with a whole fault.
///
/// Red without: the tests of `busy` and of the sequence in `is_unchanged`; if the snapshot is taken after the look-up.
#[test]
fn a_fault_does_not_map_a_frame_taken_back() {
    explore("fault | invalidation", || {
        let (mmu, page) = running();
        let old = mmu.host.backing(D, 0);
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let _ = fault(&mmu, 0);
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let invalidation = mmu.invalidate_begin(D, 1);
                assert_eq!(mmu.spte(page, SLOT), 0);
                mmu.host.moved.store(1, Ordering::Release);
                drop(invalidation);
            })
        };
        guest.join().unwrap();
        host.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
    });
}

/// M1 with a whole fault.
///
/// Red without the re-read in `recheck`.
#[test]
fn a_fault_does_not_outlive_a_reported_write() {
    explore("fault | reported write", || {
        let (mmu, page) = running();
        let old = mmu.host.backing(D, 0);
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let _ = fault(&mmu, 0);
            })
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(TABLE, SLOT, gpte(E));
                mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
                assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
            })
        };
        guest.join().unwrap();
        writer.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
    });
}
