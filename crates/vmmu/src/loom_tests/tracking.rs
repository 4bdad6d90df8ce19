//! Write tracking: a frame that becomes tracked, or no longer is, while somebody maps it writable; and trees that are linked meanwhile.

use super::world::{
    ALL, D, E, LoomMmu, READ, SLOT, TABLE, UPPER, bare_call, explore, explore_less, frame_of, gpte,
    role, walk_to, way, world,
};
use crate::addr::{Gfn, Index, Level};
use crate::clean::Cleaned;
use crate::debt::Debt;
use crate::edge::Purpose;
use crate::page::{PageId, SpteRef};
use crate::slots::SlotFlags;
use crate::spte::Spte;
use crate::sync::Ordering;
use crate::walk::AccessKind;
use loom::thread;
use std::sync::Arc;

/// The guest table whose shadow maps [`TABLE`] as data, by its slot 1.
pub(super) const OTHER: Gfn = Gfn::new(0);
/// The guest table whose first entry leads to [`UPPER`].
const TOP: Gfn = Gfn::new(3);
pub(super) const SLOT1: Index = Index::truncate(1);

pub(super) fn entry(mmu: &LoomMmu, table: Gfn) -> u64 {
    mmu.host.gptes[table.get() as usize][SLOT.get()].load(Ordering::Acquire)
}

/// Asserts that a page does not map what the guest's entry does not say.
fn assert_agrees(mmu: &LoomMmu, page: PageId) {
    if entry(mmu, TABLE) != gpte(D) {
        let stale = Some(mmu.host.backing(D, 0));
        assert_ne!(frame_of(mmu.spte(page, SLOT)), stale, "stale");
    }
}

/// Maps [`TABLE`] as data, writable if nobody tracks it, and then writes it. Tells whether that was possible.
pub(super) fn map_and_write(mmu: &LoomMmu, other: PageId) -> bool {
    let call = bare_call(mmu);
    let leaf = call.leaf(TABLE, ALL);
    {
        let _state = call.page(other).lock.lock(&call.locks);
        let _ = call.install_leaf(other, SLOT1, &leaf, Purpose::Any);
    }
    let table = call.page(other).table();
    let bits = Spte::ACCESSED | Spte::DIRTY;
    let can_write = mmu.host.walk(table, SLOT1, bits, || {});
    mmu.host.write_through_tlb(TABLE, SLOT, gpte(E));
    can_write
}

/// A VM with a page for [`TABLE`] that maps [`D`], and one that may map [`TABLE`].
pub(super) fn world_with_other() -> (Arc<LoomMmu>, PageId, PageId) {
    let mmu = world(SlotFlags::empty());
    mmu.poke(TABLE, SLOT, gpte(D));
    mmu.poke(OTHER, SLOT1, gpte(TABLE));
    let page = mmu.make_page(TABLE, role(Level::L1, ALL));
    let other = mmu.make_clean_page(OTHER, role(Level::L1, ALL));
    mmu.map(page, SLOT, D, READ, 0);
    mmu.run_guest(0);
    (mmu, page, other)
}

/// Rule R6: a table becomes tracked while its frame is mapped writable: once the page is clean no entry and no TLB allows a write, and the page
/// agrees with the table.
///
/// Red under the mutants TrackInTwoSections, WriteToTracked, ProtectKeepsWrite, NarrowOwesNothing.
#[test]
fn a_table_that_is_tracked_is_mapped_writable_by_nobody() {
    explore("track | map writable", || {
        let (mmu, page, other) = world_with_other();
        loom::explore();
        let mapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                map_and_write(&mmu, other);
            })
        };
        {
            let call = bare_call(&mmu);
            let mut debt = Debt::new(&call);
            assert_eq!(call.make_clean(page, &mut debt), Cleaned::Clean);
            debt.pay();
        }
        assert_eq!(mmu.spte(other, SLOT1) & Spte::WRITE, 0, "writable");
        assert_eq!(mmu.host.tlb() & Spte::WRITE, 0, "writable in a TLB");
        assert_agrees(&mmu, page);
        mapper.join().unwrap();
        loom::stop_exploring();
        assert_agrees(&mmu, page);
    });
}

/// T14: a table becomes unsync while another CPU maps its frame writable: who may write it finds it listed at the next root load.
///
/// Red under the mutants UntrackFirst, EpochNotRaised.
#[test]
fn who_maps_an_unsync_table_writable_sees_it_listed() {
    explore("unsync | map writable", || {
        let (mmu, page, other) = world_with_other();
        mmu.poke(UPPER, SLOT, gpte(TABLE));
        let root = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        clean(&mmu, page);
        mmu.link(root, page);
        clean_root(&mmu, root);
        loom::explore();
        let mapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                map_and_write(&mmu, other);
                clean_root(&mmu, root);
                assert_agrees(&mmu, page);
            })
        };
        assert!(bare_call(&mmu).make_unsync(TABLE));
        mapper.join().unwrap();
    });
}

pub(super) fn clean(mmu: &LoomMmu, page: PageId) {
    let call = bare_call(mmu);
    let mut debt = Debt::new(&call);
    assert_eq!(call.make_clean(page, &mut debt), Cleaned::Clean);
    debt.pay();
}

pub(super) fn clean_root(mmu: &LoomMmu, root: PageId) {
    let call = bare_call(mmu);
    let mut debt = Debt::new(&call);
    call.clean_root(root, &mut debt);
    debt.pay();
}

/// T14: the guest writes a table that becomes unsync for it, and then makes an entry high up lead there: who sees that entry and links the tree
/// below it shows what was written. No flush is needed where nothing was present.
///
/// Red under the mutants LinkBelowUncleanRoot, EpochNotRaised.
#[test]
fn a_tree_linked_below_a_loaded_root_shows_what_was_written_before() {
    explore_less("link above | unsync", || {
        let (mmu, page, other) = world_with_other();
        mmu.poke(UPPER, SLOT, gpte(TABLE));
        let root = mmu.make_clean_page(TOP, role(Level::L3, ALL));
        let upper = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        clean(&mmu, page);
        mmu.link(upper, page);
        clean_root(&mmu, root);
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                if bare_call(&mmu).make_unsync(TABLE) && map_and_write(&mmu, other) {
                    mmu.poke(TOP, SLOT, gpte(UPPER));
                }
            })
        };
        if entry(&mmu, TOP) == gpte(UPPER) {
            let call = mmu.call();
            let mut debt = Debt::new(&call);
            let walk = walk_to(D);
            let mut way = way(&walk, root, AccessKind::Read);
            let demand = role(Level::L2, ALL);
            let linked = call.step(&mut way, root, SLOT, UPPER, demand, &mut debt);
            debt.pay();
            if linked.is_ok() {
                assert_ne!(mmu.spte(root, SLOT), 0);
                assert_agrees(&mmu, page);
            }
        }
        guest.join().unwrap();
        loom::stop_exploring();
        assert!(!bare_call(&mmu).maps(E, SpteRef::new(page, SLOT)));
    });
}
