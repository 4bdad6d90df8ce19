//! Pages that become clean against those that become unsync.

use super::world::{
    ALL, D, E, LoomMmu, READ, SLOT, TABLE, UPPER, bare_call, explore, frame_of, gpte, role,
    walk_to, way, world, world_with,
};
use crate::addr::{Gfn, Index, Level};
use crate::clean::Cleaned;
use crate::config::Engine;
use crate::debt::Debt;
use crate::edge::{Purpose, Refused};
use crate::page::{Flags, PageId};
use crate::slots::SlotFlags;
use crate::spte::Spte;
use crate::sync::Ordering;
use crate::walk::AccessKind;
use loom::thread;
use std::sync::Arc;

/// The guest table whose shadow maps [`TABLE`] as data, by its slot 1.
const OTHER: Gfn = Gfn::new(0);
const SLOT1: Index = Index::truncate(1);

/// A VM whose root loads leave unsync what they find changed, if they have patience.
fn patient_world(patience: u8) -> Arc<LoomMmu> {
    world_with(Engine::Shadow, SlotFlags::empty(), |config| {
        config.unsync_patience = patience;
    })
}

/// Asserts that a page does not map what the guest's entry does not say.
fn agrees(mmu: &LoomMmu, page: PageId) {
    let now = mmu.host.gptes[TABLE.get() as usize][SLOT.get()].load(Ordering::Acquire);
    if now != gpte(D) {
        assert_ne!(
            frame_of(mmu.spte(page, SLOT)),
            Some(mmu.host.backing(D, 0)),
            "stale"
        );
    }
}

/// The guest writes a table that is tracked: a write fault, as `map` serves it, and then the store through the writable entry.
fn write_fault(mmu: &LoomMmu, other: PageId) {
    let call = bare_call(mmu);
    for _ in 0..2 {
        let leaf = call.leaf(TABLE, ALL);
        let installed = {
            let _state = call.page(other).lock.lock(&call.locks);
            call.install_leaf(other, SLOT1, &leaf, Purpose::Write)
        };
        match installed {
            Ok(_) => {
                // A TLB entry that does not allow the write is dropped by the fault.
                mmu.host.cpus[0].lock().unwrap().tlb = 0;
                mmu.touch(other, SLOT1);
                mmu.host.write_through_tlb(TABLE, SLOT, gpte(E));
                return;
            }
            Err(Refused::Tracked) => assert!(call.make_unsync(TABLE)),
            Err(_) => return,
        }
    }
}

/// A root load, then a load after everything: the guest's write is seen, whichever of the two had to find the page.
fn unsync_against_root_load(name: &str, already_unsync: bool, patience: u8) {
    explore(name, move || {
        let mmu = patient_world(patience);
        mmu.poke(TABLE, SLOT, gpte(D));
        mmu.poke(UPPER, SLOT, gpte(TABLE));
        mmu.poke(OTHER, SLOT1, gpte(TABLE));
        let root = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        let other = mmu.make_clean_page(OTHER, role(Level::L1, ALL));
        mmu.link(root, page);
        mmu.map(page, SLOT, D, READ, 0);
        mmu.map(other, SLOT1, TABLE, READ, 0);
        if already_unsync {
            assert!(bare_call(&mmu).make_unsync(TABLE));
        }
        mmu.run_guest(0);
        loom::explore();
        let loader = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                call.clean_root(root, &mut debt);
                debt.pay();
            })
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || write_fault(&mmu, other))
        };
        loader.join().unwrap();
        writer.join().unwrap();
        loom::stop_exploring();
        let call = bare_call(&mmu);
        let mut debt = Debt::new(&call);
        call.clean_root(root, &mut debt);
        debt.pay();
        agrees(&mmu, page);
    });
}

/// T14: a page becomes unsync in the middle of its cleaning.
///
/// Red without: both tests of `make_clean`'s last step (`COUNTED` and the generation; either one suffices).
#[test]
fn an_unsync_during_make_clean_is_not_lost() {
    unsync_against_root_load("make_clean | unsync", true, 0);
}

/// The same, where the page is to stay unsync.
///
/// Red under the mutant EpochThoughUnsync.
#[test]
fn a_write_to_a_page_that_stays_unsync_is_not_lost() {
    unsync_against_root_load("root load that leaves unsync | write", true, 2);
}

/// T14: a page becomes unsync in the middle of a root load that had nothing to do.
///
/// Red if `make_unsync` moves the epoch on before it lists the pages; if `clean_root` reads the epoch after the list.
#[test]
fn an_unsync_during_a_root_load_is_not_lost() {
    for patience in [0, 1] {
        unsync_against_root_load("root load | unsync", false, patience);
    }
}

/// T14: two root loads meet at one unsync page: whichever finds the list empty, what it promises has been done.
///
/// Red if `make_clean` takes the page off the list before it is clean.
#[test]
fn two_root_loads_meet_at_an_unsync_page() {
    for patience in [0, 1] {
        two_root_loads_meet(patience);
    }
}

fn two_root_loads_meet(patience: u8) {
    explore("root load | root load, unsync page", move || {
        let mmu = patient_world(patience);
        mmu.poke(UPPER, SLOT, gpte(TABLE));
        let root = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.link(root, page);
        mmu.map(page, SLOT, D, READ, 0);
        assert!(bare_call(&mmu).make_unsync(TABLE));
        mmu.poke(TABLE, SLOT, gpte(E));
        loom::explore();
        let loaders = [(); 2].map(|()| {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                call.clean_root(root, &mut debt);
                debt.pay();
                agrees(&mmu, page);
            })
        });
        for loader in loaders {
            loader.join().unwrap();
        }
    });
}

/// A guest table with its pages unsync, a third page that maps it writable, and a TLB that does, too.
fn writable_table(pages: &[PageId], mmu: &LoomMmu) {
    for page in pages {
        mmu.map(*page, SLOT, D, READ, 0);
    }
    assert!(bare_call(mmu).make_unsync(TABLE));
    let other = mmu.make_clean_page(OTHER, role(Level::L1, ALL));
    mmu.map(other, SLOT1, TABLE, ALL, 0);
    mmu.run_guest(mmu.spte(other, SLOT1));
}

/// T9: the pages of two roles are made clean at once, and the guest writes through a stale TLB entry: what is clean agrees with the guest's table.
///
/// Red if `make_clean` looks at its own debt only, and not at `flush_pending`; if an unsync takes one page only.
#[test]
fn two_roles_are_made_clean_at_once() {
    explore("make_clean | make_clean, another role", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        mmu.poke(OTHER, SLOT1, gpte(TABLE));
        let pages = [ALL, READ].map(|rights| mmu.make_clean_page(TABLE, role(Level::L1, rights)));
        writable_table(&pages, &mmu);
        loom::explore();
        let cleaners = pages.map(|page| {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                let _ = call.make_clean(page, &mut debt);
                debt.pay();
            })
        });
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || mmu.host.write_through_tlb(TABLE, SLOT, gpte(E)))
        };
        for thread in cleaners.into_iter().chain([guest]) {
            thread.join().unwrap();
        }
        loom::stop_exploring();
        for page in pages {
            assert!(bare_call(&mmu).flags_of(page).contains(Flags::CLEAN));
            agrees(&mmu, page);
        }
    });
}

/// One page is made clean by two at once: whoever is told that it is clean finds no TLB that can write its table.
///
/// Red if `make_clean` looks at its own debt only, and not at `flush_pending`; if taking WRITE owes no flush.
#[test]
fn one_page_is_made_clean_twice_at_once() {
    explore("make_clean | make_clean, same page", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        mmu.poke(OTHER, SLOT1, gpte(TABLE));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        writable_table(&[page], &mmu);
        mmu.poke(TABLE, SLOT, gpte(E));
        loom::explore();
        let cleaners = [(); 2].map(|()| {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                if call.make_clean(page, &mut debt) == Cleaned::Clean {
                    assert_eq!(mmu.host.tlb() & Spte::WRITE, 0, "still writable");
                    agrees(&mmu, page);
                }
                debt.pay();
            })
        });
        for cleaner in cleaners {
            cleaner.join().unwrap();
        }
    });
}

/// A page without entries becomes clean while its first one is installed, and the guest writes its table through a stale TLB entry.
///
/// Red if `derive_all` lets an empty page pass without its table lock; without the flush in `make_clean`.
#[test]
fn a_first_entry_agrees_with_a_page_that_becomes_clean() {
    explore("make_clean | install in an empty table", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        mmu.poke(OTHER, SLOT1, gpte(TABLE));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        let other = mmu.make_clean_page(OTHER, role(Level::L1, ALL));
        assert!(bare_call(&mmu).make_unsync(TABLE));
        mmu.map(other, SLOT1, TABLE, ALL, 0);
        mmu.run_guest(mmu.spte(other, SLOT1));
        loom::explore();
        let cleaner = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                let _ = call.make_clean(page, &mut debt);
                debt.pay();
            })
        };
        let installer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let leaf = call.leaf(D, READ);
                let walk = walk_to(D);
                let way = way(&walk, page, AccessKind::Read);
                let _ = call.place(&way, page, Level::L1, SLOT, &leaf);
            })
        };
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || mmu.host.write_through_tlb(TABLE, SLOT, gpte(E)))
        };
        for thread in [cleaner, installer, guest] {
            thread.join().unwrap();
        }
        loom::stop_exploring();
        if bare_call(&mmu).flags_of(page).contains(Flags::CLEAN) {
            agrees(&mmu, page);
        }
    });
}
