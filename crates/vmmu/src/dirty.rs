//! The dirty log: which frames of a slot were written since the last harvest.
//!
//! A slot with [`crate::SlotFlags::LOG_DIRTY`] has its leaves installed read-only until the first write; the write marks the frame. A harvest takes
//! the marks, takes WRITE from the frames' leaves, and flushes before it returns, so that the next write is seen again.
//!
//! Invariants:
//! 1. A frame written since the last harvest returned is in the next one (rule R10); a frame may be reported once too often, never too seldom.
//! 2. An entry that disappears with W or D set marks its frame at once, and again after the flush.

use crate::Error;
use crate::addr::Gfn;
use crate::debt::Debt;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::slots::{AddressSpace, SlotFlags, SlotId};
use crate::stats::Observer;

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

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    fn harvest_region(&self, first: Gfn, space: AddressSpace, mask: &[u64; 8]) -> [u64; 8] {
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

    /// Takes the log of a region, and WRITE from the leaves of its frames.
    fn take_shadow(
        &self,
        first: Gfn,
        space: AddressSpace,
        mask: &[u64; 8],
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> [u64; 8] {
        let mut stripe = self.mmu.frames.lock(&self.locks, first);
        let taken = stripe
            .region(first)
            .map_or([0; 8], |(region, _)| region.take_dirty(space, mask));
        if !mutant!(HarvestKeepsWrite) {
            each(first, &taken, |gfn| self.protect(&mut stripe, gfn, debt));
        }
        // Narrowing has marked the frames again; what it stands for is in `taken`, and flushed before the caller copies anything.
        if let Some((region, _)) = stripe.region(first) {
            let _ = region.take_dirty(space, &taken);
        }
        taken
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
        for region in from.get() >> 9..=to.get() >> 9 {
            let first = Gfn::new(region << 9);
            if let Some((region, _)) = self.mmu.frames.lock(&self.locks, first).region(first) {
                region.redirty();
            }
        }
    }
}
