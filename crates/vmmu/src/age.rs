//! Ageing: which guest frames processors have used since this was last asked, by the accessed bits of the entries that map them.
//!
//! Key call: [`Mmu::age`], for hosts that decide what to take back. Neighbours: `frames` has the entries of a frame in the shadow engine, `direct` the nested tables.
//!
//! Nothing is flushed: a TLB that holds an entry uses it without setting the bit again, so that "not used" means that no processor has walked to the frame.
//!
//! Invariants:
//! 1. A bit is cleared by a compare-exchange, which keeps what the processor sets meanwhile; no right changes, and no flush is owed.
//! 2. Nothing of correctness depends on the accessed bits of leaves: they are a guess, as those of links are.
//! 3. Under the gfn lock (direct engine: the table lock) an entry that is looked at maps what its reverse map, or its place, says.

use crate::addr::{Gfn, Index, Level};
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::page::{PRESENT_WORDS, Page, PageId, Record, SpteRef};
use crate::prune::present_slots;
use crate::slots::AddressSpace;
use crate::spte::Spte;
use crate::stats::Observer;

/// Frames that are looked at under one gfn lock.
const STEP: u64 = 64;

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Calls `used` with every frame of the range that a processor has walked to since the last call that covered it, and forgets that. No lock is held meanwhile;
    /// a frame may come twice.
    ///
    /// To be called by any thread, at any time; it does not wait for anybody. A leaf larger than a frame has one bit: it speaks for all its frames
    /// in the range, and the news of the others is gone with it, so that ranges should be whole blocks of 2 MiB. What has no mapping is not reported.
    pub fn age(&self, base: Gfn, frames: u64, mut used: impl FnMut(Gfn)) {
        let call = self.call();
        let (from, to) = (base.get(), base.get().saturating_add(frames));
        if call.is_direct_engine() {
            for space in [AddressSpace::Normal, AddressSpace::SystemManagement] {
                if let Some(root) = self.direct.get(space) {
                    call.age_table(root, (from, to), &mut used);
                }
            }
            return;
        }
        let mut first = from;
        while first < to {
            let end = to.min((first / STEP + 1) * STEP);
            let bits = call.age_frames(first, end);
            each(bits, |at| used(Gfn::new(first + at)));
            first = end;
        }
    }
}

/// Visits the numbers of the bits that are set.
fn each(bits: u64, mut visit: impl FnMut(u64)) {
    let mut left = bits;
    while left != 0 {
        visit(u64::from(left.trailing_zeros()));
        left &= left - 1;
    }
}

impl<H: Host, O: Observer> Call<'_, H, O> {
    /// Ages at most [`STEP`] frames of one region; returns those that were used, as bits from the first on.
    fn age_frames(&self, first: u64, end: u64) -> u64 {
        let gfn = Gfn::new(first);
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        let Some((region, nodes)) = stripe.region(gfn) else {
            return 0;
        };
        let take = |edge: SpteRef| self.take_accessed(self.page(edge.page()), edge.slot());
        if mutant!(AgeUnlocked) {
            let mut found = alloc::vec::Vec::new();
            nodes.for_each(region.large, |edge| found.push((u64::MAX, edge)));
            for at in 0..end - first {
                let head = region.small(Gfn::new(first + at));
                nodes.for_each(head, |edge| found.push((1 << at, edge)));
            }
            drop(stripe);
            let used = found.into_iter().filter(|(_, edge)| take(*edge));
            let bits = used.fold(0, |bits, (mask, _)| bits | mask);
            return bits & (u64::MAX >> (STEP - (end - first)));
        }
        let mut large = false;
        nodes.for_each(region.large, |edge| large |= take(edge));
        let mut bits = 0;
        for at in 0..end - first {
            let mut used = large;
            nodes.for_each(region.small(Gfn::new(first + at)), |edge| {
                used |= take(edge);
            });
            bits |= u64::from(used) << at;
        }
        bits
    }

    /// Ages the leaves below a nested table whose frames lie in the range.
    fn age_table(&self, id: PageId, range: (u64, u64), used: &mut impl FnMut(Gfn)) {
        let page = self.page(id);
        let (level, first) = (page.role().level(), page.gfn().get());
        let within = |index: Index| frames_of(first, index, level, range);
        for word in 0..PRESENT_WORDS {
            // As for an invalidation: 64 entries under the lock, the children after it is dropped.
            let mut children = [None; 64];
            let mut leaves = 0;
            {
                let _state = page.lock.lock(&self.locks);
                for index in present_slots(word, page.present_word(word)) {
                    if within(index).is_empty() {
                        continue;
                    }
                    match page.record(index) {
                        Record::Link(child)
                            if self.is_link(page, index, self.load(page, index)) =>
                        {
                            children[index.get() % 64] = Some(child);
                        }
                        _ => {
                            leaves |=
                                u64::from(self.take_accessed(page, index)) << (index.get() % 64);
                        }
                    }
                }
            }
            each(leaves, |at| {
                within(Index::truncate(word * 64 + at as usize))
                    .for_each(|gfn| used(Gfn::new(gfn)));
            });
            for child in children.into_iter().flatten() {
                self.age_table(child, range, used);
            }
        }
    }

    /// Clears the accessed bit of a leaf; tells whether it was set. Under the lock that keeps the leaf what it is.
    fn take_accessed(&self, page: &Page, index: Index) -> bool {
        let accessed = self.format().accessed;
        let mut old = self.load(page, index);
        while old.is_present() && old.has(accessed) {
            let new = old.without(accessed);
            if mutant!(AgeBlindly) {
                let host = &self.mmu.host;
                host.exchange(page.table(), index, new.raw());
                return true;
            }
            match self
                .mmu
                .host
                .compare_exchange(page.table(), index, old.raw(), new.raw())
            {
                Ok(_) => return true,
                // The processor has set the dirty bit.
                Err(found) => old = Spte::new(found),
            }
        }
        false
    }
}

/// Returns the frames of a range that a slot of a nested table maps.
fn frames_of(first: u64, index: Index, level: Level, range: (u64, u64)) -> core::ops::Range<u64> {
    let at = first + index.get() as u64 * level.frames();
    at.max(range.0)..(at + level.frames()).min(range.1)
}

#[cfg(all(test, not(loom)))]
mod a_frame_that_was_used {
    use super::*;
    use crate::addr::Gpa;
    use crate::audit::Strictness;
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::{Access, AccessKind};
    use crate::{Engine, FaultOutcome};
    use alloc::vec::Vec;

    fn aged(world: &World, base: u64, frames: u64) -> Vec<u64> {
        let mut used = Vec::new();
        world
            .mmu
            .age(Gfn::new(base), frames, |gfn| used.push(gfn.get()));
        world.mmu.audit(Strictness::Structure).unwrap();
        used
    }

    /// Two addresses map one frame; the processor walks to it by the second.
    #[test]
    fn under_shadow_paging_is_told_once_whatever_maps_it() {
        let world = World::new(Engine::Shadow, |_| {});
        let mut guest = Guest::new(World::ROOT);
        for (gva, gfn) in [(0, 600), (1 << 12, 601), (1 << 30, 601), (2 << 12, 640)] {
            guest.map(world.mmu.host(), gva, (Gfn::new(gfn), Level::L1), PWU | AD);
        }
        world.set_root();
        for gva in [0, 1 << 12, 1 << 30, 2 << 12] {
            assert_eq!(world.touch(gva, Access::WRITE), FaultOutcome::Resume);
        }
        aged(&world, 0, 1024);
        assert_eq!(aged(&world, 0, 1024), []);
        for gva in [1 << 30, 2 << 12] {
            let slot = world.slot(gva, Level::L1);
            let walked = world.spte(slot).with(Spte::ACCESSED | Spte::DIRTY);
            world.poke(slot, walked);
        }
        assert_eq!(aged(&world, 602, 38), []);
        assert_eq!(aged(&world, 0, 1024), [601, 640]);
        assert_eq!(aged(&world, 0, 1024), []);
        // All else of the entry is as it was.
        let leaf = world.spte(world.slot(1 << 30, Level::L1));
        assert!(leaf.has(Spte::WRITE | Spte::DIRTY | Spte::USER));
    }

    #[test]
    fn under_nested_paging_is_told_with_all_that_its_leaf_maps() {
        for (engine, accessed) in [(Engine::Npt, 1 << 5), (Engine::Ept, 1 << 8)] {
            let world = World::new(engine, |_| {});
            world.mmu.host().allow(Level::L2);
            let fault = |gfn: u64| {
                let gpa = Gpa::new(gfn << 12);
                world.vcpu(0).handle_nested_fault(gpa, AccessKind::Write)
            };
            for gfn in [3, 600] {
                assert_eq!(fault(gfn), Ok(FaultOutcome::Resume));
            }
            assert_eq!(aged(&world, 0, 1024), []);
            let mut id = world.mmu.direct.get(AddressSpace::Normal).unwrap();
            let mut level = Level::L4;
            let slot = loop {
                let index = level.index(600 << 12);
                match world.page(id).record(index) {
                    Record::Link(child) => id = child,
                    _ => break (id, index),
                }
                level = level.below().unwrap();
            };
            let walked = world.spte(slot).with(accessed);
            world.poke(slot, walked);
            let frames = level.frames();
            let block = Gfn::new(600).align_down(level).get();
            let expected: Vec<u64> = (block..block + frames).collect();
            assert_eq!(aged(&world, 0, 1024), expected, "{engine:?}");
            assert_eq!(aged(&world, 0, 1024), []);
        }
    }
}
