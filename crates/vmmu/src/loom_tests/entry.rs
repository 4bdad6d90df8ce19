//! Guest entry, grace periods, and the end of tables.

use super::world::{
    ALL, D, READ, SLOT, TABLE, UPPER, bare_call, explore, gpte, paging, role, world,
};
use crate::addr::Level;
use crate::host::{TableMemory, VcpuId};
use crate::slots::{AddressSpace, SlotFlags};
use crate::spte::Spte;
use crate::sync::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

/// T10: a root is zapped while a CPU runs on it, or is about to: its table is not freed before the CPU has left it.
///
/// Two guards hold this, and either suffices: red without both the reference of a loaded root (`Grace::pop`) and the wait of the flush
/// (`flush_all`); red if a dead page is freed at once.
#[test]
fn a_root_in_use_is_not_freed() {
    explore("root retirement | guest entry", || {
        let mmu = world(SlotFlags::empty());
        let root = {
            let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
            vcpu.set_paging(&paging(), AddressSpace::Normal).unwrap();
            let call = bare_call(&mmu);
            call.usable_root(&vcpu.shared.local.claim().unwrap())
                .unwrap()
        };
        loom::explore();
        let guest = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
                let entry = vcpu.enter().unwrap();
                let table = crate::addr::Pfn::new(entry.root.get() >> 12);
                mmu.host.load(table, SLOT);
                mmu.host.load(table, SLOT);
                vcpu.exited();
            })
        };
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || assert!(mmu.zap(root)))
        };
        guest.join().unwrap();
        zapper.join().unwrap();
    });
}

/// T18 and the entry protocol: a flush that is requested while a CPU enters its guest is not missed.
///
/// Red without: the barrier in `enter`; that in `flush_all`; the look at the requests in `enter`.
#[test]
fn a_flush_during_entry_is_not_missed() {
    explore("flush | guest entry", || {
        let mmu = world(SlotFlags::empty());
        let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.map(page, SLOT, D, READ, 0);
        let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
        // The first entry flushes anyway.
        assert!(vcpu.enter().unwrap().flush);
        vcpu.exited();
        mmu.host.cpus[0].lock().unwrap().tlb = mmu.spte(page, SLOT);
        let gone = Arc::new(AtomicU64::new(0));
        loom::explore();
        let guest = {
            let (mmu, gone) = (Arc::clone(&mmu), Arc::clone(&gone));
            thread::spawn(move || {
                let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
                let flush = vcpu.enter().unwrap().flush;
                // What the guest uses now, with its TLB as it is.
                if gone.load(Ordering::Acquire) != 0 {
                    assert!(flush, "a translation is used that is gone");
                }
                vcpu.exited();
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let invalidation = mmu.invalidate_begin(D, 1);
                gone.store(1, Ordering::Release);
                drop(invalidation);
            })
        };
        guest.join().unwrap();
        host.join().unwrap();
    });
}

/// T18: a CPU is kicked, leaves, and is back inside before the requester looks again: the requester waits for a change, not for a state.
///
/// Red if `flush_all` waits for the mode (it never returns).
#[test]
fn a_flush_does_not_wait_for_a_guest_that_is_back() {
    explore("flush | exit and entry", || {
        let mmu = world(SlotFlags::empty());
        let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
        assert!(vcpu.enter().unwrap().flush);
        let done = Arc::new(AtomicU64::new(0));
        loom::explore();
        let guest = {
            let (mmu, done) = (Arc::clone(&mmu), Arc::clone(&done));
            thread::spawn(move || {
                let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
                // Runs until it is kicked for the first, then for the second time.
                for kicks in 1..=2 {
                    while mmu.host.kicks.load(Ordering::Acquire) < kicks
                        && done.load(Ordering::Acquire) == 0
                    {
                        thread::yield_now();
                    }
                    vcpu.exited();
                    let _ = vcpu.enter().unwrap();
                }
                vcpu.exited();
            })
        };
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                bare_call(&mmu).flush_all();
                done.store(1, Ordering::Release);
            })
        };
        guest.join().unwrap();
        host.join().unwrap();
    });
}

/// Orders 22 and 23: a CPU leaves while a flush looks whether it is inside, and stays outside: nobody waits for its next exit.
///
/// Red under the mutants ModeBeforeExits, ExitsBeforeMode, ExitsRelaxed: the flush never returns.
#[test]
fn a_flush_does_not_wait_for_a_guest_that_has_left() {
    explore("flush | exit", || {
        let mmu = world(SlotFlags::empty());
        assert!(mmu.vcpu(VcpuId(0)).unwrap().enter().unwrap().flush);
        loom::explore();
        let host = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || bare_call(&mmu).flush_all())
        };
        mmu.vcpu(VcpuId(0)).unwrap().exited();
        host.join().unwrap();
    });
}

/// Rule R8: a processor walks from a page to its child, which is zapped: it never walks a freed table.
///
/// Red under the mutants FreeBeforeFlush, DropFlush.
#[test]
fn a_processor_walks_no_freed_table() {
    explore("retirement | walk of a processor", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(UPPER, SLOT, gpte(TABLE));
        let parent = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        let child = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.link(parent, child);
        mmu.run_guest(0);
        let top = mmu.pool.get(parent).table();
        loom::explore();
        let processor = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                // It leaves its guest between two walks, not within one.
                let cpu = mmu.host.cpus[0].lock().unwrap();
                let link = Spte::new(mmu.host.load(top, SLOT));
                if cpu.in_guest && link.is_present() {
                    mmu.host.load(link.pfn(), SLOT);
                }
            })
        };
        assert!(mmu.zap(child));
        processor.join().unwrap();
        loom::stop_exploring();
        assert_eq!(mmu.grace.waiting(), 0);
    });
}

/// Rule R8: a call that found a page before its end reads the page's table, not a freed one.
///
/// Red without: the comparison with the oldest guard in `Grace::pop`; the barrier in `enter_other`. (The one in `oldest` is covered by the
/// barrier of the flush that precedes every retirement.)
#[test]
fn a_reader_keeps_what_it_found() {
    explore("retirement | reader", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(UPPER, SLOT, gpte(TABLE));
        let parent = mmu.make_clean_page(UPPER, role(Level::L2, ALL));
        let child = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
        mmu.link(parent, child);
        loom::explore();
        let reader = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                if let Some(found) = call.linked(parent, SLOT)
                    && call.page(found).is_for(TABLE, role(Level::L1, ALL))
                {
                    mmu.spte(found, SLOT);
                }
            })
        };
        let zapper = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || assert!(mmu.zap(child)))
        };
        reader.join().unwrap();
        zapper.join().unwrap();
        loom::stop_exploring();
        // Nothing is left behind: the next call takes what waits.
        drop(mmu.call());
        assert_eq!(mmu.grace.waiting(), 0);
    });
}
