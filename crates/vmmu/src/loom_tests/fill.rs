//! Neighbours that are prefetched, against those who make their entries wrong: the host, a reported write, the end of their table.

use super::world::{
    ALL, D, E, LoomMmu, SLOT, TABLE, bare_call, explore, frame_of, gpte, role, world,
};
use crate::addr::{Gpa, Level, Pfn};
use crate::debt::Debt;
use crate::fill::Miss;
use crate::page::{PageId, SpteRef};
use crate::slots::SlotFlags;
use crate::sync::Ordering;
use loom::thread;
use std::sync::Arc;

/// A VM with a page for [`TABLE`], which maps [`D`] and nothing is installed for yet; and the frame behind that.
fn world_to_fill() -> (Arc<LoomMmu>, PageId, Pfn) {
    let mmu = world(SlotFlags::empty());
    mmu.poke(TABLE, SLOT, gpte(D));
    let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
    mmu.run_guest(0);
    let old = mmu.host.backing(D, 0);
    (mmu, page, old)
}

/// Prefetches the first slot of a page, then lets the processor touch it.
fn fill(mmu: &LoomMmu, page: PageId) {
    let call = mmu.call();
    let decoder = mmu.decoder(role(Level::L1, ALL));
    call.fill(page, decoder, [SLOT].into_iter(), Miss::GoOn);
    mmu.touch(page, SLOT);
}

/// T5: a frame is taken back between the look-up of a neighbour and its installation.
///
/// Red under the mutant FillWithoutCheck.
#[test]
fn a_frame_taken_back_is_not_prefetched() {
    explore("invalidation | fill", || {
        let (mmu, page, old) = world_to_fill();
        loom::explore();
        let filler = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || fill(&mmu, page))
        };
        let invalidation = mmu.invalidate_begin(D, 1);
        assert_eq!(mmu.spte(page, SLOT), 0);
        assert_eq!(mmu.host.tlb(), 0);
        mmu.host.moved.store(1, Ordering::Release);
        drop(invalidation);
        filler.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
        assert_ne!(frame_of(mmu.host.tlb()), Some(old));
    });
}

/// T13: the guest's entry of a neighbour changes between its reading and its installation.
///
/// Red under the mutant PrefetchWithoutRecheck.
#[test]
fn a_reported_write_leaves_no_stale_neighbour() {
    explore("reported write | fill", || {
        let (mmu, page, old) = world_to_fill();
        loom::explore();
        let filler = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || fill(&mmu, page))
        };
        mmu.poke(TABLE, SLOT, gpte(E));
        mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
        assert_ne!(frame_of(mmu.host.tlb()), Some(old));
        filler.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
        assert_ne!(frame_of(mmu.host.tlb()), Some(old));
    });
}

/// A page dies while its neighbours are prefetched.
///
/// Red under the mutant FillDead.
#[test]
fn nothing_is_prefetched_into_a_dead_table() {
    explore("zap of the table | fill", || {
        let (mmu, page, _) = world_to_fill();
        // Whoever prefetches has found the page in the same call, while it was alive.
        let keeper = mmu.grace.enter_vcpu(0);
        loom::explore();
        let filler = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || fill(&mmu, page))
        };
        {
            let call = mmu.call();
            let mut debt = Debt::new(&call);
            assert!(call.zap(page, &mut debt));
            debt.pay();
            assert_eq!(mmu.spte(page, SLOT), 0);
            assert_eq!(mmu.host.tlb(), 0);
        }
        filler.join().unwrap();
        loom::stop_exploring();
        drop(keeper);
        assert!(!bare_call(&mmu).maps(D, SpteRef::new(page, SLOT)));
        assert_eq!(mmu.gate.count(), 0);
    });
}
