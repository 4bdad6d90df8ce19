//! Accessed and dirty bits: those that the processor sets in the library's entries, and those that the library sets in the guest's tables.

use super::world::{
    ALL, D, LoomMmu, READ, SLOT, TABLE, bare_call, explore, gpte, role, walk_to, way, world,
};
use crate::addr::{Gfn, Level};
use crate::debt::Debt;
use crate::edge::Purpose;
use crate::memory::SlottedMemory;
use crate::page::{PageId, SpteRef};
use crate::slots::{AddressSpace, SlotFlags, SlotId};
use crate::spte::Spte;
use crate::sync::{AtomicU64, Ordering};
use crate::walk::{AccessKind, CasOutcome, Gpte, GpteMemory, GpteWidth};
use loom::thread;
use std::sync::Arc;

/// What the library does to an entry while the processor walks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Install,
    Widen,
    Narrow,
    Remove,
}

impl Change {
    fn make(self, mmu: &LoomMmu, page: PageId) {
        let call = mmu.call();
        let mut debt = Debt::new(&call);
        let state = call.page(page).lock.lock(&call.locks);
        match self {
            Self::Install | Self::Widen => {
                let leaf = call.leaf(D, ALL);
                let _ = call.install_leaf(page, SLOT, &leaf, Purpose::Write);
            }
            Self::Narrow => {
                let mut stripe = mmu.frames.lock(&call.locks, D);
                call.narrow(&mut stripe, SpteRef::new(page, SLOT), &mut debt);
            }
            Self::Remove => {
                call.remove_recorded(page, SLOT, &mut debt);
            }
        }
        drop(state);
        debt.pay();
    }
}

/// Tells whether a harvest has a frame; for that every frame's log is taken.
fn harvest(mmu: &LoomMmu, gfn: Gfn) -> bool {
    let mut found = false;
    mmu.harvest_dirty(SlotId(0), |dirty| found |= dirty == gfn)
        .unwrap();
    found
}

/// D1, rule R10: the processor sets A, or D, while the entry is installed, widened, narrowed or removed: the bit is in the entry, or the frame
/// is in the log.
///
/// Red under the mutants WidenBlindly, NarrowBlindly. (No mutant removes blindly: what may be written is marked when writing is allowed, so that
/// nothing depends on the bits of an entry that goes.)
#[test]
fn no_bit_that_the_processor_sets_is_lost() {
    let changes = [
        Change::Install,
        Change::Widen,
        Change::Narrow,
        Change::Remove,
    ];
    for change in changes {
        for bits in [Spte::ACCESSED, Spte::ACCESSED | Spte::DIRTY] {
            change_while_processor_sets(change, bits);
        }
    }
}

fn change_while_processor_sets(change: Change, bits: u64) {
    explore(&std::format!("processor | {change:?}"), move || {
        let mmu = world(SlotFlags::LOG_DIRTY);
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        match change {
            Change::Install => {}
            Change::Widen => mmu.map(page, SLOT, D, READ, 0),
            Change::Narrow | Change::Remove => mmu.map(page, SLOT, D, ALL, 0),
        }
        mmu.run_guest(0);
        let table = mmu.pool.get(page).table();
        loom::explore();
        let software = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || change.make(&mmu, page))
        };
        let processor = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || mmu.host.walk(table, SLOT, bits, || {}))
        };
        let has_set = processor.join().unwrap();
        software.join().unwrap();
        // While exploring: of two stores that nothing orders either may be the last one.
        let (writes, entry) = (bits & Spte::DIRTY != 0, Spte::new(mmu.spte(page, SLOT)));
        loom::stop_exploring();
        if has_set && entry.is_present() {
            assert!(entry.has(Spte::ACCESSED), "A is lost");
            let is_kept = entry.has(Spte::DIRTY) || !entry.has(Spte::WRITE);
            assert!(is_kept || !writes, "D is lost");
        }
        let is_lost = has_set && writes && !harvest(&mmu, D);
        assert!(!is_lost, "a write is in no harvest");
    });
}

/// Rule R10, order 28: a fault allows writing while the log is harvested: each write is in what is copied after the harvest, or in the next one.
///
/// Red under the mutants HarvestWriteFirst, HarvestKeepsWrite, WritableUnmarked.
#[test]
fn a_write_that_a_fault_allows_is_in_a_harvest() {
    explore("harvest | write faults", || {
        let mmu = world(SlotFlags::LOG_DIRTY);
        mmu.poke(TABLE, SLOT, gpte(D));
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, READ, 0);
        mmu.run_guest(0);
        let data = Arc::new(AtomicU64::new(0));
        loom::explore();
        let guest = {
            let (mmu, data) = (Arc::clone(&mmu), Arc::clone(&data));
            thread::spawn(move || {
                let table = mmu.pool.get(page).table();
                let bits = Spte::ACCESSED | Spte::DIRTY;
                let call = bare_call(&mmu);
                let leaf = call.leaf(D, ALL);
                let walk = walk_to(D);
                let way = way(&walk, page, AccessKind::Write);
                for value in 1..5 {
                    let write = || data.store(value, Ordering::Release);
                    if !mmu.host.walk(table, SLOT, bits, write) {
                        let _ = call.place(&way, page, Level::L1, SLOT, &leaf);
                        mmu.run_guest(0);
                    }
                }
            })
        };
        let was_dirty = harvest(&mmu, D);
        let copied = was_dirty.then(|| data.load(Ordering::Acquire));
        guest.join().unwrap();
        loom::stop_exploring();
        let now = data.load(Ordering::Acquire);
        if now != copied.unwrap_or(0) {
            assert!(harvest(&mmu, D), "a write is in no harvest");
        }
    });
}

/// Sets A in the first entry of [`TABLE`], as a walk does.
fn set_accessed(mmu: &LoomMmu) -> bool {
    let call = mmu.call();
    let memory = SlottedMemory::new(&call, AddressSpace::Normal);
    let (old, new) = (gpte(D) & !0x20, gpte(D));
    let at = TABLE.address();
    let done = memory.compare_exchange(at, GpteWidth::Bytes8, Gpte::new(old), Gpte::new(new));
    matches!(done, Ok(CasOutcome::Done))
}

fn entry(mmu: &LoomMmu) -> u64 {
    mmu.host.gptes[TABLE.get() as usize][SLOT.get()].load(Ordering::Acquire)
}

/// D5, rule R13: a walk sets A while the log is harvested: the table's frame is copied with the bit, or is in the next harvest.
///
/// Red under the mutants MarkInTwoSections, MarkNotLogged.
#[test]
fn a_bit_that_is_set_is_in_a_harvest() {
    explore("A in a guest table | harvest", || {
        let mmu = world(SlotFlags::LOG_DIRTY);
        mmu.poke(TABLE, SLOT, gpte(D) & !0x20);
        loom::explore();
        let walker = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || set_accessed(&mmu))
        };
        let was_dirty = harvest(&mmu, TABLE);
        let copied = was_dirty.then(|| entry(&mmu));
        let has_set = walker.join().unwrap();
        loom::stop_exploring();
        assert!(has_set);
        if copied != Some(entry(&mmu)) {
            assert!(harvest(&mmu, TABLE), "a bit is in no harvest");
        }
    });
}
