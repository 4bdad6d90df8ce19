//! An installer against those who make its entry wrong: a reported write, the end of its table or of its child, a removal by frame.

use super::world::{
    ALL, D, E, LoomCall, LoomMmu, READ, SLOT, TABLE, UPPER, bare_call, explore, frame_of, gpte,
    role, walk_to, way, world,
};
use crate::addr::{Gpa, Level};
use crate::debt::Debt;
use crate::edge::{Installed, Refused};
use crate::page::{PageId, Record, SpteRef};
use crate::slots::SlotFlags;
use crate::spte::Spte;
use crate::walk::AccessKind;
use loom::thread;
use std::sync::Arc;
use std::vec::Vec;

/// Installs a leaf for what the guest's entry said when it was walked.
fn install(call: &LoomCall<'_>, page: PageId, gfn: crate::addr::Gfn) -> Result<Installed, Refused> {
    let leaf = call.leaf(gfn, READ);
    let walk = walk_to(gfn);
    let way = way(&walk, page, AccessKind::Read);
    call.place(&way, page, Level::L1, SLOT, &leaf)
        .map(|(installed, _)| installed)
}

/// Links a child for what the guest's entry said when it was walked.
fn link(call: &LoomCall<'_>, parent: PageId, child: PageId) {
    let mut debt = Debt::new(call);
    let walk = walk_to(D);
    let way = way(&walk, parent, AccessKind::Read);
    let demand = (TABLE, role(Level::L1, ALL));
    let _ = call.link_checked(&way, parent, SLOT, child, demand, &mut debt);
    debt.pay();
}

/// Makes the page of [`UPPER`] and that of [`TABLE`], to which the guest's entry leads.
fn parent_and_child(mmu: &LoomMmu) -> (PageId, PageId) {
    mmu.poke(UPPER, SLOT, gpte(TABLE));
    let parent = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
    let child = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
    (parent, child)
}

/// M1: when a report returns, neither the table nor a TLB has what was derived from the old value.
///
/// Red without: the re-read in `recheck`; the flush in `Debt::pay`; the table lock in `report_page`.
#[test]
fn a_reported_write_leaves_no_stale_entry() {
    explore("install | reported write", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.run_guest(0);
        let old = mmu.host.backing(D, 0);
        loom::explore();
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let _ = install(&bare_call(&mmu), page, D);
                mmu.touch(page, SLOT);
            })
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(TABLE, SLOT, gpte(E));
                mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
                assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
                assert_ne!(frame_of(mmu.host.tlb()), Some(old));
            })
        };
        installer.join().unwrap();
        writer.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
        assert_ne!(frame_of(mmu.host.tlb()), Some(old));
    });
}

/// R13: the guest clears A and D, and reports that: no entry is left, or installed, that hides the next use and the next write.
///
/// Red under the mutant RecheckIgnoresAd.
#[test]
fn a_reported_write_that_clears_a_and_d_leaves_no_entry() {
    explore("install | reported write that clears A and D", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        loom::explore();
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let _ = install(&bare_call(&mmu), page, D);
            })
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(TABLE, SLOT, gpte(D) & !0x60);
                mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
                assert_eq!(mmu.spte(page, SLOT), 0);
            })
        };
        installer.join().unwrap();
        writer.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.spte(page, SLOT), 0);
    });
}

/// A table that is zapped holds nothing when its flush is paid, and nobody uses it after it is freed.
///
/// Red without: the test of life in `place`; the flush in `Debt::pay`.
#[test]
fn nothing_is_installed_in_a_dead_table() {
    explore("install | zap of the table", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.run_guest(0);
        loom::explore();
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                let _ = install(&call, page, D);
                mmu.touch(page, SLOT);
            })
        };
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                let mut debt = Debt::new(&call);
                assert!(call.zap(page, &mut debt));
                debt.pay();
                // This call's guard keeps the table from being freed until here.
                assert_eq!(mmu.spte(page, SLOT), 0);
                assert_eq!(mmu.host.tlb(), 0);
            })
        };
        installer.join().unwrap();
        zapper.join().unwrap();
        loom::stop_exploring();
        assert!(!bare_call(&mmu).maps(D, SpteRef::new(page, SLOT)));
        assert_eq!(mmu.gate.count(), 0);
    });
}

/// Rule R4, T12: a child that died is linked by nobody.
///
/// Red without: the test of life, gfn and role in `link`.
#[test]
fn a_dead_child_is_not_linked() {
    explore("link | zap of the child", || {
        let mmu = world(SlotFlags::empty());
        let (parent, child) = parent_and_child(&mmu);
        loom::explore();
        let linker = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || link(&mmu.call(), parent, child))
        };
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                let mut debt = Debt::new(&call);
                assert!(call.zap(child, &mut debt));
                debt.pay();
                assert_eq!(mmu.spte(parent, SLOT), 0);
            })
        };
        linker.join().unwrap();
        zapper.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.spte(parent, SLOT), 0);
        assert!(mmu.pool.get(child).parents().is_empty());
    });
}

/// A parent that died links nobody: its child does not name it.
///
/// Red without: the test of life in `link_checked`.
#[test]
fn a_dead_parent_links_nothing() {
    explore("link | zap of the parent", || {
        let mmu = world(SlotFlags::empty());
        let (parent, child) = parent_and_child(&mmu);
        loom::explore();
        let linker = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || link(&mmu.call(), parent, child))
        };
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                let mut debt = Debt::new(&call);
                assert!(call.zap(parent, &mut debt));
                debt.pay();
                assert_eq!(mmu.spte(parent, SLOT), 0);
            })
        };
        linker.join().unwrap();
        zapper.join().unwrap();
        loom::stop_exploring();
        assert!(mmu.pool.get(child).parents().is_empty());
    });
}

/// T13: what a parent's entry was derived from changes between the walk and the link.
///
/// Red without the re-read in `link_checked`.
#[test]
fn a_reported_write_leaves_no_stale_link() {
    explore("link | reported write", || {
        let mmu = world(SlotFlags::empty());
        let (parent, child) = parent_and_child(&mmu);
        loom::explore();
        let linker = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || link(&bare_call(&mmu), parent, child))
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(UPPER, SLOT, gpte(E));
                mmu.guest_wrote(Gpa::new(UPPER.address().get()), 8);
                assert_eq!(mmu.spte(parent, SLOT), 0);
            })
        };
        linker.join().unwrap();
        writer.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.spte(parent, SLOT), 0);
    });
}

/// A table is zapped while a write to it is reported: though nobody finds the page any more, its translations are gone when the report returns.
///
/// Red if the gate's count drops before the page is flushed; without the look at `flush_pending` in `Debt::promise`.
#[test]
fn a_report_waits_for_a_table_that_is_zapped() {
    explore("zap of the table | reported write", || {
        let mmu = world(SlotFlags::empty());
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, READ, 0);
        mmu.run_guest(mmu.spte(page, SLOT));
        loom::explore();
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                assert!(call.zap(page, &mut debt));
                debt.pay();
            })
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(TABLE, SLOT, gpte(E));
                mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
                assert_eq!(mmu.host.tlb(), 0);
            })
        };
        zapper.join().unwrap();
        writer.join().unwrap();
    });
}

/// T17: parent and child are zapped by two CPUs at once, the child by a third one too: each dies once, and nothing names the dead.
///
/// Red without: the second look at the entry in `remove_recorded`; the test of life in `kill`.
#[test]
fn two_zaps_meet() {
    explore("zap of the parent | zap of the child", || {
        let mmu = world(SlotFlags::empty());
        let (parent, child) = parent_and_child(&mmu);
        mmu.link(parent, child);
        mmu.map(child, SLOT, D, READ, 0);
        loom::explore();
        let zappers = [&[parent, child][..], &[child]].map(|pages| {
            let (mmu, pages) = (Arc::clone(&mmu), pages.to_vec());
            thread::spawn(move || {
                let call = mmu.call();
                let mut debt = Debt::new(&call);
                let zapped = pages.iter().filter(|id| call.zap(**id, &mut debt)).count();
                debt.pay();
                zapped
            })
        });
        let zapped: usize = zappers.into_iter().map(|z| z.join().unwrap()).sum();
        loom::stop_exploring();
        assert_eq!(zapped, 2);
        assert_eq!(mmu.gate.count(), 0);
        assert!(mmu.pool.get(child).parents().is_empty());
        assert!(!bare_call(&mmu).maps(D, SpteRef::new(child, SLOT)));
    });
}

/// T15: a mapping is removed by frame while another frame is installed in its slot. Record, reverse maps and dirty log each name the right
/// frame, and no TLB has the old frame once the new one is there.
///
/// Red if a removal takes the frame from the slot's position, or leaves the reverse map as it is; without the test of `flush_pending` in
/// `install_leaf`. (That test also refuses the install while a removal stands between its record and its exchange: their order in `remove` is
/// held twice.)
#[test]
fn a_slot_used_again_names_the_right_frame() {
    explore("removal by frame | install in the same slot", || {
        let mmu = world(SlotFlags::LOG_DIRTY);
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, ALL, Spte::DIRTY);
        mmu.poke(TABLE, SLOT, gpte(E));
        mmu.run_guest(mmu.spte(page, SLOT));
        let old = mmu.host.backing(D, 0);
        loom::explore();
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let invalidation = mmu.invalidate_begin(D, 1);
                assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old));
                assert_ne!(frame_of(mmu.host.tlb()), Some(old));
                drop(invalidation);
            })
        };
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                for _ in 0..3 {
                    match install(&call, page, E) {
                        Ok(_) => {
                            assert_ne!(frame_of(mmu.touch(page, SLOT)), Some(old));
                            break;
                        }
                        Err(Refused::Occupied) => {
                            let mut debt = Debt::new(&call);
                            let state = call.page(page).lock.lock(&call.locks);
                            call.remove_recorded(page, SLOT, &mut debt);
                            drop(state);
                            debt.pay();
                        }
                        Err(Refused::FlushFirst) => call.flush_all(),
                        Err(_) => {}
                    }
                }
            })
        };
        host.join().unwrap();
        installer.join().unwrap();
        loom::stop_exploring();
        let call = bare_call(&mmu);
        let edge = SpteRef::new(page, SLOT);
        let is_new = mmu.spte(page, SLOT) != 0;
        assert!(!call.maps(D, edge));
        assert_eq!(call.maps(E, edge), is_new);
        if is_new {
            assert_eq!(call.page(page).record(SLOT), Record::Leaf(E));
        }
        let mut dirty = Vec::new();
        mmu.harvest_dirty(crate::slots::SlotId(0), |gfn| dirty.push(gfn))
            .unwrap();
        assert_eq!(dirty, [D]);
    });
}
