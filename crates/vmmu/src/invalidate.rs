//! Invalidation by the host: frames taken back, slots removed or changed, writes logged.
//!
//! Key types: [`Invalidation`] (a begin/end pair, as a value), [`Shards`] (its sequence counts), [`Snapshot`] (what an installer compares).
//!
//! begin raises `busy`, then walks and flushes; end raises the sequence, then lowers `busy`. An installer takes its snapshot before it looks a frame
//! up, and compares under the gfn lock (the direct engine: under the table lock): either the walk comes later and finds its entry, or it sees `busy` or
//! the new sequence. A slot's change is such a pair by itself; its walk comes after it, and installers see the slots' new generation.
//!
//! Invariants:
//! 1. Counts are sharded by 2 MiB region; what may become a 1 GiB leaf compares a count that is raised with every shard.
//! 2. Only invalidation and slot changes raise them; write-protection never does.
//! 3. When `invalidate_begin` returns, no SPTE and no TLB entry maps a frame of the range, until `end`; later ones come from later look-ups.

use crate::Error;
use crate::addr::{Gfn, Level};
use crate::debt::Debt;
use crate::frames::Stripe;
use crate::host::Host;
use crate::mmu::{Call, Mmu};
use crate::rmap::Head;
use crate::slots::{AddressSpace, SlotFlags, SlotId, SlotTable};
use crate::stats::{Event, Observer};
use crate::sync::{AtomicU32, AtomicU64, MOST, Ordering};

/// How many shards.
const SHARDS: usize = if cfg!(loom) { 2 } else { 64 };

#[derive(Debug, Default)]
struct Shard {
    sequence: AtomicU64,
    busy: AtomicU32,
}

/// The sequence counts of invalidation.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: [Shard; SHARDS],
    /// Raised with whichever others are: what leaves larger than a shard's 2 MiB compare.
    all: Shard,
}

/// The counts as they were before a frame was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Snapshot {
    sequence: u64,
    pub(crate) slots: u64,
}

impl Snapshot {
    /// A snapshot that covers nothing.
    pub(crate) const NONE: Self = Self {
        sequence: 0,
        slots: 1,
    };
}

#[inline]
fn shard_of(gfn: Gfn) -> usize {
    (gfn.get() >> 9) as usize % SHARDS
}

impl Shards {
    pub(crate) fn new() -> Self {
        Self {
            shards: core::array::from_fn(|_| Shard::default()),
            all: Shard::default(),
        }
    }

    /// Returns the counts that a leaf of up to `level` compares.
    #[inline(always)]
    fn covering(&self, gfn: Gfn, level: Level) -> &Shard {
        if level > Level::L2 {
            &self.all
        } else {
            &self.shards[shard_of(gfn)]
        }
    }

    /// Takes a snapshot, before the slot and the host frame of `gfn` are looked up for a leaf of up to `level`.
    #[inline(always)]
    pub(crate) fn snapshot(&self, gfn: Gfn, level: Level, slots: &SlotTable) -> Snapshot {
        Snapshot {
            // Acquire: the look-up that follows is not older; pairs with the Release in `end`.
            sequence: self.covering(gfn, level).sequence.load(Ordering::Acquire),
            slots: slots.generation(),
        }
    }

    /// Tells whether a frame's region is being invalidated. After the frame was announced (`marking`).
    #[inline]
    pub(crate) fn is_busy(&self, gfn: Gfn) -> bool {
        self.shards[shard_of(gfn)].busy.load(Ordering::Acquire) != 0
    }

    /// Tells whether nothing was invalidated since the snapshot. Under the gfn lock or, in the direct engine, the table lock.
    #[inline(always)]
    pub(crate) fn is_unchanged(&self, gfn: Gfn, level: Level, snapshot: Snapshot) -> bool {
        let shard = self.covering(gfn, level);
        let busy = shard.busy.load(Ordering::Acquire) != 0;
        (!busy || mutant!(BusyIgnored))
            && (shard.sequence.load(Ordering::Acquire) == snapshot.sequence
                || mutant!(SequenceIgnored))
    }

    fn begin(&self, base: Gfn, frames: u64) {
        self.each(base, frames, |shard| {
            shard.busy.fetch_add(1, Ordering::AcqRel);
        });
    }

    fn end(&self, base: Gfn, frames: u64) {
        self.each(base, frames, |shard| {
            if mutant!(EndLowersFirst) {
                shard.busy.fetch_sub(1, Ordering::AcqRel);
                shard.sequence.fetch_add(1, Ordering::AcqRel);
                return;
            }
            // The sequence first: between the two an installer sees at least one of them.
            shard.sequence.fetch_add(1, Ordering::AcqRel);
            shard.busy.fetch_sub(1, Ordering::AcqRel);
        });
    }

    fn each(&self, base: Gfn, frames: u64, mut visit: impl FnMut(&Shard)) {
        let first = base.get() >> 9;
        let last = base.get().saturating_add(frames.max(1) - 1) >> 9;
        for region in first..=last.min(first + SHARDS as u64 - 1) {
            visit(&self.shards[region as usize % SHARDS]);
        }
        visit(&self.all);
    }
}

/// An invalidation under way: the range is mapped nowhere, and nobody maps it until this ends, by being dropped.
#[must_use = "the invalidation ends when this is dropped"]
#[derive(Debug)]
pub struct Invalidation<'m, H: Host, O: Observer> {
    mmu: &'m Mmu<H, O>,
    base: Gfn,
    frames: u64,
}

impl<H: Host, O: Observer> Drop for Invalidation<'_, H, O> {
    fn drop(&mut self) {
        self.mmu.shards.end(self.base, self.frames);
    }
}

impl<H: Host, O: Observer> Mmu<H, O> {
    /// Takes guest frames away from all tables and TLBs, in all address spaces, and keeps them away until the value is dropped.
    ///
    /// To be called before the host frames behind them are given to somebody else; the host changes its look-up before it drops the value.
    /// Faults in the range are answered with [`crate::FaultOutcome::Retry`] meanwhile, others go on.
    pub fn invalidate_begin(&self, base: Gfn, frames: u64) -> Invalidation<'_, H, O> {
        let call = self.call();
        if mutant!(BusyAfterWalk) {
            call.unmap_range(base, frames);
        }
        let invalidation = self.begin(base, frames);
        call.count_at(Event::Invalidation, base);
        if !mutant!(BusyAfterWalk) {
            call.unmap_range(base, frames);
        }
        invalidation
    }

    /// Keeps new mappings and marks away from the range, and waits for the marks in flight.
    fn begin(&self, base: Gfn, frames: u64) -> Invalidation<'_, H, O> {
        let invalidation = self.keep_out(base, frames);
        if !mutant!(MarksNotWaitedFor) {
            self.grace.wait_for_marks(base, frames);
        }
        invalidation
    }

    /// Keeps new mappings and marks away from the range, whatever is mapped or being stored there now.
    pub(crate) fn keep_out(&self, base: Gfn, frames: u64) -> Invalidation<'_, H, O> {
        self.shards.begin(base, frames);
        Invalidation {
            mmu: self,
            base,
            frames,
        }
    }

    /// Removes a memory slot, while guests run. No mapping of it is left when this returns, and nothing that was derived from guest tables in it.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`].
    pub fn remove_slot(&self, id: SlotId) -> Result<(), Error> {
        self.change_slot(id, None)
    }

    /// Changes a slot's flags, while guests run. No mapping made under the old flags is left when this returns.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`], [`Error::OutOfMemory`].
    pub fn set_slot_flags(&self, id: SlotId, flags: SlotFlags) -> Result<(), Error> {
        let (slot, space) = self.slots.get(id).ok_or(Error::NoSuchSlot(id))?;
        self.call()
            .prepare_log(space, slot.base, slot.frames, flags)?;
        self.change_slot(id, Some(flags))
    }

    fn change_slot(&self, id: SlotId, flags: Option<SlotFlags>) -> Result<(), Error> {
        let call = self.call();
        let (slot, space) = self.slots.get(id).ok_or(Error::NoSuchSlot(id))?;
        // Marks see the old slot and are waited for, or the new one. Installers compare the table's generation under the lock that the walk below takes:
        // they are refused, or found. So the walk, which may be long, keeps no fault away.
        let short = (!mutant!(SlotChangeUnseen)).then(|| self.begin(slot.base, slot.frames));
        self.slots.update(&call.locks, &slot, flags)?;
        drop(short);
        if flags.is_none() && !call.is_direct_engine() {
            // The guest's tables went with the slot: another one at the same place has other ones, and nobody reports that.
            let mut debt = Debt::new(&call);
            call.zap_tables_in(space, slot.base, slot.frames, &mut debt);
            debt.pay();
        }
        if !mutant!(SlotChangeKeepsMappings) {
            call.unmap_range(slot.base, slot.frames);
        }
        if mutant!(RecordsDieWithSlot) {
            call.mmu.frames.forget(&call.locks, slot.base);
        }
        Ok(())
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Prepares the dirty log of a slot that is to have one.
    pub(crate) fn prepare_log(
        &self,
        space: AddressSpace,
        base: Gfn,
        frames: u64,
        flags: SlotFlags,
    ) -> Result<(), Error> {
        if flags.contains(SlotFlags::LOG_DIRTY) {
            for region in base.get() >> 9..=base.get().saturating_add(frames.max(1) - 1) >> 9 {
                self.mmu
                    .frames
                    .provide_dirty(&self.locks, Gfn::new(region << 9), space)?;
            }
        }
        Ok(())
    }

    /// Removes every leaf that maps a frame of the range, and flushes.
    fn unmap_range(&self, base: Gfn, frames: u64) {
        let mut debt = Debt::new(self);
        if self.is_direct_engine() {
            self.unmap_direct(base, frames, &mut debt);
        } else {
            let end = base.get().saturating_add(frames);
            let mut region = base.get() >> 9;
            while region << 9 < end {
                while self.unmap_region(Gfn::new(region << 9), base.get(), end, &mut debt) {}
                region += 1;
            }
        }
        debt.promise();
    }

    /// Removes at most [`MOST`] leaves of one region; tells whether there are more.
    fn unmap_region(&self, region: Gfn, from: u64, to: u64, debt: &mut Debt<'_, 'm, H, O>) -> bool {
        let mut stripe = self.mmu.frames.lock(&self.locks, region);
        let mut left = MOST;
        let mut drain = |stripe: &mut Stripe, head: &dyn Fn(&mut Stripe) -> Head| {
            loop {
                let first = head(stripe);
                let Some(edge) = stripe.nodes.first(first) else {
                    return false;
                };
                if left == 0 {
                    return true;
                }
                left -= 1;
                self.remove(stripe, edge, debt);
            }
        };
        if !mutant!(UnmapKeepsLarge)
            && drain(&mut stripe, &|s| {
                s.region(region).map_or(Head::default(), |(r, _)| r.large)
            })
        {
            return true;
        }
        let first = from.max(region.get());
        for gfn in (first..to.min(region.get() + 512)).map(Gfn::new) {
            if drain(&mut stripe, &|s| {
                s.region(region)
                    .map_or(Head::default(), |(r, _)| r.small(gfn))
            }) {
                return true;
            }
        }
        false
    }
}

#[cfg(all(test, not(loom)))]
mod a_removed_slot_takes_its_tables_along {
    use super::*;
    use crate::SlotConfig;
    use crate::audit::Strictness;
    use crate::host::MemoryToken;
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::Access;
    use crate::{Engine, FaultOutcome};

    #[test]
    fn so_that_another_one_at_the_same_place_is_read_anew() {
        let world = World::new(Engine::Shadow, |_| {});
        let host = world.mmu.host();
        let mut guest = Guest::new(World::ROOT);
        for (gva, gfn) in [(0, 600), (1 << 21, 601)] {
            guest.map(host, gva, (Gfn::new(gfn), Level::L1), PWU | AD);
        }
        world.set_root();
        for gva in [0, 1 << 21] {
            assert_eq!(world.touch(gva, Access::READ), FaultOutcome::Resume);
        }
        world.mmu.remove_slot(world.ram).unwrap();
        assert_eq!(world.mmu.audit(Strictness::Exact).unwrap().pages, 0);
        // The same frames with other memory behind them: its tables map the second page only.
        for (from, to) in [(100, 1124), (101, 1125), (102, 1126), (104, 1128)] {
            for i in 0..512 {
                let word = host.word(Gfn::new(from), i).load(Ordering::SeqCst);
                host.word(Gfn::new(to), i).store(word, Ordering::SeqCst);
            }
        }
        host.word(Gfn::new(1126), 0).store(0, Ordering::SeqCst);
        let other = SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(0),
            frames: 1024,
            token: MemoryToken(1024),
            flags: SlotFlags::empty(),
        };
        world.mmu.add_slot(&other).unwrap();
        world.reload();
        let first = world.touch(0, Access::READ);
        assert!(matches!(first, FaultOutcome::InjectPageFault { .. }));
        assert_eq!(world.touch(1 << 21, Access::READ), FaultOutcome::Resume);
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn and_one_that_is_no_longer_the_same_is_left_alone() {
        let world = World::new(Engine::Shadow, |_| {});
        let (seen, _) = world.mmu.slots.get(world.ram).unwrap();
        world.mmu.remove_slot(world.ram).unwrap();
        let other = SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::new(512),
            frames: 512,
            token: MemoryToken(512),
            flags: SlotFlags::empty(),
        };
        let id = world.mmu.add_slot(&other).unwrap();
        assert_eq!(id, world.ram);
        let call = world.mmu.call();
        let late = world.mmu.slots.update(&call.locks, &seen, None);
        assert_eq!(late, Err(Error::NoSuchSlot(id)));
    }
}
