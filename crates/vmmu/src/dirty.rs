//! The dirty log: which frames of a slot were written since the last harvest.
//!
//! A slot with [`crate::SlotFlags::LOG_DIRTY`] has its leaves installed read-only until the first write; the write marks the frame. A harvest takes
//! the marks, takes WRITE from the frames' leaves, and flushes before it returns, so that the next write is seen again.
//!
//! Invariants:
//! 1. A frame written since the last harvest returned is in the next one (rule R10); a frame may be reported once too often, never too seldom.
//! 2. An entry that disappears with W or D set marks its frame at once, and again after the flush.
//! 3. A gfn lock is held for at most 64 frames, and for at most 64 entries that map them.

use crate::Error;
use crate::addr::Gfn;
use crate::debt::Debt;
use crate::frames::{Region, Stripe};
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::slots::{AddressSpace, SlotFlags, SlotId};
use crate::stats::Observer;
use crate::sync::MOST;

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Takes the dirty log of a slot and calls `dirty` with each frame in it, in order; writes after this are in the next harvest.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`], also for a slot that does not log.
    pub fn harvest_dirty(&self, id: SlotId, mut dirty: impl FnMut(Gfn)) -> Result<(), Error> {
        let (slot, space) = self.slots.get(id).ok_or(Error::NoSuchSlot(id))?;
        if !slot.flags.contains(SlotFlags::LOG_DIRTY) {
            return Err(Error::NoSuchSlot(id));
        }
        let call = self.call();
        let (from, to) = (slot.base.get(), slot.base.get() + slot.frames);
        for region in from >> 9..=(to - 1) >> 9 {
            let first = Gfn::new(region << 9);
            let mask = within(first.get(), from, to);
            let taken = call.harvest_region(first, space, &mask);
            each(first, &taken, &mut dirty);
        }
        Ok(())
    }
}

/// How far one section of a harvest came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
enum Taking {
    /// Nothing that was asked for is left in the log.
    Over,
    /// The marks of some frames were taken; there may be more.
    Part,
    /// The next frame that has a mark has more entries than one section may change: its mark is not taken.
    Crowded(Gfn),
}

/// Visits the frames of a region whose bits are set, in order.
fn each(first: Gfn, bits: &[u64; 8], mut visit: impl FnMut(Gfn)) {
    for (word, bits) in bits.iter().enumerate() {
        let mut bits = *bits;
        while bits != 0 {
            visit(first.wrapping_add(word as u64 * 64 + u64::from(bits.trailing_zeros())));
            bits &= bits - 1;
        }
    }
}

/// Returns the bits of a region's frames that lie in `from..to`.
fn within(first: u64, from: u64, to: u64) -> [u64; 8] {
    core::array::from_fn(|word| {
        (0..64).fold(0, |mask, bit| {
            let gfn = first + word as u64 * 64 + bit;
            mask | u64::from(gfn >= from && gfn < to) << bit
        })
    })
}

/// Returns the bits of a word's frames up to the first one in `marked` that one section has no room for, and that one.
fn fitting(stripe: &mut Stripe, first: Gfn, marked: &[u64; 8]) -> (u64, Option<Gfn>) {
    let (mut room, mut crowded) = (MOST, None);
    each(first, marked, |gfn| {
        if crowded.is_none() {
            let entries = stripe.entries_of(gfn, MOST);
            match room.checked_sub(entries) {
                Some(left) => room = left,
                None => crowded = Some(gfn),
            }
        }
    });
    let fit = crowded.map_or(u64::MAX, |gfn| (1 << (gfn.get() % 64)) - 1);
    (fit, crowded)
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    pub(crate) fn harvest_region(
        &self,
        first: Gfn,
        space: AddressSpace,
        mask: &[u64; 8],
    ) -> [u64; 8] {
        let mut debt = Debt::new(self);
        let taken = if self.is_direct_engine() {
            self.take_direct(first, space, mask, &mut debt)
        } else {
            self.take_shadow(first, space, mask, &mut debt)
        };
        debt.forget_dirty();
        debt.promise();
        // With no flush owed no TLB writes through an entry that is gone: what was to be marked once more is history.
        if !self.flush_is_pending()
            && let Some((region, _)) = self.mmu.frames.lock(&self.locks, first).region(first)
            && !self.flush_is_pending()
        {
            region.forget_late();
        }
        taken
    }

    /// Takes the log of a region, and WRITE from the leaves of its frames: of as many frames under one lock as have [`MOST`] entries.
    fn take_shadow(
        &self,
        first: Gfn,
        space: AddressSpace,
        mask: &[u64; 8],
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> [u64; 8] {
        let (mut left, mut all) = (*mask, [0; 8]);
        loop {
            match self.take_some(first, space, &mut left, &mut all, debt) {
                Taking::Over => return all,
                Taking::Part => {}
                Taking::Crowded(gfn) => {
                    // Few entries are left in the next section, for nothing new is installed until that is over.
                    let _thinned = self.thin(gfn, debt);
                    let _ = self.take_some(first, space, &mut left, &mut all, debt);
                }
            }
        }
    }

    /// Takes the log of the next frames that have something in it, 64 at most.
    fn take_some(
        &self,
        first: Gfn,
        space: AddressSpace,
        left: &mut [u64; 8],
        all: &mut [u64; 8],
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Taking {
        let mut stripe = self.mmu.frames.lock(&self.locks, first);
        for word in 0..left.len() {
            let marked = stripe.region(first).and_then(|(r, _)| r.dirty(space));
            let mut mask = [0; 8];
            mask[word] = left[word] & marked.unwrap_or_default()[word];
            let (fit, crowded) = fitting(&mut stripe, first, &mask);
            let asked = left[word] & fit;
            left[word] &= !fit;
            mask[word] &= fit;
            if mutant!(HarvestWriteFirst) {
                each(first, &mask, |gfn| self.protect(&mut stripe, gfn, debt));
                drop(stripe);
                stripe = self.mmu.frames.lock(&self.locks, first);
                mask[word] = asked;
            }
            if mask[word] == 0 {
                match crowded {
                    Some(gfn) => return Taking::Crowded(gfn),
                    None => continue,
                }
            }
            let taken = stripe
                .region(first)
                .map_or([0; 8], |(region, _)| region.take_dirty(space, &mask));
            if !mutant!(HarvestKeepsWrite) && !mutant!(HarvestWriteFirst) {
                each(first, &taken, |gfn| self.protect(&mut stripe, gfn, debt));
            }
            // Narrowing has marked the frames again; what it stands for is in `taken`, and flushed before the caller copies anything.
            if let Some((region, _)) = stripe.region(first) {
                let _ = region.take_dirty(space, &taken);
            }
            all[word] |= taken[word];
            return Taking::Part;
        }
        Taking::Over
    }

    /// As [`Call::take_shadow`]; no gfn lock is held while table locks are taken. A fault that makes a frame writable again marks it again.
    fn take_direct(
        &self,
        first: Gfn,
        space: AddressSpace,
        mask: &[u64; 8],
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> [u64; 8] {
        let taken = self
            .mmu
            .frames
            .lock(&self.locks, first)
            .region(first)
            .map_or([0; 8], |(region, _)| region.take_dirty(space, mask));
        if !mutant!(NestedHarvestKeepsWrite) {
            each(first, &taken, |gfn| self.protect_direct(space, gfn, debt));
        }
        taken
    }

    /// Marks once more what a TLB may have written until the flush.
    pub(crate) fn redirty(&self, from: Gfn, to: Gfn) {
        if (to.get() - from.get()) >> 9 > self.mmu.frames.stripes() as u64 {
            // Frames far apart, with much that no slot has between them: all records are fewer.
            self.mmu.frames.for_each_stripe(&self.locks, |stripe| {
                stripe.regions_mut().for_each(Region::redirty);
            });
            return;
        }
        for region in from.get() >> 9..=to.get() >> 9 {
            let first = Gfn::new(region << 9);
            if let Some((region, _)) = self.mmu.frames.lock(&self.locks, first).region(first) {
                region.redirty();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod a_write_is_in_the_next_harvest {
    use super::*;
    use crate::addr::{Gpa, Level};
    use crate::audit::Strictness;
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::{Access, AccessKind};
    use crate::{Engine, FaultOutcome};
    use alloc::vec::Vec;

    fn harvest(world: &World) -> Vec<u64> {
        let mut frames = Vec::new();
        world
            .mmu
            .harvest_dirty(world.ram, |gfn| frames.push(gfn.get()))
            .unwrap();
        frames
    }

    /// Writes, harvests, and writes again; the auditor tells of any leaf that is writable and not marked.
    fn rounds(world: &World, write: impl Fn(u64)) {
        world
            .mmu
            .set_slot_flags(world.ram, SlotFlags::LOG_DIRTY)
            .unwrap();
        write(605);
        write(600);
        world.mmu.audit(Strictness::Exact).unwrap();
        let first = harvest(world);
        assert!(first.contains(&600) && first.contains(&605), "{first:?}");
        world.mmu.audit(Strictness::Exact).unwrap();
        write(605);
        assert_eq!(harvest(world), [605]);
        assert_eq!(harvest(world), []);
    }

    #[test]
    fn under_nested_paging() {
        for engine in [Engine::Npt, Engine::Ept] {
            let world = World::new(engine, |_| {});
            world.mmu.host().allow(Level::L2);
            rounds(&world, |gfn| {
                let gpa = Gpa::new(gfn << 12);
                let done = world.vcpu(0).handle_nested_fault(gpa, AccessKind::Write);
                assert_eq!(done, Ok(FaultOutcome::Resume));
            });
        }
    }

    #[test]
    fn under_shadow_paging() {
        let world = World::new(Engine::Shadow, |_| {});
        let mut guest = Guest::new(World::ROOT);
        for i in 0..8 {
            let page = (Gfn::new(600 + i), Level::L1);
            guest.map(world.mmu.host(), i << 12, page, PWU | AD);
        }
        world.set_root();
        rounds(&world, |gfn| {
            let done = world.touch((gfn - 600) << 12, Access::WRITE);
            assert_eq!(done, FaultOutcome::Resume);
        });
    }
}
