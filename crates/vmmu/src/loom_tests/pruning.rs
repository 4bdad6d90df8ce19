//! Nested tables taken out of the tree, against faults that are on their way through them, and against the host.

use super::world::{D, LoomMmu, bare_call, explore, explore_less, frame_of, world_of};
use crate::addr::{Gpa, Level};
use crate::audit::Strictness;
use crate::config::Engine;
use crate::debt::Debt;
use crate::host::{FrameLookup, HostFrame, Need, TableMemory};
use crate::page::PageId;
use crate::slots::{AddressSpace, SlotFlags};
use crate::spte::Spte;
use crate::sync::Ordering;
use loom::thread;
use std::sync::Arc;

const SPACE: AddressSpace = AddressSpace::Normal;

/// Makes a VM whose root links one table, the one to prune; [`D`] is mapped in it by a leaf of 1 GiB, or nothing is.
fn world_with_table(maps: bool) -> (Arc<LoomMmu>, PageId) {
    let mmu = world_of(Engine::Npt, SlotFlags::empty());
    let table = {
        let call = bare_call(&mmu);
        fault(&mmu);
        let root = call.direct_root(SPACE).unwrap();
        let index = Level::L4.index(D.address().get());
        let spte = call.load(call.page(root), index);
        let (table, _) = call
            .nested_child(call.page(root), (index, Level::L4), spte, D)
            .unwrap();
        if !maps {
            drop(mmu.invalidate_begin(D, 1));
        }
        call.page(table).used.store(0, Ordering::Relaxed);
        table
    };
    (mmu, table)
}

/// Serves a fault on [`D`] once.
fn fault(mmu: &LoomMmu) {
    fault_up_to(mmu, Level::L3);
}

/// The same where the host allows leaves of up to `largest`.
fn fault_up_to(mmu: &LoomMmu, largest: Level) {
    let call = mmu.call();
    let snapshot = mmu.shards.snapshot(D, Level::L3, &mmu.slots);
    let slot = mmu.slots.find(SPACE, D).unwrap();
    let looked_up = mmu.host.look_up(slot.backed(D), Need::Read).unwrap();
    let host = HostFrame {
        largest,
        ..looked_up
    };
    let _ = call.direct_map(SPACE, D, &slot, host, false, snapshot);
}

/// Takes the table out of the tree; tells whether this did.
fn prune(mmu: &LoomMmu, table: PageId) -> bool {
    let call = mmu.call();
    let mut debt = Debt::new(&call);
    let pruned = call.prune_table(table, &mut debt);
    debt.pay();
    pruned
}

/// Returns the entry that maps [`D`], from the root down, and whether a table leads there.
fn walk(mmu: &LoomMmu) -> (u64, bool) {
    let call = mmu.call();
    let root = call.page(call.direct_root(SPACE).unwrap()).table();
    let gpa = Gpa::new(D.address().get()).get();
    let top = Spte::new(mmu.host.load(root, Level::L4.index(gpa)));
    if !top.is_present() {
        return (0, false);
    }
    (mmu.host.load(top.pfn(), Level::L3.index(gpa)), true)
}

/// A table is taken out of the tree while a fault is on its way to it: nothing is left in a table that nobody will look into again.
///
/// Red without: the test of ALIVE in `direct_install` (`InstallInPruned`); if `end` does not take the table's lock.
#[test]
fn a_pruned_table_takes_no_leaf() {
    explore("prune | direct fault", || {
        let (mmu, table) = world_with_table(false);
        let page = mmu.pool.get(table).table();
        // Or the table were freed before it is looked into below.
        let keeper = mmu.grace.enter_vcpu(0);
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || fault(&mmu))
        };
        let pruned = prune(&mmu, table);
        guest.join().unwrap();
        loom::stop_exploring();
        assert!(pruned);
        let index = Level::L3.index(D.address().get());
        assert_eq!(mmu.host.load(page, index), 0);
        drop(keeper);
        // The next fault finds another table, or the one that this one has made.
        fault(&mmu);
        fault(&mmu);
        assert_ne!(walk(&mmu).0, 0);
    });
}

/// A table is taken out of the tree while a fault links another one below it: every table that is alive is in the tree.
///
/// Red under the mutants EndUnlocked, PruneLinks.
#[test]
fn a_pruned_table_links_nothing() {
    explore_less("prune | link below", || {
        let (mmu, table) = world_with_table(false);
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || fault_up_to(&mmu, Level::L2))
        };
        prune(&mmu, table);
        guest.join().unwrap();
        loom::stop_exploring();
        mmu.audit(Strictness::Exact).unwrap();
    });
}

/// The host takes a frame back while the table that maps it is taken out of the tree.
///
/// Red if the flush is owed after the link has gone.
#[test]
fn a_frame_taken_back_is_not_left_in_a_pruned_table() {
    explore("prune | invalidation", || {
        let (mmu, table) = world_with_table(true);
        let (old, _) = walk(&mmu);
        mmu.run_guest(old);
        loom::explore();
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let invalidation = mmu.invalidate_begin(D, 1);
                assert_eq!(walk(&mmu).0, 0);
                assert_eq!(mmu.host.tlb(), 0);
                mmu.host.moved.store(1, Ordering::Release);
                drop(invalidation);
            })
        };
        let pruned = prune(&mmu, table);
        host.join().unwrap();
        loom::stop_exploring();
        assert!(pruned);
        assert_eq!(walk(&mmu), (0, false));
        fault(&mmu);
        assert_ne!(frame_of(walk(&mmu).0), frame_of(old));
    });
}

/// Two processors at the limit choose the same table.
#[test]
fn a_table_is_pruned_once() {
    explore("prune | prune", || {
        let (mmu, table) = world_with_table(true);
        let keeper = mmu.grace.enter_vcpu(0);
        loom::explore();
        let other = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || prune(&mmu, table))
        };
        let mine = prune(&mmu, table);
        let other = other.join().unwrap();
        loom::stop_exploring();
        assert!(mine != other);
        assert_eq!(mmu.grace.waiting(), 1);
        drop(keeper);
        assert_eq!(walk(&mmu), (0, false));
    });
}
