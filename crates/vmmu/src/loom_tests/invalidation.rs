//! Frames taken back by the host, against those who look them up and install them.

use super::world::{
    ALL, D, E, LoomMmu, READ, SLOT, TABLE, bare_call, explore, frame_of, gpte, role, walk_to, way,
    world, world_of,
};
use crate::addr::{Gpa, Level, Pfn};
use crate::config::Engine;
use crate::host::{FrameLookup, Need, TableMemory};
use crate::slots::{AddressSpace, SlotFlags};
use crate::spte::Spte;
use crate::sync::Ordering;
use crate::walk::AccessKind;
use loom::thread;
use std::sync::Arc;

/// T5: a frame is taken back between its look-up and its installation.
///
/// Red without: the test of `busy`, or that of the sequence, in `is_unchanged`; if `end` lowers `busy` before it raises the sequence.
#[test]
fn a_frame_taken_back_is_not_installed() {
    explore("invalidation | look-up and install", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.run_guest(0);
        let old = mmu.host.backing(D, 0);
        loom::explore();
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let walk = walk_to(D);
                for _ in 0..2 {
                    let leaf = call.leaf(D, READ);
                    let way = way(&walk, page, AccessKind::Read);
                    if call.place(&way, page, Level::L1, SLOT, &leaf).is_ok() {
                        break;
                    }
                }
                mmu.touch(page, SLOT);
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let invalidation = mmu.invalidate_begin(D, 1);
                assert_eq!(mmu.spte(page, SLOT), 0);
                assert_eq!(mmu.host.tlb(), 0);
                mmu.host.moved.store(1, Ordering::Release);
                drop(invalidation);
            })
        };
        installer.join().unwrap();
        host.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
        assert_ne!(frame_of(mmu.host.tlb()), Some(old));
    });
}

/// T8: somebody removed the mapping and has not flushed; the host takes the frame back and finds nothing.
///
/// Red if `unmap_range` pays its own debt only; if `Debt::owe` comes after the exchange in `remove`.
#[test]
fn an_unpaid_flush_is_waited_for() {
    explore("invalidation | unpaid flush", || {
        let mmu = world(SlotFlags::empty());
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, READ, 0);
        mmu.run_guest(mmu.spte(page, SLOT));
        loom::explore();
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(TABLE, SLOT, gpte(E));
                mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
                assert_eq!(mmu.host.tlb(), 0);
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let _invalidation = mmu.invalidate_begin(D, 1);
                assert_eq!(mmu.spte(page, SLOT), 0);
                assert_eq!(mmu.host.tlb(), 0);
            })
        };
        writer.join().unwrap();
        host.join().unwrap();
    });
}

/// Returns the entry that maps [`D`] in the direct engine's tables, from the root down.
fn nested_walk(mmu: &LoomMmu, root: Pfn) -> u64 {
    let gpa = D.address().get();
    let top = Spte::new(mmu.host.load(root, Level::L4.index(gpa)));
    if top.is_present() {
        mmu.host.load(top.pfn(), Level::L3.index(gpa))
    } else {
        0
    }
}

/// T11: an empty subtree is walked by an invalidation while a fault links a table and installs.
///
/// Red without: the comparison with the snapshot in `direct_install`; the table lock in `unmap_table`.
#[test]
fn a_new_subtree_has_no_frame_taken_back() {
    explore("invalidation | direct fault", || {
        let mmu = world_of(Engine::Npt, SlotFlags::empty());
        let root = {
            let call = bare_call(&mmu);
            let root = call.direct_root(AddressSpace::Normal).unwrap();
            call.page(root).table()
        };
        let old = Pfn::new(super::host::OFFSET);
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let space = AddressSpace::Normal;
                let snapshot = mmu.shards.snapshot(D, Level::L3, &mmu.slots);
                let slot = mmu.slots.find(space, D).unwrap();
                let host = mmu.host.look_up(slot.backed(D), Need::Read).unwrap();
                let _ = call.direct_map(space, D, &slot, host, false, snapshot);
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let invalidation = mmu.invalidate_begin(D, 1);
                assert_eq!(nested_walk(&mmu, root), 0);
                mmu.host.moved.store(1, Ordering::Release);
                drop(invalidation);
            })
        };
        guest.join().unwrap();
        host.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(nested_walk(&mmu, root)), Some(old));
    });
}
