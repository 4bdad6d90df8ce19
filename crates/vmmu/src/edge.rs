//! Edges: how an SPTE appears, changes its rights, and disappears. The lock protocol of the library is this file.
//!
//! An SPTE is an edge from the slot of a table to a target: a frame (leaf) or a child page (link). Every target has a gfn.
//!
//! > **Entries appear under the table lock and the target's gfn lock; they disappear under the gfn lock; whoever promises reads `flush_pending`.**
//!
//! Key types: [`Leaf`] (what to install), [`Refused`] (why not). Neighbours: `debt` carries the flush, `frames` has the other end of each edge.
//!
//! Invariants:
//! 1. Install stores into an empty slot only (rule R3); adjust keeps the frame; remove leaves zero.
//! 2. A removal reads the record under the gfn lock, unlinks the reverse map, and exchanges the SPTE last: its final access to the table.
//! 3. An entry is installed only if nobody has invalidated its frame since the look-up began, its slot's last mapping has been flushed
//!    or was the same, no page stands for the frame (writable) or its region (large).

use crate::Error;
use crate::addr::{Gfn, Index, Level, Pfn};
use crate::debt::Debt;
use crate::frames::{Missing, Stripe};
use crate::host::Host;
use crate::invalidate::Snapshot;
use crate::mmu::Call;
use crate::page::{Flags, Page, PageId, Record, SpteRef};
use crate::rmap::Nodes;
use crate::slots::AddressSpace;
use crate::spte::{EntryFormat, Spte};
use crate::stats::{Event, Observer};
use crate::sync::MOST;
use crate::walk::Rights;

/// A leaf to install.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    /// The first frame of the block.
    pub(crate) gfn: Gfn,
    /// Its host frame.
    pub(crate) pfn: Pfn,
    /// What the leaf allows; WRITE is withheld while the frame is tracked.
    pub(crate) rights: Rights,
    /// Further bits: accessed, dirty, our own.
    pub(crate) bits: u64,
    /// The state of invalidation from before the frame was looked up.
    pub(crate) snapshot: Snapshot,
}

/// Why an entry was not installed; nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Refused {
    /// The page died, the frame was invalidated, the child is not what is demanded: start over.
    Stale,
    /// The slot holds something else: remove it, flush, try again.
    Occupied,
    /// The slot's last mapping may still be in a TLB: flush, try again.
    FlushFirst,
    /// The region has a guest table: nothing large.
    TooLarge,
    /// The frame is tracked, and the access writes.
    Tracked,
    /// The child is not clean.
    Unclean,
    /// Memory is missing.
    Missing(Missing),
}

/// What an installation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Installed {
    /// The entry is new.
    New,
    /// It had the frame, and has more rights now.
    Widened,
    /// It was there already.
    Present,
}

impl From<Missing> for Refused {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

/// Whether an installation serves a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Reading, fetching, or a guess: read-only is good enough.
    Any,
    /// The guest writes.
    Write,
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Installs a leaf, or widens the one that is there. The caller holds the page's table lock and has re-read the gPTE.
    pub(crate) fn install_leaf(
        &self,
        id: PageId,
        slot: Index,
        leaf: &Leaf,
        purpose: Purpose,
    ) -> Result<Installed, Refused> {
        let page = self.page(id);
        let mut stripe = self.mmu.frames.lock(&self.locks, leaf.gfn);
        // The level as a constant: all that depends on it is decided when this is compiled.
        if page.role().level() == Level::L1 {
            self.install_in(&mut stripe, (id, page), (slot, Level::L1), leaf, purpose)
        } else {
            self.install_in(&mut stripe, (id, page), (slot, Level::L2), leaf, purpose)
        }
    }

    /// Installs a leaf of `level` with the gfn lock of its frame held as well.
    #[inline(always)]
    pub(crate) fn install_in(
        &self,
        stripe: &mut Stripe,
        (id, page): (PageId, &Page),
        (slot, level): (Index, Level),
        leaf: &Leaf,
        purpose: Purpose,
    ) -> Result<Installed, Refused> {
        crate::sync::note_entry();
        debug_assert_eq!(level, page.role().level());
        // Acquire inside `load`: pairs with the exchange of a removal, so that its raise of `flush_pending` is seen below.
        let old = self.load(page, slot);
        let record = page.record_at(slot, level);
        if old.is_present() {
            if (record != Record::Leaf(leaf.gfn) || !old.same_target(self.plain(leaf, level)))
                && !mutant!(OverwriteLeaf)
            {
                return Err(Refused::Occupied);
            }
        } else if record != Record::Empty
            && record != Record::Leaf(leaf.gfn)
            && self.flush_is_pending()
            && !mutant!(InstallBeforeFlush)
        {
            return Err(Refused::FlushFirst);
        }
        if !self.mmu.shards.is_unchanged(leaf.gfn, level, leaf.snapshot)
            || leaf.snapshot.slots != self.mmu.slots.generation()
        {
            return Err(Refused::Stale);
        }
        let (region, nodes) = stripe.region(leaf.gfn).ok_or(Missing::Region(leaf.gfn))?;
        let tracked = if level == Level::L1 {
            region.is_tracked(leaf.gfn) && !forgets_tracking(page, old)
        } else if region.live != 0 && !mutant!(LargeOverTable) {
            return Err(Refused::TooLarge);
        } else {
            false
        };
        if tracked && purpose == Purpose::Write {
            return Err(Refused::Tracked);
        }
        let writable = leaf.rights.contains(Rights::WRITE) && !tracked;
        let new =
            self.plain(leaf, level)
                .with(leaf.bits)
                .with(if writable { Spte::WRITE } else { 0 });
        if writable && !mutant!(WritableUnmarked) {
            region.mark_dirty(leaf.gfn, level, page.role().space());
        }
        if old.is_present() && !(mutant!(OverwriteLeaf) && record != Record::Leaf(leaf.gfn)) {
            return self.widen(page, slot, new);
        }
        if mutant!(StoreBeforeRoom) {
            self.mmu.host.store(page.table(), slot, new.raw());
        }
        region.add_leaf(nodes, leaf.gfn, level, SpteRef::new(id, slot))?;
        if !(mutant!(KeepOldRecord) && record != Record::Empty) {
            page.set_record_at(slot, level, Record::Leaf(leaf.gfn));
        }
        self.mmu.host.store(page.table(), slot, new.raw());
        self.count_at(
            if level == Level::L1 {
                Event::Leaf4K
            } else {
                Event::Leaf2M
            },
            leaf.gfn,
        );
        Ok(Installed::New)
    }

    /// Returns the leaf without WRITE and further bits.
    #[inline]
    fn plain(&self, leaf: &Leaf, level: Level) -> Spte {
        EntryFormat::LONG.make_leaf(leaf.pfn, leaf.rights, level > Level::L1)
    }

    /// Adds rights and bits to a leaf of the same frame. Under table lock and gfn lock.
    ///
    /// Rights that the leaf has and the guest's entry no longer gives stay until the guest flushes, as in a TLB. What would trade one right
    /// for another (the exception of rule R9) is refused as occupied.
    pub(crate) fn widen(&self, page: &Page, slot: Index, new: Spte) -> Result<Installed, Refused> {
        let mut old = self.load(page, slot);
        loop {
            if !old.is_present() {
                return Err(Refused::Stale);
            }
            let traded = (old.raw() ^ new.raw()) & (Spte::USER | Spte::KERNEL_WRITE) != 0;
            if (traded && !mutant!(WidenTradesRights)) || !old.same_target(new) {
                return Err(Refused::Occupied);
            }
            let executable = if new.has(Spte::NO_EXECUTE) {
                old
            } else {
                old.without(Spte::NO_EXECUTE)
            };
            let wide = executable.with(new.raw() & (Spte::WRITE | Spte::HARDWARE));
            if (wide.raw() ^ old.raw()) & !Spte::HARDWARE == 0 {
                return Ok(Installed::Present);
            }
            if mutant!(WidenBlindly) {
                self.mmu.host.store(page.table(), slot, wide.raw());
                return Ok(Installed::Widened);
            }
            match self
                .mmu
                .host
                .compare_exchange(page.table(), slot, old.raw(), wide.raw())
            {
                Ok(_) => return Ok(Installed::Widened),
                Err(found) => old = Spte::new(found),
            }
        }
    }

    /// Links `child` below a slot of `id`. The caller holds the table lock of `id` and has re-read the gPTE.
    pub(crate) fn link(
        &self,
        id: PageId,
        slot: Index,
        child: PageId,
        gfn: Gfn,
        role: crate::role::Role,
    ) -> Result<Installed, Refused> {
        let page = self.page(id);
        let below = self.page(child);
        let old = self.load(page, slot);
        let record = page.record(slot);
        if old.is_present() {
            if record == Record::Link(child) {
                return Ok(Installed::Present);
            }
            if !mutant!(OverwriteLink) {
                return Err(Refused::Occupied);
            }
        }
        if record != Record::Empty
            && record != Record::Link(child)
            && self.flush_is_pending()
            && !mutant!(LinkBeforeFlush)
        {
            return Err(Refused::FlushFirst);
        }
        let was_right = mutant!(LinkCheckedEarly) && below.is_for(gfn, role);
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        // Rule R4: what the walk demands at this moment, alive and clean.
        if !below.is_for(gfn, role) && !mutant!(LinkDead) && !was_right {
            return Err(Refused::Stale);
        }
        // Somebody takes its parents off in several sections: one that comes now would have to be taken off, too.
        if below.flags().contains(Flags::LEAVING) && !mutant!(LinkLeaving) {
            return Err(Refused::Stale);
        }
        let overlooked =
            mutant!(LinkUnclean) || was_right || (mutant!(LinkDead) && !below.is_alive());
        if !below.flags().contains(Flags::CLEAN) && !overlooked {
            return Err(Refused::Unclean);
        }
        stripe.add_parent(below, SpteRef::new(id, slot))?;
        page.set_record(slot, Record::Link(child));
        let format = if page.role().is_pae_root() {
            EntryFormat::PAE_ROOT
        } else {
            EntryFormat::LONG
        };
        self.mmu
            .host
            .store(page.table(), slot, format.make_link(below.table()).raw());
        Ok(Installed::New)
    }

    /// Removes an edge. The caller holds the gfn lock of its target, and has found the edge through the target's reverse map or parents, or
    /// has seen it present under this lock.
    pub(crate) fn remove(&self, stripe: &mut Stripe, edge: SpteRef, debt: &mut Debt<'_, 'm, H, O>) {
        crate::sync::note_entry();
        let page = self.page(edge.page());
        if !mutant!(RemoveOwesNothing) && !mutant!(OweAfterExchange) {
            debt.owe();
        }
        let record = self.mutated_record(page, edge.slot());
        let listed = match record {
            Record::Leaf(gfn) => stripe.drop_leaf(gfn, page.role().level(), edge),
            Record::Link(child) => stripe.drop_parent(self.page(child), edge),
            Record::Empty => false,
        };
        debug_assert!(
            listed,
            "{edge:?} with {record:?} is not in its target's list"
        );
        let old = Spte::new(self.mmu.host.exchange(page.table(), edge.slot(), 0));
        if mutant!(OweAfterExchange) {
            debt.owe();
        }
        if let Record::Leaf(gfn) = record {
            self.note_dirty(stripe, page, gfn, old, debt);
        }
    }

    /// Reads the record of a slot that is to be removed; the mutants of rule R1 make it up instead.
    #[inline]
    fn mutated_record(&self, page: &Page, slot: Index) -> Record {
        let record = page.record(slot);
        let (level, role) = (page.role().level(), page.role());
        match record {
            Record::Leaf(_) if mutant!(GfnFromPosition) => {
                Record::Leaf(page.gfn().wrapping_add(slot.get() as u64 * level.frames()))
            }
            Record::Leaf(gfn) if mutant!(GfnFromGpte) && !role.is_direct() => {
                let at = Self::gpte_at(page, slot);
                let gpte = self.read_gpte(role, at, crate::walk::GpteWidth::Bytes8);
                Record::Leaf(gpte.map_or(gfn, |gpte| Gfn::new(gpte.raw() << 12 >> 24)))
            }
            record => record,
        }
    }

    /// Records a write that an SPTE's W or D bit may stand for (rule R10).
    fn note_dirty(
        &self,
        stripe: &mut Stripe,
        page: &Page,
        gfn: Gfn,
        old: Spte,
        debt: &mut Debt<'_, 'm, H, O>,
    ) {
        if old.raw() & (Spte::WRITE | Spte::DIRTY) != 0
            && let Some((region, _)) = stripe.region(gfn)
            && region.logs(page.role().space())
        {
            region.mark_written(gfn, page.role().level(), page.role().space());
            debt.remember_dirty(gfn);
        }
    }

    /// Removes whatever a slot holds. The caller holds the table lock of `id`, so that the record stands still.
    pub(crate) fn remove_recorded(
        &self,
        id: PageId,
        slot: Index,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> bool {
        let page = self.page(id);
        if !self.load(page, slot).is_present() {
            return false;
        }
        let gfn = match page.record(slot) {
            Record::Leaf(gfn) => gfn,
            Record::Link(child) => self.page(child).gfn(),
            Record::Empty => return false,
        };
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        // Look again: it may have been removed by frame meanwhile.
        let present = self.load(page, slot).is_present() || mutant!(RemoveWithoutLook);
        if present {
            let record = page.record(slot);
            self.remove(&mut stripe, SpteRef::new(id, slot), debt);
            if mutant!(KeepReverseMap)
                && let Record::Leaf(gfn) = record
                && let Some((region, nodes)) = stripe.region(gfn)
            {
                let _ = region.add_leaf(nodes, gfn, page.role().level(), SpteRef::new(id, slot));
            }
        }
        present
    }

    /// Takes WRITE from a leaf. The caller holds the gfn lock of the frame.
    pub(crate) fn narrow(
        &self,
        stripe: &mut Stripe,
        edge: SpteRef,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> bool {
        crate::sync::note_entry();
        let page = self.page(edge.page());
        let mut old = self.load(page, edge.slot());
        loop {
            if !old.is_present() || !old.has(Spte::WRITE) {
                return false;
            }
            if !mutant!(NarrowOwesNothing) {
                debt.owe();
            }
            // D goes with W: an entry that cannot be written carries no news.
            let new = old.without(Spte::WRITE | Spte::DIRTY);
            if mutant!(NarrowBlindly) {
                self.mmu.host.store(page.table(), edge.slot(), new.raw());
                break;
            }
            match self
                .mmu
                .host
                .compare_exchange(page.table(), edge.slot(), old.raw(), new.raw())
            {
                Ok(_) => break,
                Err(found) => old = Spte::new(found),
            }
        }
        if let Record::Leaf(gfn) = page.record(edge.slot()) {
            self.note_dirty(stripe, page, gfn, old, debt);
        }
        true
    }

    /// Removes some entry so that a set of the gfn's stripe can grow within the bound on bookkeeping, and flushes. No lock is held.
    pub(crate) fn recycle(&self, gfn: Gfn) {
        let mut debt = Debt::new(self);
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        if let Some(edge) = stripe.nodes.victim() {
            self.remove(&mut stripe, edge, &mut debt);
            self.count_at(Event::Recycle, gfn);
        }
        drop(stripe);
        debt.pay();
    }

    /// Removes entries until the bound on bookkeeping holds again, and flushes. No lock is held.
    #[cold]
    pub(crate) fn shed(&self) -> Result<(), Error> {
        while !self.mmu.frames.is_within_bound(self.mmu.pool.spare(), 0)
            && let Some(gfn) = self.mmu.frames.rich_stripe(&self.locks)
        {
            let mut debt = Debt::new(self);
            let mut from = Some(Nodes::GROWTH);
            while let Some(at) = from {
                from = self.shed_step(gfn, at, &mut debt);
            }
            debt.pay();
            self.mmu.frames.shrink(&self.locks, gfn)?;
        }
        Ok(())
    }

    /// Removes some members of nodes from number `from` on; returns the number of the next one, unless that was the last.
    fn shed_step(&self, gfn: Gfn, mut from: usize, debt: &mut Debt<'_, 'm, H, O>) -> Option<usize> {
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        for _ in 0..MOST {
            let (at, edge) = stripe.nodes.member_from(from)?;
            self.remove(&mut stripe, edge, debt);
            self.count_at(Event::Recycle, gfn);
            from = at + 1;
        }
        Some(from)
    }
}

/// Tells whether a mutant of rules R5 or R6 overlooks that a frame is tracked.
#[inline]
fn forgets_tracking(page: &Page, old: Spte) -> bool {
    mutant!(WriteToTracked)
        || (mutant!(WidenToTracked) && old.is_present())
        || (mutant!(TrackOneSpace) && page.role().space() != AddressSpace::Normal)
}
