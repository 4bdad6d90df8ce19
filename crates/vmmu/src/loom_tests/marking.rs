//! Accessed and dirty bits that are stored without a lock, against frames taken back by the host.

use super::world::{D, LoomCall, SLOT, TABLE, explore, gpte, world};
use crate::addr::Gpa;
use crate::memory::SlottedMemory;
use crate::slots::{AddressSpace, SlotFlags};
use crate::sync::{Locks, Ordering};
use crate::walk::{CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth};
use loom::thread;
use std::sync::Arc;

/// R13: while a frame is taken back nothing is stored in it, though a walk has just read an entry there.
///
/// Red if `Marking::announce` has no barrier, if `invalidate_begin` does not wait for what is announced, or if the update looks at `busy` before it
/// announces.
#[test]
fn no_bit_is_stored_in_a_frame_once_it_is_taken_back() {
    explore("invalidation | accessed bit", || {
        let mmu = world(SlotFlags::empty());
        let unused = gpte(D) ^ Gpte::ACCESSED.raw();
        mmu.poke(TABLE, SLOT, unused);
        loom::explore();
        let marker = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = LoomCall {
                    mmu: &mmu,
                    locks: Locks::default(),
                    guard: Some(mmu.grace.enter_vcpu(0)),
                    counters: &mmu.counters,
                    hint: None,
                };
                let memory = SlottedMemory::new(&call, AddressSpace::Normal);
                let (old, new) = (Gpte::new(unused), Gpte::new(gpte(D)));
                let at: Gpa = TABLE.address();
                let stored = memory.compare_exchange(at, GpteWidth::Bytes8, old, new);
                assert!(matches!(
                    stored,
                    Ok(CasOutcome::Done) | Err(GpteError::Busy)
                ));
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let load =
                    || mmu.host.gptes[TABLE.get() as usize][SLOT.get()].load(Ordering::Acquire);
                let invalidation = mmu.invalidate_begin(TABLE, 1);
                let taken = load();
                thread::yield_now();
                assert_eq!(load(), taken, "stored in somebody else's frame");
                drop(invalidation);
            })
        };
        marker.join().unwrap();
        host.join().unwrap();
        loom::stop_exploring();
    });
}
