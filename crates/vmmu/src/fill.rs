//! Filling slots of a level-1 page from the guest's entries: what neighbours have in common is found, locked and checked once.
//!
//! Key types: [`Filled`] (the page), [`Batch`] of [`Guess`]es (entries to install), [`Ground`] (what frames of one region have in common).
//! Neighbours: `prefetch` fills slots behind a fault, `edge` installs one leaf at a time.
//!
//! Invariants:
//! 1. Only gPTEs with A set are installed, without the accessed bit of their own: whether the processor uses them decides about the window.
//! 2. Host frames are looked up without locks, after the snapshot; each entry passes the checks of a faulting one (scenarios T5, T13). Those of
//!    invalidation are made once per gfn lock: one that begins later waits for the lock, and finds what was installed.
//! 3. What is refused is dropped: nothing is removed or flushed for it.

use crate::addr::{Gfn, Index, Level, Pfn};
use crate::edge::Refused;
use crate::frames::{Missing, Region, Stripe};
use crate::host::{BackedFrame, Host, Need};
use crate::invalidate::Snapshot;
use crate::mmu::Call;
use crate::page::{Page, PageId, Record, SpteRef, TableState};
use crate::rmap::Nodes;
use crate::role::Role;
use crate::slots::{SlotFlags, SlotView};
use crate::spte::{Narrowing, Spte};
use crate::stats::{Event, Observer};
use crate::sync::Guard;
use crate::walk::{Decoder, Gpte, GpteWidth};

/// Entries installed under one table lock.
const BATCH: usize = 32;
/// The number of a ground that no guess of the batch needs.
const UNNUMBERED: u8 = u8::MAX;

/// A level-1 page that is filled.
#[derive(Clone, Copy)]
struct Filled<'p> {
    id: PageId,
    page: &'p Page,
    /// The page's own table.
    own: Pfn,
    role: Role,
    narrowing: Narrowing,
    /// The guest table, and the state of the slots in which it was found.
    table: BackedFrame,
    slots: u64,
    existing: Existing,
}

/// What to do about a slot that is no candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Miss {
    /// Give up if none of the batch was one: where even the next one is no candidate, looking further seldom pays.
    GiveUp,
    /// Go on with the next.
    GoOn,
}

/// What to do about an entry that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Existing {
    /// Leave it.
    Stays,
    /// Let it allow writing if the guest's does.
    MayGainWrite,
}

/// One entry to install.
#[derive(Clone, Copy)]
struct Guess {
    index: Index,
    /// Which of the batch's snapshots covers it; those of equal number share locks and checks.
    ground: u8,
    gpte: Gpte,
    spte: Spte,
}

/// What frames of one region in one slot have in common.
#[derive(Clone, Copy)]
struct Ground {
    region: Gfn,
    slot: SlotView,
    /// Writing is withheld: the first write has to be seen.
    withheld: bool,
    snapshot: Snapshot,
    /// The number of its snapshot in the batch, if a guess needs it.
    number: u8,
}

/// Entries that are installed under one table lock.
struct Batch {
    guesses: [Guess; BATCH],
    len: usize,
    snapshots: [Snapshot; BATCH],
    grounds: usize,
    /// Where the last guess lies.
    ground: Option<Ground>,
}

impl Batch {
    fn new() -> Self {
        let none = Guess {
            index: Index::truncate(0),
            ground: 0,
            gpte: Gpte::new(0),
            spte: Spte::new(0),
        };
        Self {
            guesses: [none; BATCH],
            len: 0,
            snapshots: [Snapshot::NONE; BATCH],
            grounds: 0,
            ground: None,
        }
    }

    /// Empties the batch. The ground stays: a snapshot covers whatever is looked up after it.
    fn clear(&mut self) {
        (self.len, self.grounds) = (0, 0);
        if let Some(ground) = &mut self.ground {
            ground.number = UNNUMBERED;
        }
    }

    #[inline(always)]
    fn push(&mut self, guess: Guess) {
        self.guesses[self.len % BATCH] = guess;
        self.len += 1;
    }
}

impl Ground {
    #[inline(always)]
    fn holds(&self, gfn: Gfn) -> bool {
        gfn.align_down(Level::L2) == self.region
            && (self.slot.contains(gfn) || mutant!(PrefetchBeyondSlot))
    }
}

/// Tells whether there is something to install over an entry.
#[inline(always)]
fn is_open(filled: &Filled<'_>, old: Spte, new: Spte) -> bool {
    !old.is_present()
        || (filled.existing == Existing::MayGainWrite
            && new.has(Spte::WRITE)
            && !old.has(Spte::WRITE))
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Installs what the guest maps by `slots` of a level-1 page and has used before, where nothing is installed yet. No lock is held.
    pub(crate) fn fill(
        &self,
        id: PageId,
        decoder: &Decoder,
        mut slots: impl Iterator<Item = Index>,
        miss: Miss,
    ) {
        let Some(filled) = self.filled(id, Existing::Stays) else {
            return;
        };
        let mut batch = Batch::new();
        loop {
            batch.clear();
            while batch.len < BATCH
                && let Some(index) = slots.next()
            {
                let is_candidate = self.guess(&filled, decoder, index, &mut batch);
                if !is_candidate && batch.len == 0 && miss == Miss::GiveUp {
                    return;
                }
            }
            if batch.len == 0 || !self.install_provided(&filled, &batch) {
                return;
            }
        }
    }

    #[inline(always)]
    fn filled(&self, id: PageId, existing: Existing) -> Option<Filled<'_>> {
        let page = self.page(id);
        let role = page.role();
        debug_assert!(role.level() == Level::L1 && !role.is_direct());
        let slots = self.mmu.slots.generation();
        let gfn = page.gfn();
        let table = self.slot(role.space(), gfn)?.backed(gfn);
        Some(Filled {
            id,
            page,
            own: page.table(),
            role,
            narrowing: Narrowing::to(role.rights()),
            table,
            slots,
            existing,
        })
    }

    #[inline(always)]
    fn read_slot(&self, table: BackedFrame, index: Index) -> Option<Gpte> {
        let offset = index.get() as u16 * 8;
        let loaded = self.mmu.host.load_gpte(table, offset, GpteWidth::Bytes8);
        loaded.ok().map(Gpte::new)
    }

    /// Installs what the guest maps by one slot of a level-1 page and has used before, or lets the entry there gain writing. No lock is held.
    #[inline(never)]
    pub(crate) fn fill_one(&self, decoder: &Decoder, id: PageId, index: Index) {
        if self.mmu.config.prefetch == 0 {
            return;
        }
        let Some(filled) = self.filled(id, Existing::MayGainWrite) else {
            return;
        };
        let Some(gpte) = self.candidate(&filled, decoder, index) else {
            return;
        };
        if let Some(ground) = self.ground(&filled, gpte.frame())
            && let Some(spte) = self.appraise(&filled, &ground, gpte)
        {
            let guess = Guess {
                index,
                ground: 0,
                gpte,
                spte,
            };
            // What it lacks is allocated once.
            if let Err(Refused::Missing(missing)) = self.install_one(&filled, &guess, &ground)
                && self.provide(missing).is_ok()
            {
                let _ = self.install_one(&filled, &guess, &ground);
            }
        }
    }

    /// Installs one guess.
    #[inline(always)]
    fn install_one(
        &self,
        filled: &Filled<'_>,
        guess: &Guess,
        ground: &Ground,
    ) -> Result<(), Refused> {
        let mut state = self.lock_filled(filled)?;
        let mut stripe = self.lock_ground(guess.gpte.frame(), ground.snapshot)?;
        let copy = state.copy.as_deref_mut();
        self.install_group(
            filled,
            &mut stripe,
            core::slice::from_ref(guess),
            copy,
            &mut 0,
        )
    }

    /// Installs what the guest maps by slots whose entries a sync has removed, and has used before. No lock is held.
    pub(crate) fn fill_behind(&self, id: PageId) {
        if self.mmu.config.prefetch == 0 {
            return;
        }
        let page = self.page(id);
        let decoder = self.mmu.decoder(page.role());
        let mut state = page.lock.lock(&self.locks);
        if let Some(only) = state.behind.take_only() {
            drop(state);
            return self.fill_one(decoder, id, only);
        }
        let behind = core::mem::take(&mut state.behind);
        drop(state);
        self.fill(id, decoder, behind.into_iter(), Miss::GoOn);
    }

    /// Reads the guest's entry of a slot, if it is one to install.
    #[inline(always)]
    fn candidate(&self, filled: &Filled<'_>, decoder: &Decoder, index: Index) -> Option<Gpte> {
        let gpte = self.read_slot(filled.table, index)?;
        let is_used = gpte.has(Gpte::ACCESSED) || mutant!(PrefetchUnaccessed);
        (is_used && decoder.is_valid(Level::L1, gpte)).then_some(gpte)
    }

    /// Works out the entry for a guest entry whose frame lies on `ground`.
    #[inline(always)]
    fn appraise(&self, filled: &Filled<'_>, ground: &Ground, gpte: Gpte) -> Option<Spte> {
        let backed = ground.slot.backed(gpte.frame());
        let host = self.mmu.host.look_up(backed, Need::Read).ok()?;
        let is_dirty = gpte.has(Gpte::DIRTY) || mutant!(WriteBeforeDirty);
        let spte = filled.narrowing.leaf(host.pfn, gpte);
        Some(if is_dirty && host.writable && !ground.withheld {
            spte
        } else {
            spte.without(Spte::WRITE)
        })
    }

    /// Puts the entry of a slot into the batch, if it is a candidate; tells whether it is.
    #[inline(always)]
    fn guess(
        &self,
        filled: &Filled<'_>,
        decoder: &Decoder,
        index: Index,
        batch: &mut Batch,
    ) -> bool {
        // An entry that exists ends a run that has not begun: the neighbours of a page that faulted alone are in place.
        if Spte::new(self.mmu.host.load(filled.own, index)).is_present() {
            return false;
        }
        let Some(gpte) = self.candidate(filled, decoder, index) else {
            return false;
        };
        let gfn = gpte.frame();
        if !batch.ground.as_ref().is_some_and(|g| g.holds(gfn)) {
            batch.ground = self.ground(filled, gfn);
        }
        let Some(ground) = batch.ground.as_mut() else {
            return false;
        };
        let Some(spte) = self.appraise(filled, ground, gpte) else {
            return false;
        };
        if ground.number == UNNUMBERED {
            ground.number = batch.grounds as u8;
            batch.snapshots[batch.grounds % BATCH] = ground.snapshot;
            batch.grounds += 1;
        }
        let ground = ground.number;
        batch.push(Guess {
            index,
            ground,
            gpte,
            spte,
        });
        true
    }

    /// Finds what a frame has in common with its neighbours.
    #[inline(always)]
    fn ground(&self, filled: &Filled<'_>, gfn: Gfn) -> Option<Ground> {
        // The snapshot comes before everything that it covers: the slot, and the host frames.
        let snapshot = self.mmu.shards.snapshot(gfn, Level::L1, &self.mmu.slots);
        let slot = if mutant!(PrefetchBeyondSlot) {
            self.slot(filled.role.space(), filled.page.gfn())
        } else {
            self.slot(filled.role.space(), gfn)
        }?;
        let watched = SlotFlags::READ_ONLY | SlotFlags::LOG_DIRTY;
        Some(Ground {
            region: gfn.align_down(Level::L2),
            slot,
            withheld: watched.intersects(slot.flags) && !mutant!(PrefetchIgnoresSlot),
            snapshot,
            number: UNNUMBERED,
        })
    }

    /// Takes the table lock of the page, if it may be filled.
    #[inline(always)]
    fn lock_filled<'f>(&'f self, filled: &Filled<'f>) -> Result<Guard<'f, TableState>, Refused> {
        let state = filled.page.lock.lock(&self.locks);
        // A slot that is removed takes the pages of its tables along, under their locks: as long as it has not, the table may be read.
        let is_dead = !filled.page.is_alive() && !mutant!(FillDead);
        if is_dead || self.mmu.slots.generation() != filled.slots {
            return Err(Refused::Stale);
        }
        Ok(state)
    }

    /// Takes the gfn lock of a frame, if nothing was invalidated since the snapshot: for as long as it is held nothing is.
    #[inline(always)]
    fn lock_ground(&self, gfn: Gfn, snapshot: Snapshot) -> Result<Guard<'_, Stripe>, Refused> {
        let stripe = self.mmu.frames.lock(&self.locks, gfn);
        if (!self.mmu.shards.is_unchanged(gfn, Level::L1, snapshot)
            || snapshot.slots != self.mmu.slots.generation())
            && !mutant!(FillWithoutCheck)
        {
            return Err(Refused::Stale);
        }
        Ok(stripe)
    }

    /// Installs a batch, allocating what it lacks; tells whether going on makes sense.
    #[inline(always)]
    fn install_provided(&self, filled: &Filled<'_>, batch: &Batch) -> bool {
        let mut done = 0;
        for _ in 0..=BATCH {
            match self.install_batch(filled, batch, &mut done) {
                Ok(()) => return true,
                Err(Refused::Missing(missing)) if self.provide_guess(missing) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Installs a batch, of which `done` entries are dealt with, under one table lock.
    fn install_batch(
        &self,
        filled: &Filled<'_>,
        batch: &Batch,
        done: &mut usize,
    ) -> Result<(), Refused> {
        let mut state = self.lock_filled(filled)?;
        let mut copy = state.copy.as_deref_mut();
        let guesses = &batch.guesses[..batch.len.min(BATCH)];
        while let Some(first) = guesses.get(*done) {
            let rest = &guesses[*done..];
            let alike = rest.iter().take_while(|g| g.ground == first.ground);
            let group = &rest[..alike.count()];
            let snapshot = batch.snapshots[usize::from(first.ground) % BATCH];
            let mut stripe = self.lock_ground(first.gpte.frame(), snapshot)?;
            self.install_group(filled, &mut stripe, group, copy.as_deref_mut(), done)?;
        }
        Ok(())
    }

    /// Installs guesses whose frames lie in one region, with its gfn lock held as well. Counts those that are dealt with.
    #[inline(always)]
    fn install_group(
        &self,
        filled: &Filled<'_>,
        stripe: &mut Stripe,
        group: &[Guess],
        mut copy: Option<&mut [u64; 512]>,
        done: &mut usize,
    ) -> Result<(), Refused> {
        let lock_of = group.first().ok_or(Refused::Stale)?.gpte.frame();
        let (region, nodes) = stripe.region(lock_of).ok_or(Missing::Region(lock_of))?;
        let (mut installed, mut result) = (0, Ok(()));
        for guess in group {
            match self.install_guess(filled, region, nodes, guess) {
                Ok(Some(word)) => {
                    installed += 1;
                    // Derived from this very word: nothing to judge.
                    if let Some(copy) = copy.as_deref_mut() {
                        copy[guess.index.get() % 512] = word;
                    }
                }
                Ok(None) => {}
                Err(refused) => {
                    result = Err(refused);
                    break;
                }
            }
            *done += 1;
        }
        self.add(Event::Leaf4K, installed);
        self.add(Event::Prefetch, installed);
        result
    }

    /// Installs one guess, if the guest's entry is unchanged and the slot empty; returns the guest's entry if it did.
    #[inline(always)]
    fn install_guess(
        &self,
        filled: &Filled<'_>,
        region: &mut Region,
        nodes: &mut Nodes,
        guess: &Guess,
    ) -> Result<Option<u64>, Refused> {
        crate::sync::note_entry();
        let (page, index, gfn) = (filled.page, guess.index, guess.gpte.frame());
        let now = self.read_slot(filled.table, index);
        let stale = now != Some(guess.gpte) && !mutant!(PrefetchWithoutRecheck);
        // Acquire inside: pairs with the exchange of a removal, so that its raise of `flush_pending` is seen below.
        let old = Spte::new(self.mmu.host.load(filled.own, index));
        if stale || !is_open(filled, old, guess.spte) {
            return Ok(None);
        }
        let record = page.record_at(index, Level::L1);
        if record != Record::Empty && record != Record::Leaf(gfn) && self.flush_is_pending() {
            return Err(Refused::FlushFirst);
        }
        let mut spte = guess.spte;
        if region.is_tracked(gfn) {
            spte = spte.without(Spte::WRITE);
        }
        if old.is_present() {
            return self.gain_write(filled, region, index, spte);
        }
        region.add_small(nodes, gfn, SpteRef::new(filled.id, index))?;
        if spte.has(Spte::WRITE) {
            region.mark_dirty(gfn, Level::L1, filled.role.space());
        }
        page.set_record_at(index, Level::L1, Record::Leaf(gfn));
        self.mmu.host.store(filled.own, index, spte.raw());
        self.tell(Event::Leaf4K, gfn);
        self.tell(Event::Prefetch, gfn);
        Ok(Some(guess.gpte.raw()))
    }

    /// Lets an entry gain writing, if it maps the frame of `new`. Under both locks.
    #[inline(never)]
    fn gain_write(
        &self,
        filled: &Filled<'_>,
        region: &mut Region,
        index: Index,
        new: Spte,
    ) -> Result<Option<u64>, Refused> {
        if let Record::Leaf(gfn) = filled.page.record_at(index, Level::L1)
            && new.has(Spte::WRITE)
        {
            region.mark_dirty(gfn, Level::L1, filled.role.space());
            let _ = self.widen(filled.page, index, new)?;
        }
        Ok(None)
    }
}
