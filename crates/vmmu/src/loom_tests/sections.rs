//! Work that takes more than one section: a page that loses its parents, a frame that is thinned before it is tracked. Here one entry is as many as a
//! section takes, so two take two.

use super::tracking::{SLOT1, clean, clean_root, entry, map_and_write, world_with_other};
use super::world::{
    ALL, D, E, LoomMmu, SLOT, TABLE, UPPER, bare_call, explore, frame_of, gpte, role,
};
use crate::addr::{Index, Level};
use crate::debt::Debt;
use crate::edge::Purpose;
use crate::page::{Flags, PageId};
use crate::spte::Spte;
use loom::thread;
use std::sync::Arc;

const SLOT2: Index = Index::truncate(2);

/// A page with two parents dies while a guest that finds its table writable writes it, loads CR3 and walks: through what links the page still it finds
/// nothing older.
///
/// Red under the mutant DieLinked.
#[test]
fn who_walks_through_a_link_that_is_left_finds_no_older_entry() {
    explore("kill in two sections | unseen write, root load", || {
        let (mmu, page, other) = world_with_other();
        for slot in [SLOT, SLOT1] {
            mmu.poke(UPPER, slot, gpte(TABLE));
        }
        let root = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        clean(&mmu, page);
        for slot in [SLOT, SLOT1] {
            mmu.link_at(root, slot, page);
        }
        clean_root(&mmu, root);
        loom::explore();
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || assert!(mmu.zap(page)))
        };
        map_and_write(&mmu, other);
        clean_root(&mmu, root);
        for slot in [SLOT, SLOT1] {
            let linked = Spte::new(mmu.spte(root, slot)).is_present();
            if linked && entry(&mmu, TABLE) == gpte(E) {
                let stale = Some(mmu.host.backing(D, 0));
                assert_ne!(frame_of(mmu.spte(page, SLOT)), stale, "stale");
            }
        }
        zapper.join().unwrap();
        loom::stop_exploring();
        for slot in [SLOT, SLOT1] {
            let linked = Spte::new(mmu.spte(root, slot)).is_present();
            assert!(!linked, "a dead page is linked");
        }
    });
}

/// Two calls want the end of a page with two parents: it dies once, and who returns finds it dead.
#[test]
fn two_who_end_a_page_help_each_other() {
    explore("kill in two sections | the same", || {
        let (mmu, page, _) = world_with_other();
        let root = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        clean(&mmu, page);
        for slot in [SLOT, SLOT1] {
            mmu.link_at(root, slot, page);
        }
        loom::explore();
        let end = move |mmu: &LoomMmu| {
            let zapped = mmu.zap(page);
            assert!(!bare_call(mmu).flags_of(page).contains(Flags::ALIVE));
            zapped
        };
        let other = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || end(&mmu))
        };
        let zapped = u32::from(end(&mmu)) + u32::from(other.join().unwrap());
        loom::stop_exploring();
        assert_eq!(zapped, 1);
        assert!(mmu.pool.get(page).parents().is_empty());
    });
}

/// A frame that two entries map is thinned and tracked for a page that dies meanwhile: nobody dead tracks it afterwards.
///
/// Red under the mutant TrackUnlooked.
#[test]
fn a_frame_is_tracked_by_nobody_dead() {
    explore("thin, then track | zap", || {
        let (mmu, page, other) = world_with_other();
        map_twice(&mmu, other);
        loom::explore();
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || mmu.zap(page))
        };
        {
            let call = mmu.call();
            let mut debt = Debt::new(&call);
            let _ = call.make_clean(page, &mut debt);
            debt.pay();
        }
        zapper.join().unwrap();
        loom::stop_exploring();
        let call = bare_call(&mmu);
        let mut stripe = call.mmu.frames.lock(&call.locks, TABLE);
        let region = stripe.region(TABLE).expect("the world provides it");
        assert!(!region.0.is_tracked(TABLE), "tracked by the dead");
    });
}

/// Maps [`TABLE`] as data by two slots of a page.
fn map_twice(mmu: &LoomMmu, other: PageId) {
    for slot in [SLOT1, SLOT2] {
        mmu.poke(super::tracking::OTHER, slot, gpte(TABLE));
        mmu.map(other, slot, TABLE, ALL, 0);
    }
}

/// A frame that two entries map is thinned and tracked while somebody maps it once more: once the page is clean nobody may write it.
///
/// Red under the mutants TrackInTwoSections, WriteToTracked, ProtectKeepsWrite.
#[test]
fn a_frame_that_is_thinned_is_mapped_writable_by_nobody() {
    explore("thin, then track | map writable", || {
        let (mmu, page, other) = world_with_other();
        map_twice(&mmu, other);
        loom::explore();
        let mapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let leaf = call.leaf(TABLE, ALL);
                let _state = call.page(other).lock.lock(&call.locks);
                let _ = call.install_leaf(other, SLOT, &leaf, Purpose::Any);
            })
        };
        clean(&mmu, page);
        for slot in [SLOT, SLOT1, SLOT2] {
            assert_eq!(mmu.spte(other, slot) & Spte::WRITE, 0, "writable");
        }
        mapper.join().unwrap();
    });
}
