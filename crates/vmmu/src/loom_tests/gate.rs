//! The gate: the first page against a write that sees no page.

use super::world::{
    ALL, D, E, READ, SLOT, TABLE, explore, frame_of, gpte, role, walk_to, way, world,
};
use crate::addr::{Gpa, Level};
use crate::debt::Debt;
use crate::slots::SlotFlags;
use crate::walk::AccessKind;
use loom::thread;
use std::sync::Arc;

/// G1, fenced strategy: either the writer sees the count, or the creator's re-read sees the write.
///
/// Red without: the barrier in `Gate::create`; that in `Gate::is_open`.
#[test]
fn a_write_and_a_new_page_do_not_miss_each_other() {
    explore("gate: create | guest write", || {
        let mmu = world(SlotFlags::empty());
        mmu.poke(TABLE, SLOT, gpte(D));
        loom::explore();
        let creator = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                let call = mmu.call();
                let mut debt = Debt::new(&call);
                let role = role(Level::L1, ALL);
                let page = call.find_or_create(TABLE, role, &[], &mut debt).unwrap();
                let leaf = call.leaf(D, READ);
                let walk = walk_to(D);
                let way = way(&walk, page, AccessKind::Read);
                let _ = call.place(&way, page, Level::L1, SLOT, &leaf);
                debt.pay();
                page
            })
        };
        let writer = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.poke(TABLE, SLOT, gpte(E));
                mmu.guest_wrote(Gpa::new(TABLE.address().get()), 8);
            })
        };
        let page = creator.join().unwrap();
        writer.join().unwrap();
        loom::stop_exploring();
        assert_ne!(frame_of(mmu.spte(page, SLOT)), Some(mmu.host.backing(D, 0)));
    });
}
