//! Leaves of two sizes for one address: what is split or put together again, against those who use it and those who take it back (T16).

use super::world::{
    ALL, D, LoomMmu, SLOT, UPPER, bare_call, explore, explore_less, gpte, role, world, world_of,
};
use crate::addr::Level;
use crate::config::Engine;
use crate::debt::Debt;
use crate::edge::{Leaf, Purpose, Refused};
use crate::host::{HostFrame, TableMemory};
use crate::page::PageId;
use crate::role::Role;
use crate::shadow::Again;
use crate::slots::{AddressSpace, SlotFlags};
use crate::spte::Spte;
use crate::sync::Ordering;
use crate::walk::Rights;
use loom::thread;
use std::sync::Arc;

const SPACE: AddressSpace = AddressSpace::Normal;

/// Serves a fault on [`D`] once; the host allows leaves of up to `largest`.
fn fault(mmu: &LoomMmu, largest: Level) -> Result<(), Again> {
    let call = mmu.call();
    let snapshot = mmu.shards.snapshot(D, Level::L3, &mmu.slots);
    let slot = mmu.slots.find(SPACE, D).unwrap();
    let host = HostFrame {
        pfn: mmu.host.backing(D, mmu.host.moved.load(Ordering::Acquire)),
        largest,
        writable: true,
    };
    call.direct_map(SPACE, D, &slot, host, false, snapshot)
        .map(|_| ())
}

/// Faults until it is served, a few times at most.
fn fault_often(mmu: &LoomMmu, largest: Level) -> bool {
    for _ in 0..4 {
        match fault(mmu, largest) {
            Ok(()) => return true,
            Err(Again::Flush) => bare_call(mmu).flush_all(),
            Err(_) => {}
        }
    }
    false
}

/// Returns the leaf that maps [`D`], by the direct engine's tables, and the level of the table that has it.
pub(super) fn walk(mmu: &LoomMmu) -> (Spte, Level) {
    let call = mmu.call();
    let mut table = call.page(mmu.direct.get(SPACE).unwrap()).table();
    for level in [Level::L4, Level::L3] {
        let spte = Spte::new(mmu.host.load(table, level.index(D.address().get())));
        if !spte.is_present() || spte.has(Spte::LARGE) {
            return (spte, level);
        }
        table = spte.pfn();
    }
    let spte = mmu.host.load(table, Level::L2.index(D.address().get()));
    (Spte::new(spte), Level::L2)
}

/// A VM with nested tables that map [`D`] with a leaf of `level`, and a processor that has it in its TLB.
pub(super) fn mapped(level: Level) -> (Arc<LoomMmu>, u64) {
    let mmu = world_of(Engine::Npt, SlotFlags::empty());
    assert!(fault_often(&mmu, level));
    let (leaf, at) = walk(&mmu);
    assert_eq!(at, level);
    mmu.run_guest(leaf.raw());
    (mmu, leaf.raw())
}

/// T16: two CPUs split a large leaf at once: whoever has a small one installed finds no TLB with the large one.
///
/// Red under the mutant SplitBeforeFlush.
#[test]
fn a_small_leaf_waits_for_the_flush_of_the_large_one() {
    explore_less("split | split", || {
        let (mmu, large) = mapped(Level::L3);
        loom::explore();
        let split = move |mmu: &LoomMmu| {
            if fault_often(mmu, Level::L2) {
                assert_ne!(mmu.host.tlb(), large, "two sizes of one address");
            }
        };
        let other = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || split(&mmu))
        };
        split(&mmu);
        other.join().unwrap();
        loom::stop_exploring();
        assert!(fault_often(&mmu, Level::L2));
        assert_eq!(walk(&mmu).1, Level::L2);
    });
}

/// T16: a table is taken out of the tree while a large leaf is installed in its place: whoever has that finds no TLB with a small one.
///
/// Red under the mutant CollapseBeforeFlush.
#[test]
fn a_large_leaf_waits_for_the_flush_of_the_small_ones() {
    explore_less("collapse | prune", || {
        let (mmu, small) = mapped(Level::L2);
        let table = table_of(&mmu);
        loom::explore();
        let pruner = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                let mut debt = Debt::new(&call);
                assert!(call.prune_table(table, &mut debt));
                debt.pay();
            })
        };
        let is_served = fault_often(&mmu, Level::L3);
        let (leaf, at) = walk(&mmu);
        if is_served && leaf.is_present() && at == Level::L3 {
            assert_ne!(mmu.host.tlb(), small, "two sizes of one address");
        }
        pruner.join().unwrap();
        loom::stop_exploring();
        assert!(fault_often(&mmu, Level::L3));
        assert_eq!(walk(&mmu).1, Level::L3);
    });
}

/// Returns the page of the table that has leaves of 2 MiB.
pub(super) fn table_of(mmu: &LoomMmu) -> PageId {
    let call = bare_call(mmu);
    let (mut id, gpa) = (mmu.direct.get(SPACE).unwrap(), D.address().get());
    for level in [Level::L4, Level::L3] {
        id = call.linked(id, level.index(gpa)).unwrap();
    }
    id
}

/// T5 with two sizes: the frame is taken back while its large leaf is split: neither size maps it afterwards, in table or TLB.
///
/// Red under the mutants NestedWithoutCheck, UnmapUnlocked.
#[test]
fn a_frame_taken_back_is_in_neither_size() {
    explore_less("split | invalidation", || {
        let (mmu, large) = mapped(Level::L3);
        let old = mmu.host.backing(D, 0);
        let is_old = |spte: u64| {
            // A leaf of 2 MiB begins 1 frame below D.
            let pfn = Spte::new(spte).pfn().get();
            let first = if spte == large {
                old.get() - D.get()
            } else {
                old.get() - 1
            };
            spte != 0 && pfn == first
        };
        loom::explore();
        let splitter = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                if fault_often(&mmu, Level::L2) {
                    assert_ne!(mmu.host.tlb(), large, "two sizes of one address");
                }
            })
        };
        let invalidation = mmu.invalidate_begin(D, 1);
        assert!(!walk(&mmu).0.is_present());
        assert_eq!(mmu.host.tlb(), 0);
        mmu.host.moved.store(1, Ordering::Release);
        drop(invalidation);
        splitter.join().unwrap();
        loom::stop_exploring();
        assert!(!is_old(walk(&mmu).0.raw()));
    });
}

/// T16 in the shadow engine: a guest's large page is mapped by one leaf, which the host takes back; a page of small ones is linked in its place.
///
/// Red under the mutants LinkBeforeFlush, OweAfterExchange.
#[test]
fn a_link_waits_for_the_flush_of_a_large_leaf() {
    explore("link in the place of a large leaf | invalidation", || {
        let mmu = world(SlotFlags::empty());
        let first = D.align_down(Level::L2);
        mmu.poke(UPPER, SLOT, gpte(first) | 1 << 7);
        let parent = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        let below = role(Level::L2, ALL).child(Level::L1, Rights::all(), true);
        let child = mmu.make_page(first, below);
        map_large(&mmu, parent);
        let large = mmu.spte(parent, SLOT);
        mmu.run_guest(large);
        loom::explore();
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || drop(mmu.invalidate_begin(D, 1)))
        };
        if link(&mmu, parent, child, below) {
            assert_ne!(mmu.host.tlb(), large, "two sizes of one address");
        }
        host.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.host.tlb(), 0);
    });
}

fn map_large(mmu: &LoomMmu, parent: PageId) {
    let call = bare_call(mmu);
    let first = D.align_down(Level::L2);
    call.provide(crate::frames::Missing::Nodes(first)).unwrap();
    let leaf = Leaf {
        gfn: first,
        pfn: mmu.host.backing(first, 0),
        ..call.leaf(D, ALL)
    };
    let _state = call.page(parent).lock.lock(&call.locks);
    assert!(call.install_leaf(parent, SLOT, &leaf, Purpose::Any).is_ok());
}

/// Links a child of small leaves in the first slot of a page; tells whether it did.
fn link(mmu: &LoomMmu, parent: PageId, child: PageId, role: Role) -> bool {
    let call = bare_call(mmu);
    for _ in 0..3 {
        let mut debt = Debt::new(&call);
        let state = call.page(parent).lock.lock(&call.locks);
        let linked = call.link(parent, SLOT, child, D.align_down(Level::L2), role);
        if linked == Err(Refused::Occupied) {
            call.remove_recorded(parent, SLOT, &mut debt);
        }
        drop(state);
        debt.pay();
        match linked {
            Ok(_) => return true,
            Err(Refused::FlushFirst) => call.flush_all(),
            Err(_) => {}
        }
    }
    false
}
