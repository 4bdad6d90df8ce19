//! The dirty log against processors that write, and against those who take their entries away.

use super::world::{ALL, D, LoomMmu, SLOT, TABLE, bare_call, explore, role, world};
use crate::addr::Level;
use crate::debt::Debt;
use crate::slots::{AddressSpace, SlotFlags};
use crate::spte::Spte;
use crate::sync::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

/// Tells whether the next harvest of [`D`]'s region has it.
fn harvest(mmu: &LoomMmu) -> bool {
    let at = (D.get() % 512) as usize;
    let taken = bare_call(mmu).harvest_region(
        D.align_down(Level::L2),
        AddressSpace::Normal,
        &[u64::MAX; 8],
    );
    taken[at / 64] >> (at % 64) & 1 != 0
}

/// D4, rule R10: an entry with D set is removed, the log is harvested, and a processor writes through its TLB: the write is in what was copied
/// after the first harvest, or in the second.
///
/// Red if a removal's flush is dropped or announced too early; if narrowing owes no flush.
#[test]
fn a_write_through_a_stale_entry_is_in_a_harvest() {
    explore("harvest | removal | write through the TLB", || {
        let mmu = world(SlotFlags::LOG_DIRTY);
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, ALL, Spte::DIRTY);
        mmu.run_guest(mmu.spte(page, SLOT));
        let data = Arc::new(AtomicU64::new(0));
        loom::explore();
        let host = {
            let (mmu, data) = (Arc::clone(&mmu), Arc::clone(&data));
            thread::spawn(move || harvest(&mmu).then(|| data.load(Ordering::Relaxed)))
        };
        let remover = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = bare_call(&mmu);
                let mut debt = Debt::new(&call);
                let state = call.page(page).lock.lock(&call.locks);
                call.remove_recorded(page, SLOT, &mut debt);
                drop(state);
                debt.pay();
            })
        };
        let guest = {
            let (mmu, data) = (Arc::clone(&mmu), Arc::clone(&data));
            thread::spawn(move || {
                let cpu = mmu.host.cpus[0].lock().unwrap();
                if cpu.in_guest && cpu.tlb & Spte::WRITE != 0 {
                    data.store(1, Ordering::Relaxed);
                }
            })
        };
        let copied = host.join().unwrap();
        remover.join().unwrap();
        guest.join().unwrap();
        loom::stop_exploring();
        assert!(!bare_call(&mmu).flush_is_pending());
        if copied != Some(data.load(Ordering::Relaxed)) {
            assert!(harvest(&mmu), "a write is in no harvest");
        }
    });
}
