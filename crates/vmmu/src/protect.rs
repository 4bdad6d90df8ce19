//! Write-protecting a frame, and what precedes it where too many entries map the frame for one section.
//!
//! Neighbours: `clean` protects a frame that becomes a table's, `dirty` one whose mark is taken; `edge` narrows and removes entries.
//!
//! That a frame becomes tracked, or its mark is taken, has to happen in the section that takes WRITE from its entries (rules R6 and R10). A section changes
//! at most [`MOST`] entries, so that a frame with more is *thinned* first: whatever is too much is removed, section by section, and comes back by faults.
//! There is no going through a set with the lock given up in between: members change their places.
//!
//! Invariants:
//! 1. While a frame is thinned, and until the caller has protected it, nothing new maps its region: its entries only become fewer.
//! 2. Thinning promises nothing: each removal owes its flush, marks its frame, and keeps the rules by itself. Who thinned begins anew.

use crate::addr::Gfn;
use crate::debt::Debt;
use crate::frames::Stripe;
use crate::host::Host;
use crate::invalidate::Invalidation;
use crate::mmu::Call;
use crate::stats::Observer;
use crate::sync::MOST;

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Removes entries of a frame, large ones first, until one section may protect the others; no new ones come until what this returns is dropped.
    /// No lock is held.
    #[cold]
    pub(crate) fn thin(&self, gfn: Gfn, debt: &mut Debt<'_, 'm, H, O>) -> Invalidation<'m, H, O> {
        // Before the first look: whoever installs under the gfn lock from here on sees it.
        let kept_out = self.mmu.keep_out(gfn, 1);
        while self.thin_step(gfn, debt) {}
        kept_out
    }

    /// Removes at most [`MOST`] entries; tells whether there are still too many.
    fn thin_step(&self, gfn: Gfn, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        for _ in 0..MOST {
            if stripe.entries_of(gfn, MOST) <= MOST {
                return false;
            }
            let Some(edge) = stripe.region(gfn).and_then(|(region, nodes)| {
                let large = nodes.first(region.large);
                large.or_else(|| nodes.first(region.small(gfn)))
            }) else {
                return false;
            };
            self.remove(&mut stripe, edge, debt);
        }
        stripe.entries_of(gfn, MOST) > MOST
    }

    /// Takes WRITE from every leaf of a gfn, and removes large leaves over it: what makes it tracked. They are no more than [`MOST`].
    pub(crate) fn protect(&self, stripe: &mut Stripe, gfn: Gfn, debt: &mut Debt<'_, 'm, H, O>) {
        while let Some(edge) = stripe
            .region(gfn)
            .and_then(|(region, nodes)| nodes.first(region.large))
            && !mutant!(ProtectKeepsLarge)
        {
            self.remove(stripe, edge, debt);
        }
        // A set cannot be walked while the stripe is lent out.
        let (mut edges, mut count) = ([None; MOST], 0);
        if let Some((region, nodes)) = stripe.region(gfn) {
            nodes.for_each(region.small(gfn), |edge| {
                if let Some(place) = edges.get_mut(count) {
                    *place = Some(edge);
                }
                count += 1;
            });
        }
        debug_assert!(count <= MOST, "{gfn:?} was not thinned: {count} entries");
        let few = if mutant!(ProtectFirstBatch) { 16 } else { MOST };
        for edge in edges.iter().flatten().take(few) {
            if !mutant!(ProtectKeepsWrite) {
                self.narrow(stripe, *edge, debt);
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod a_frame_that_many_entries_map {
    use super::*;
    use crate::FaultOutcome;
    use crate::addr::Level;
    use crate::audit::Strictness;
    use crate::slots::SlotFlags;
    use crate::spte::Spte;
    use crate::sync::Ordering;
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::Access;
    use alloc::vec::Vec;

    const FRAME: Gfn = Gfn::new(700);
    const MANY: u64 = 1000;

    /// Lets so many addresses map [`FRAME`] writable, in a slot that logs if `flags` say so.
    fn mapped_often(flags: SlotFlags) -> (World, Guest) {
        let (world, mut guest) = World::roomy(flags);
        for i in 0..MANY {
            guest.map(world.mmu.host(), i << 12, (FRAME, Level::L1), PWU | AD);
        }
        for i in 0..MANY {
            assert_eq!(world.touch(i << 12, Access::WRITE), FaultOutcome::Resume);
        }
        #[cfg(feature = "count")]
        let _ = crate::count::take();
        (world, guest)
    }

    fn writable(world: &World) -> usize {
        let leaves = (0..MANY).map(|i| world.spte(world.slot(i << 12, Level::L1)));
        leaves
            .filter(|leaf| leaf.is_present() && leaf.has(Spte::WRITE))
            .count()
    }

    fn assert_held_for_few() {
        #[cfg(feature = "count")]
        assert_eq!(crate::count::take().longest, MOST as u64);
    }

    #[test]
    fn is_writable_by_none_once_it_is_a_table() {
        let (world, mut guest) = mapped_often(SlotFlags::empty());
        let host = world.mmu.host();
        let directory = guest.map(host, 300 << 21, (FRAME, Level::L2), PWU);
        host.word(directory, 300)
            .store(FRAME.address().get() | PWU | 1 << 5, Ordering::SeqCst);
        host.word(FRAME, 0)
            .store(Gfn::new(701).address().get() | PWU | AD, Ordering::SeqCst);
        assert_eq!(writable(&world), MANY as usize);
        assert_eq!(world.touch(300 << 21, Access::READ), FaultOutcome::Resume);
        assert_held_for_few();
        assert_eq!(writable(&world), 0);
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn is_writable_by_none_once_it_is_harvested() {
        let (world, _) = mapped_often(SlotFlags::LOG_DIRTY);
        let mut taken = Vec::new();
        let harvest = |taken: &mut Vec<Gfn>| {
            taken.clear();
            world
                .mmu
                .harvest_dirty(world.ram, |gfn| taken.push(gfn))
                .unwrap();
        };
        harvest(&mut taken);
        assert_held_for_few();
        assert!(taken.contains(&FRAME));
        assert_eq!(writable(&world), 0);
        harvest(&mut taken);
        assert!(!taken.contains(&FRAME));
        assert_eq!(world.touch(999 << 12, Access::WRITE), FaultOutcome::Resume);
        harvest(&mut taken);
        assert!(taken.contains(&FRAME));
        world.mmu.audit(Strictness::Exact).unwrap();
    }
}
