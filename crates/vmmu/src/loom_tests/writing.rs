//! A write in the guest's name that another processor sees before it is reported.

use super::world::{
    ALL, D, E, LoomMmu, READ, SLOT, TABLE, explore, frame_of, gpte, paging, role, world_with,
};
use crate::addr::{Gpa, Gva, Level};
use crate::config::{Engine, ForeignWrites};
use crate::host::VcpuId;
use crate::page::PageId;
use crate::paging::Cr3;
use crate::slots::{AddressSpace, SlotFlags};
use crate::sync::Ordering;
use crate::vcpu::TlbFlush;
use loom::thread;
use std::sync::Arc;

/// A VM whose vCPU has a root loaded, and a clean page that maps [`D`].
fn world() -> (Arc<LoomMmu>, PageId) {
    let mmu = world_with(Engine::Shadow, SlotFlags::empty(), |config| {
        config.foreign_writes = ForeignWrites::ReportedFirst;
    });
    let vcpu = mmu.vcpu(VcpuId(0)).unwrap();
    vcpu.set_paging(&paging(), AddressSpace::Normal).unwrap();
    mmu.poke(TABLE, SLOT, gpte(D));
    let page = mmu.make_clean_page(TABLE, role(Level::L1, ALL));
    mmu.map(page, SLOT, D, READ, 0);
    (mmu, page)
}

/// Explores a write beside a processor that reads the entry, and flushes if it is the new one. Neither the store nor the load orders anything.
fn see_and(name: &str, flush: impl Fn(&LoomMmu) + Send + Sync + 'static) {
    explore(name, move || {
        let (mmu, page) = world();
        loom::explore();
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let writing = mmu.begin_write(Gpa::new(TABLE.address().get()), 8);
                mmu.host.gptes[TABLE.get() as usize][SLOT.get()].store(gpte(E), Ordering::Relaxed);
                writing.report();
            })
        };
        let entry = &mmu.host.gptes[TABLE.get() as usize][SLOT.get()];
        if entry.load(Ordering::Relaxed) == gpte(E) {
            flush(&mmu);
            let old = mmu.host.backing(D, 0);
            assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(old), "stale");
        }
        writer.join().unwrap();
    });
}

/// A root load of somebody who has seen the write finds it announced, or reported.
///
/// Red under the mutants AnnounceUnfenced, MeetUnfenced, WithdrawBeforeReport, ReloadMeetsNobody, LoadMeetsNobody.
#[test]
fn who_sees_a_write_loads_no_older_root() {
    see_and("write in flight | root load", |mmu| {
        let cr3 = Cr3::new(paging().cr3.get());
        mmu.vcpu(VcpuId(0)).unwrap().load_cr3(cr3).unwrap();
    });
}

/// INVLPG of somebody who has seen the write, the same.
///
/// Red under the mutants AnnounceUnfenced, MeetUnfenced, WithdrawBeforeReport, InvlpgMeetsNobody.
#[test]
fn who_sees_a_write_keeps_no_older_entry_after_invlpg() {
    see_and("write in flight | INVLPG", |mmu| {
        let flush = TlbFlush::Address(Gva::new(0));
        mmu.vcpu(VcpuId(0)).unwrap().invalidate(flush).unwrap();
    });
}
