//! Frames that are aged, against faults, the processor's own walks, and the host that takes frames back.

use super::sizes::{mapped, table_of, walk};
use super::world::{
    ALL, D, E, LoomMmu, READ, SLOT, TABLE, bare_call, explore, frame_of, gpte, role, walk_to, way,
    world,
};
use crate::addr::{Gfn, Level};
use crate::page::PageId;
use crate::slots::SlotFlags;
use crate::spte::Spte;
use crate::walk::{AccessKind, Rights};
use loom::thread;
use std::sync::Arc;

/// What a write sets.
const AD: u64 = Spte::ACCESSED | Spte::DIRTY;

/// Ages one frame; tells whether it was used.
fn age(mmu: &LoomMmu, gfn: Gfn) -> bool {
    let mut told = false;
    mmu.age(gfn, 1, |used| told |= used == gfn);
    told
}

/// Serves one fault on the first entry of [`TABLE`], which maps `gfn`.
fn fault(mmu: &LoomMmu, page: PageId, gfn: Gfn, rights: Rights, kind: AccessKind) {
    let call = bare_call(mmu);
    let (leaf, walk) = (call.leaf(gfn, rights), walk_to(gfn));
    let _ = call.place(&way(&walk, page, kind), page, Level::L1, SLOT, &leaf);
}

/// A fault allows writing, and the processor writes, while the frame is aged: the entry keeps the right and the dirty bit, and the use is told, or still
/// to be told.
///
/// Red under the mutant AgeBlindly.
#[test]
fn a_bit_that_the_processor_sets_is_kept_while_its_frame_is_aged() {
    explore("age | write fault, walk", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, READ, Spte::ACCESSED);
        mmu.run_guest(0);
        let table = mmu.pool.get(page).table();
        loom::explore();
        let ager = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || age(&mmu, D))
        };
        fault(&mmu, page, D, ALL, AccessKind::Write);
        assert!(mmu.host.walk(table, SLOT, AD, || {}));
        let is_told = ager.join().unwrap();
        let entry = Spte::new(mmu.spte(page, SLOT));
        loom::stop_exploring();
        assert!(entry.has(Spte::WRITE | Spte::DIRTY), "a bit is lost");
        assert!(is_told || entry.has(Spte::ACCESSED), "a use is lost");
    });
}

/// The same of a large leaf of nested tables, which is one entry for many frames.
///
/// Red under the mutant AgeBlindly.
#[test]
fn a_bit_that_the_processor_sets_is_kept_while_its_region_is_aged() {
    explore("age | nested walk", || {
        let (mmu, _) = mapped(Level::L2);
        let table = mmu.pool.get(table_of(&mmu)).table();
        let index = Level::L2.index(D.address().get());
        assert!(mmu.host.walk(table, index, Spte::ACCESSED, || {}));
        loom::explore();
        let ager = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || age(&mmu, D))
        };
        assert!(mmu.host.walk(table, index, AD, || {}));
        let is_told = ager.join().unwrap();
        let (entry, _) = walk(&mmu);
        loom::stop_exploring();
        assert!(entry.has(Spte::DIRTY), "a bit is lost");
        assert!(is_told || entry.has(Spte::ACCESSED), "a use is lost");
    });
}

/// A frame is taken back while it is aged, and its slot maps another, which the processor uses: that one's use is still to be told.
///
/// The frame was used before: who only loads the entry that somebody else loads and exchanges races with nobody, for loom.
///
/// Red under the mutant AgeUnlocked.
#[test]
fn a_use_is_told_of_the_frame_that_was_used() {
    explore("age | invalidation, fault and walk in the slot", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, ALL, Spte::ACCESSED);
        mmu.run_guest(0);
        loom::explore();
        let other = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                drop(mmu.invalidate_begin(D, 1));
                assert_eq!(mmu.spte(page, SLOT), 0);
                mmu.poke(TABLE, SLOT, gpte(E));
                fault(&mmu, page, E, ALL, AccessKind::Read);
                mmu.run_guest(0);
                let table = mmu.pool.get(page).table();
                assert!(mmu.host.walk(table, SLOT, Spte::ACCESSED, || {}));
            })
        };
        age(&mmu, D);
        other.join().unwrap();
        let entry = mmu.spte(page, SLOT);
        loom::stop_exploring();
        assert_eq!(frame_of(entry), Some(mmu.host.backing(E, 0)));
        assert!(age(&mmu, E), "the use of a frame is lost");
    });
}
