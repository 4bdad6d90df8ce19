//! Filling slots of a level-1 page from the guest's entries: what neighbours have in common is found, locked and checked once.
//!
//! Key types: [`Filled`] (the page), [`Guess`] (one entry to install), [`Ground`] (what frames of one region have in common).
//! Neighbours: `prefetch` fills slots behind a fault, `edge` installs one leaf at a time.
//!
//! Invariants:
//! 1. Only gPTEs with A set are installed, without the accessed bit of their own: whether the processor uses them decides about the window.
//! 2. Host frames are looked up without locks, after the snapshot; each entry passes the checks of a faulting one (scenarios T5, T13). Those of
//!    invalidation are made once per gfn lock: one that begins later waits for the lock, and finds what was installed.
//! 3. What is refused is dropped: nothing is removed or flushed for it.

use crate::addr::{Gfn, Index, Level};
use crate::edge::Refused;
use crate::frames::{Missing, Stripe};
use crate::host::{BackedFrame, Host, Need};
use crate::invalidate::Snapshot;
use crate::mmu::Call;
use crate::page::{Page, PageId, Record, SpteRef};
use crate::role::Role;
use crate::slots::{SlotFlags, SlotView};
use crate::spte::{EntryFormat, Spte};
use crate::stats::{Event, Observer};
use crate::walk::{Decoder, Gpte, GpteWidth, Rights};

/// Entries installed under one table lock.
const BATCH: usize = 16;

/// A level-1 page that is filled.
#[derive(Clone, Copy)]
struct Filled<'p> {
    id: PageId,
    page: &'p Page,
    role: Role,
    /// The guest table, and the state of the slots in which it was found.
    table: BackedFrame,
    slots: u64,
}

/// One entry to install.
#[derive(Clone, Copy)]
struct Guess {
    index: Index,
    gpte: Gpte,
    spte: Spte,
    snapshot: Snapshot,
}

impl Guess {
    const NONE: Self = Self {
        index: Index::truncate(0),
        gpte: Gpte::new(0),
        spte: Spte::new(0),
        snapshot: Snapshot::NONE,
    };

    /// Tells whether the locks and checks of this entry serve another one.
    #[inline]
    fn shares_with(&self, other: &Self) -> bool {
        self.gpte.frame().align_down(Level::L2) == other.gpte.frame().align_down(Level::L2)
            && self.snapshot == other.snapshot
    }
}

/// What frames of one region in one slot have in common.
#[derive(Clone, Copy)]
struct Ground {
    region: Gfn,
    slot: SlotView,
    snapshot: Snapshot,
}

impl Ground {
    #[inline]
    fn holds(&self, gfn: Gfn) -> bool {
        gfn.align_down(Level::L2) == self.region
            && (self.slot.contains(gfn) || mutant!(PrefetchBeyondSlot))
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Installs what the guest maps by `slots` of a level-1 page and has used before, where nothing is installed yet. No lock is held.
    pub(crate) fn fill(
        &self,
        id: PageId,
        decoder: &Decoder,
        mut slots: impl Iterator<Item = Index>,
    ) {
        let Some(filled) = self.filled(id) else {
            return;
        };
        let mut ground = None;
        let mut guesses = [Guess::NONE; BATCH];
        loop {
            let mut len = 0;
            while len < BATCH
                && let Some(index) = slots.next()
            {
                match self.guess(&filled, decoder, index, &mut ground) {
                    Some(guess) => {
                        guesses[len] = guess;
                        len += 1;
                    }
                    // Where even the next one is no candidate, looking further seldom pays.
                    None if len == 0 => return,
                    None => {}
                }
            }
            if len == 0 || !self.install_provided(&filled, &guesses[..len]) {
                return;
            }
        }
    }

    fn filled(&self, id: PageId) -> Option<Filled<'_>> {
        let page = self.page(id);
        let role = page.role();
        debug_assert!(role.level() == Level::L1 && !role.is_direct());
        let slots = self.mmu.slots.generation();
        let gfn = page.gfn();
        let table = self.slot(role.space(), gfn)?.backed(gfn);
        Some(Filled {
            id,
            page,
            role,
            table,
            slots,
        })
    }

    #[inline(always)]
    fn read_slot(&self, table: BackedFrame, index: Index) -> Option<Gpte> {
        let offset = index.get() as u16 * 8;
        let loaded = self.mmu.host.load_gpte(table, offset, GpteWidth::Bytes8);
        loaded.ok().map(Gpte::new)
    }

    #[inline(always)]
    fn guess(
        &self,
        filled: &Filled<'_>,
        decoder: &Decoder,
        index: Index,
        ground: &mut Option<Ground>,
    ) -> Option<Guess> {
        if self.load(filled.page, index).is_present() {
            return None;
        }
        let gpte = self.read_slot(filled.table, index)?;
        let is_candidate = gpte.has(Gpte::ACCESSED) || mutant!(PrefetchUnaccessed);
        if !is_candidate || !decoder.is_valid(Level::L1, gpte) {
            return None;
        }
        let gfn = gpte.frame();
        let ground = match ground {
            Some(ground) if ground.holds(gfn) => ground,
            other => other.insert(self.ground(filled, gfn)?),
        };
        let backed = ground.slot.backed(gfn);
        let host = self.mmu.host.look_up(backed, Need::Read).ok()?;
        let mut rights = filled.role.rights() & gpte.rights();
        let logged = (SlotFlags::READ_ONLY | SlotFlags::LOG_DIRTY).intersects(ground.slot.flags)
            && !mutant!(PrefetchIgnoresSlot);
        let is_dirty = gpte.has(Gpte::DIRTY) || mutant!(WriteBeforeDirty);
        if !is_dirty || !host.writable || logged {
            rights -= Rights::WRITE;
        }
        let write = if rights.contains(Rights::WRITE) {
            Spte::WRITE
        } else {
            0
        };
        Some(Guess {
            index,
            gpte,
            spte: EntryFormat::LONG
                .make_leaf(host.pfn, rights, false)
                .with(write),
            snapshot: ground.snapshot,
        })
    }

    #[inline(never)]
    fn ground(&self, filled: &Filled<'_>, gfn: Gfn) -> Option<Ground> {
        // The snapshot comes before everything that it covers: the slot, and the host frames.
        let snapshot = self.mmu.shards.snapshot(gfn, Level::L1, &self.mmu.slots);
        let slot = if mutant!(PrefetchBeyondSlot) {
            self.slot(filled.role.space(), filled.page.gfn())?
        } else {
            self.slot(filled.role.space(), gfn)?
        };
        Some(Ground {
            region: gfn.align_down(Level::L2),
            slot,
            snapshot,
        })
    }

    /// Installs guesses, allocating what they lack once; tells whether going on makes sense.
    fn install_provided(&self, filled: &Filled<'_>, guesses: &[Guess]) -> bool {
        match self.install_guesses(filled, guesses) {
            Ok(()) => true,
            Err(Refused::Missing(missing)) => {
                self.provide(missing).is_ok() && self.install_guesses(filled, guesses).is_ok()
            }
            Err(_) => false,
        }
    }

    /// Installs guesses under one table lock.
    fn install_guesses(&self, filled: &Filled<'_>, mut guesses: &[Guess]) -> Result<(), Refused> {
        let mut state = filled.page.lock.lock(&self.locks);
        // A slot that is removed takes the pages of its tables along, under their locks: as long as it has not, the table may be read.
        if !filled.page.is_alive() || self.mmu.slots.generation() != filled.slots {
            return Err(Refused::Stale);
        }
        let mut copy = state.copy.as_deref_mut();
        while let Some(first) = guesses.first() {
            let alike = guesses.iter().take_while(|g| g.shares_with(first));
            let (group, rest) = guesses.split_at(alike.count());
            guesses = rest;
            let lock_of = first.gpte.frame();
            let mut stripe = self.mmu.frames.lock(&self.locks, lock_of);
            // Under the gfn lock, and for as long as it is held.
            if !self
                .mmu
                .shards
                .is_unchanged(lock_of, Level::L1, first.snapshot)
                || first.snapshot.slots != self.mmu.slots.generation()
            {
                return Err(Refused::Stale);
            }
            self.install_group(filled, &mut stripe, group, copy.as_deref_mut())?;
        }
        Ok(())
    }

    /// Installs guesses whose frames lie in one region, with its gfn lock held as well.
    #[inline]
    fn install_group(
        &self,
        filled: &Filled<'_>,
        stripe: &mut Stripe,
        group: &[Guess],
        mut copy: Option<&mut [u64; 512]>,
    ) -> Result<(), Refused> {
        let (id, page) = (filled.id, filled.page);
        let lock_of = group.first().ok_or(Refused::Stale)?.gpte.frame();
        let (region, nodes) = stripe.region(lock_of).ok_or(Missing::Region(lock_of))?;
        for guess in group {
            let (index, gfn) = (guess.index, guess.gpte.frame());
            let now = self.read_slot(filled.table, index);
            let stale = now != Some(guess.gpte) && !mutant!(PrefetchWithoutRecheck);
            if stale || self.load(page, index).is_present() {
                continue;
            }
            let record = page.record_at(index, Level::L1);
            if record != Record::Empty && record != Record::Leaf(gfn) && self.flush_is_pending() {
                return Err(Refused::FlushFirst);
            }
            let spte = if region.is_tracked(gfn) {
                guess.spte.without(Spte::WRITE)
            } else {
                guess.spte
            };
            if spte.has(Spte::WRITE) {
                region.mark_dirty(gfn, Level::L1, filled.role.space());
            }
            let head = region.small_mut(gfn).ok_or(Missing::Heads(gfn))?;
            nodes
                .insert(head, SpteRef::new(id, index))
                .map_err(|_| Missing::Nodes(gfn))?;
            page.set_record_at(index, Level::L1, Record::Leaf(gfn));
            self.mmu.host.store(page.table(), index, spte.raw());
            self.count_at(Event::Leaf4K, gfn);
            self.count_at(Event::Prefetch, gfn);
            // Derived from this very word: nothing to judge.
            if let Some(copy) = copy.as_deref_mut() {
                copy[index.get() % 512] = guess.gpte.raw();
            }
        }
        Ok(())
    }
}
