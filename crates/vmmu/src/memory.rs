//! Guest tables reached through the memory slots: what the walker reads and updates (rule R13).
//!
//! Key type: [`SlottedMemory`]. Neighbours: [`crate::walk`] calls it, `slots` finds the frame, `invalidate` takes frames back.
//!
//! Invariants:
//! 1. An entry is read with one atomic load.
//! 2. An accessed/dirty update is announced, and made while no invalidation of its frame is in progress: taking a frame back raises the count and then
//!    waits for what is announced, so that later updates see the count (`marking`).
//! 3. The update marks the frame dirty if its slot logs, in one section of the gfn lock with the update: no harvest comes between. It honours read-only
//!    slots.

use crate::addr::{Gfn, Gpa, Level};
use crate::error::Error;
use crate::host::{BackedFrame, GuestMemoryError, Host, Need};
use crate::mmu::Call;
use crate::slots::{AddressSpace, SlotFlags};
use crate::stats::Observer;
use crate::walk::{CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth};
use core::cell::Cell;

impl From<GuestMemoryError> for GpteError {
    fn from(error: GuestMemoryError) -> Self {
        match error {
            GuestMemoryError::NotResident => Self::Busy,
            GuestMemoryError::OutOfRange | GuestMemoryError::ReadOnly => Self::Missing,
        }
    }
}

/// Loads an entry of a frame.
#[inline]
pub(crate) fn load<H: Host>(
    host: &H,
    frame: BackedFrame,
    at: Gpa,
    width: GpteWidth,
) -> Result<Gpte, GpteError> {
    Ok(Gpte::new(host.load_gpte(
        frame,
        at.page_offset() as u16,
        width,
    )?))
}

/// Guest memory as one address space sees it.
#[derive(Debug)]
pub(crate) struct SlottedMemory<'c, 'm, H: Host, O: Observer> {
    pub(crate) call: &'c Call<'m, H, O>,
    pub(crate) space: AddressSpace,
    /// A frame that the host had to be asked for: whoever walked leaves its locks, looks it up, and walks again.
    absent: Cell<Option<(Gfn, Need)>>,
}

impl<'c, 'm, H: Host, O: Observer> SlottedMemory<'c, 'm, H, O> {
    pub(crate) fn new(call: &'c Call<'m, H, O>, space: AddressSpace) -> Self {
        Self {
            call,
            space,
            absent: Cell::new(None),
        }
    }

    fn note_absent(&self, error: GuestMemoryError, gfn: Gfn, need: Need) -> GpteError {
        if error == GuestMemoryError::NotResident {
            self.absent.set(Some((gfn, need)));
        }
        error.into()
    }

    /// Asks the host for the frame that stopped the walk, if one did. No lock is held.
    pub(crate) fn page_in(&self) -> Result<(), Error> {
        if let Some((gfn, need)) = self.absent.take()
            && let Some(slot) = self.call.slot(self.space, gfn)
        {
            self.call.locks.assert_none();
            let found = self.call.mmu.host.look_up(slot.backed(gfn), need);
            found.map_err(|_| Error::HostMemory { gfn })?;
        }
        Ok(())
    }
}

impl<H: Host, O: Observer> GpteMemory for SlottedMemory<'_, '_, H, O> {
    #[inline(always)]
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError> {
        let gfn = Gfn::containing(at);
        let slot = self.call.slot(self.space, gfn).ok_or(GpteError::Missing)?;
        let offset = at.page_offset() as u16;
        let loaded = self
            .call
            .mmu
            .host
            .load_gpte(slot.backed(gfn), offset, width);
        loaded
            .map(Gpte::new)
            .map_err(|error| self.note_absent(error, gfn, Need::Read))
    }

    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        let call = self.call;
        let gfn = Gfn::containing(at);
        let was_idle = mutant!(BusyTestedEarly) && !call.mmu.shards.is_busy(gfn);
        let _in_flight = call.guard.as_ref().map(|guard| guard.announce(gfn));
        // After the announcement: an invalidation that has begun is seen, one that begins now waits.
        if call.mmu.shards.is_busy(gfn) && !mutant!(MarkWhileTakenBack) && !was_idle {
            return Err(GpteError::Busy);
        }
        let slot = self.call.slot(self.space, gfn).ok_or(GpteError::Missing)?;
        if slot.flags.contains(SlotFlags::READ_ONLY) && !mutant!(MarkReadOnlySlot) {
            return Ok(CasOutcome::ReadOnly);
        }
        let logs = slot.flags.contains(SlotFlags::LOG_DIRTY);
        let mut stripe = logs.then(|| call.mmu.frames.lock(&call.locks, gfn));
        if mutant!(MarkInTwoSections)
            && let Some(mut early) = stripe.take()
            && let Some((region, _)) = early.region(gfn)
        {
            region.mark_dirty(gfn, Level::L1, self.space);
        }
        let offset = at.page_offset() as u16;
        match call.mmu.host.compare_exchange_gpte(
            slot.backed(gfn),
            offset,
            width,
            current.raw(),
            new.raw(),
        ) {
            Ok(Ok(_)) => {
                if let Some(stripe) = &mut stripe
                    && let Some((region, _)) = stripe.region(gfn)
                    && !mutant!(MarkNotLogged)
                {
                    region.mark_dirty(gfn, Level::L1, self.space);
                }
                Ok(CasOutcome::Done)
            }
            Ok(Err(_)) => Ok(CasOutcome::Lost),
            Err(GuestMemoryError::ReadOnly) => Ok(CasOutcome::ReadOnly),
            Err(error) => Err(self.note_absent(error, gfn, Need::Write)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod a_table_that_is_not_resident {
    use crate::addr::{Gfn, Level};
    use crate::sync::Ordering;
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::Access;
    use crate::{Engine, FaultOutcome};

    #[test]
    fn is_asked_for_instead_of_waited_for_for_ever() {
        let world = World::new(Engine::Shadow, |_| {});
        let page = (Gfn::new(600), Level::L1);
        let table = Guest::new(World::ROOT).map(world.mmu.host(), 0, page, PWU | AD);
        world.set_root();
        let absent = &world.mmu.host().absent;
        absent.store(table.get() + 1, Ordering::SeqCst);
        assert_eq!(world.touch(0, Access::READ), FaultOutcome::Resume);
        assert_eq!(absent.load(Ordering::SeqCst), 0);
    }
}
