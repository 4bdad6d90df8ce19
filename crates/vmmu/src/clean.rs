//! Clean and unsync: when a page agrees with its guest table, and how it comes to agree again.
//!
//! Key types: [`UnsyncList`], [`Cleaned`]. Neighbours: `derive` compares entries with the guest table, `edge` narrows and removes them.
//!
//! `make_clean` has four steps, is idempotent, and anyone may run it: (1) gfn lock: count the page, take WRITE from the leaves of its gfn (if they
//! are too many for one section, `protect` thins them first), note the generation; (2) flush if a flush is pending; (3) table lock: derive the
//! entries anew; (4) gfn lock: alive, counted and of the same generation makes it clean, and takes it off the list in the same section.
//!
//! Invariants:
//! 1. While a page is clean, no SPTE and no TLB entry to its gfn is writable (rule R6).
//! 2. A page that may be reached and is not clean is on the list, or its epoch has not been seen by the roots above it.
//! 3. `epoch` moves on after the pages are listed and before their frame may be mapped writable.
//! 4. A root's `clean_at` is stored only if no listed page was left unsync: otherwise every load derives it again.

use crate::addr::Gfn;
use crate::debt::Debt;
use crate::derive::Derived;
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{Flags, Page, PageId};
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::sync::{AtomicU32, Kind, Lock, Locks, MOST, Ordering};

/// The places of the list.
pub(crate) const PLACES: usize = 64;

/// As many pages as INVLPG looks at one by one.
const FEW: usize = 4;

#[derive(Debug)]
struct Places {
    ids: [u32; PLACES],
    len: usize,
}

/// The VM's bounded list of unsync pages.
#[derive(Debug)]
pub(crate) struct UnsyncList {
    places: Lock<Places>,
    /// How many places are taken; changed under the lock.
    len: AtomicU32,
    limit: usize,
}

/// What became of an attempt to make a page clean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Cleaned {
    /// The page is clean.
    Clean,
    /// It became unsync again meanwhile: what was derived is younger than the attempt.
    NotYet,
    /// The page is dead.
    Dead,
}

impl UnsyncList {
    pub(crate) fn new(limit: u16) -> Self {
        let places = Places {
            ids: [0; PLACES],
            len: 0,
        };
        Self {
            places: Lock::new(Kind::Leaf, places),
            len: AtomicU32::new(0),
            limit: usize::from(limit).min(PLACES),
        }
    }

    /// Puts pages on the list, all or none.
    fn add(&self, locks: &Locks, pages: &[u32]) -> bool {
        let mut places = self.places.lock(locks);
        let len = places.len;
        if len + pages.len() > self.limit {
            if mutant!(ListHalf) {
                let fit = self.limit - len;
                places.ids[len..self.limit].copy_from_slice(&pages[..fit]);
                places.len = self.limit;
            }
            return false;
        }
        places.ids[len..len + pages.len()].copy_from_slice(pages);
        places.len += pages.len();
        self.len.store(places.len as u32, Ordering::Release);
        true
    }

    /// Takes a page off the list.
    pub(crate) fn remove(&self, locks: &Locks, id: PageId) {
        let mut places = self.places.lock(locks);
        let len = places.len;
        if let Some(at) = places.ids[..len].iter().position(|p| *p == id.0) {
            places.ids[at] = places.ids[len - 1];
            places.len -= 1;
            self.len.store(places.len as u32, Ordering::Release);
        }
    }

    /// Tells whether no page is unsync that may be reached: then every entry is what the guest's tables say.
    ///
    /// Without the lock: a page is listed before the guest can write its table unseen, so that who has seen such a write sees the page, or
    /// what it was derived to since.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Copies the list if it is short.
    pub(crate) fn few(&self, locks: &Locks) -> Option<([PageId; FEW], usize)> {
        let places = self.places.lock(locks);
        let listed = places.ids[..places.len.min(PLACES)].iter();
        let mut few = [PageId(0); FEW];
        if places.len > FEW {
            return None;
        }
        for (place, id) in few.iter_mut().zip(listed) {
            *place = PageId(*id);
        }
        Some((few, places.len))
    }

    /// Tells whether a list of `len` pages is less than half full.
    fn has_room(&self, len: usize) -> bool {
        len * 2 <= self.limit
    }

    /// Copies the list into `ids`; returns what it holds.
    pub(crate) fn snapshot<'i>(&self, locks: &Locks, ids: &'i mut [u32; PLACES]) -> &'i [u32] {
        let places = self.places.lock(locks);
        let listed = &places.ids[..places.len.min(PLACES)];
        let copy = &mut ids[..listed.len()];
        copy.copy_from_slice(listed);
        copy
    }
}

/// Whether pages were left on the list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[must_use]
pub(crate) enum Left {
    /// All were made clean, or had one attempt.
    Nothing,
    /// Some are up to date and stay unsync.
    Unsync,
}

/// Pages with entries that a sync removed or narrowed and that may be installed anew: as many as there is place for.
#[derive(Debug)]
pub(crate) struct Behind {
    ids: [PageId; 8],
    len: usize,
}

impl Default for Behind {
    fn default() -> Self {
        Self {
            ids: [PageId(0); 8],
            len: 0,
        }
    }
}

impl Behind {
    fn add(&mut self, id: PageId) {
        if let Some(place) = self.ids.get_mut(self.len) {
            *place = id;
            self.len += 1;
        }
    }
}

/// Notes that the guest wrote a table, until somebody sees it used.
fn note_write(page: &Page) {
    let writes = page.writes.load(Ordering::Relaxed).saturating_add(1);
    page.writes.store(writes, Ordering::Relaxed);
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Makes a page clean: one attempt. No lock is held.
    pub(crate) fn make_clean(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> Cleaned {
        self.make_clean_deriving(id, debt).0
    }

    /// As [`Call::make_clean`]; tells besides what was derived.
    fn make_clean_deriving(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> (Cleaned, Derived) {
        let page = self.page(id);
        let gfn = page.gfn();
        let (mut thinned, mut first) = (None, None);
        let generation = loop {
            let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
            // After the frame was thinned, too: the page may have died or be clean by now.
            let now = page.flags();
            let flags = if mutant!(TrackUnlooked) {
                *first.get_or_insert(now)
            } else {
                now
            };
            if !flags.contains(Flags::ALIVE) {
                return (Cleaned::Dead, Derived::Same);
            }
            if flags.contains(Flags::CLEAN) {
                return (Cleaned::Clean, Derived::Same);
            }
            if !flags.contains(Flags::COUNTED) {
                if stripe.entries_of(gfn, MOST) > MOST {
                    drop(stripe);
                    thinned = Some(self.thin(gfn, debt));
                    continue;
                }
                if mutant!(TrackInTwoSections) {
                    self.protect(&mut stripe, gfn, debt);
                    drop(stripe);
                    stripe = self.mmu.frames.lock(&self.locks, gfn);
                }
                page.set_flags(page.flags() | Flags::COUNTED);
                if let Some((region, _)) = stripe.region(gfn) {
                    region.set_tracked(gfn, true);
                }
                if !mutant!(TrackInTwoSections) {
                    self.protect(&mut stripe, gfn, debt);
                }
            }
            if mutant!(UnlistBeforeClean) && flags.contains(Flags::LISTED) {
                page.set_flags(page.flags() - Flags::LISTED);
                self.mmu.unsync.remove(&self.locks, id);
            }
            break page.generation.load(Ordering::Relaxed);
        };
        drop(thinned);
        if !mutant!(CleanBeforeFlush) {
            debt.promise();
        }
        let derived = if mutant!(CleanWithoutDerive) {
            Derived::Same
        } else {
            self.derive_all(id, debt)
        };
        let _stripe = self.mmu.frames.lock(&self.locks, gfn);
        let flags = page.flags();
        if !flags.contains(Flags::ALIVE) {
            return (Cleaned::Dead, Derived::Same);
        }
        if (!flags.contains(Flags::COUNTED)
            || page.generation.load(Ordering::Relaxed) != generation)
            && !mutant!(CleanThoughUnsynced)
        {
            return (Cleaned::NotYet, derived);
        }
        page.set_flags((flags | Flags::CLEAN) - Flags::LISTED);
        if flags.contains(Flags::LISTED) {
            self.mmu.unsync.remove(&self.locks, id);
        }
        (Cleaned::Clean, derived)
    }

    /// Lets the guest write a table unseen: its pages become unsync. Tells whether they did; otherwise the write has to be emulated.
    #[inline(never)]
    pub(crate) fn make_unsync(&self, gfn: Gfn) -> bool {
        let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
        if mutant!(EpochBeforeList) {
            self.mmu.epoch.fetch_add(1, Ordering::AcqRel);
        }
        if mutant!(UntrackFirst) {
            if let Some((region, _)) = stripe.region(gfn) {
                region.set_tracked(gfn, false);
            }
            drop(stripe);
            stripe = self.mmu.frames.lock(&self.locks, gfn);
        }
        let (mut pages, mut listed, mut len) = ([PageId(0); 8], [0; 8], 0);
        let mut new = 0;
        let too_high = stripe.any_page(&self.mmu.pool, gfn, |id, page| {
            if page.role().is_direct() {
                return false;
            }
            if page.role().level() > self.mmu.config.unsync_level || len == pages.len() {
                return true;
            }
            pages[len] = id;
            len += 1;
            if !page.flags().contains(Flags::LISTED) {
                listed[new] = id.0;
                new += 1;
            }
            false
        });
        if too_high || !self.mmu.unsync.add(&self.locks, &listed[..new]) {
            return false;
        }
        for id in &pages[..len] {
            let page = self.page(*id);
            if mutant!(UnsyncOnePage) && *id != pages[0] {
                continue;
            }
            let cleared = if mutant!(UnsyncKeepsClean) {
                Flags::COUNTED
            } else {
                Flags::CLEAN | Flags::COUNTED
            };
            page.set_flags((page.flags() | Flags::LISTED) - cleared);
            page.generation.store(
                page.generation.load(Ordering::Relaxed).wrapping_add(1),
                Ordering::Relaxed,
            );
            note_write(page);
            page.quiet.store(0, Ordering::Relaxed);
        }
        if let Some((region, _)) = stripe.region(gfn) {
            region.set_tracked(gfn, false);
        }
        // Release, after the listing: who reads the new epoch finds the pages on the list. Before the frame is mapped writable: no
        // write can be older than the epoch that reveals it.
        if !mutant!(EpochNotRaised) && !mutant!(EpochBeforeList) {
            self.mmu.epoch.fetch_add(1, Ordering::AcqRel);
        }
        self.count_at(Event::Unsync, gfn);
        true
    }

    /// Makes the tree below a root as clean as the epoch was when this began: what a root load, and a link high up, promise.
    pub(crate) fn clean_root(&self, root: PageId, debt: &mut Debt<'_, 'm, H, O>) {
        if !mutant!(LoadMeetsNobody) {
            self.meet_writes(debt);
        }
        // Acquire, and before the list is read: pairs with the AcqRel in `make_unsync`.
        let epoch = self.mmu.epoch.load(Ordering::Acquire);
        let page = self.page(root);
        // Acquire: pairs with the Release below; who skips the work relies on what was removed by who did it.
        if page.clean_at.load(Ordering::Acquire) != epoch {
            let mut behind = Behind::default();
            let left = self.clean_listed(root, debt, Some(&mut behind));
            let epoch = if mutant!(EpochReadLate) {
                self.mmu.epoch.load(Ordering::Acquire)
            } else {
                epoch
            };
            // A page that was left unsync has to be looked at by the next load too.
            if left == Left::Nothing || mutant!(EpochThoughUnsync) {
                let order = if mutant!(CleanAtRelaxed) {
                    Ordering::Relaxed
                } else {
                    Ordering::Release
                };
                page.clean_at.store(epoch, order);
            }
            self.count(Event::RootSynced);
            self.catch_up(&behind, debt);
        }
        if !page.flags().contains(Flags::CLEAN) {
            let _ = self.make_clean(root, debt);
        }
    }

    /// Brings every listed page up to date, drops those that nothing links, and zaps those that are tables no more. Tells whether some were left
    /// unsync, and which have entries to install anew; without `behind` none is left.
    pub(crate) fn clean_listed(
        &self,
        root: PageId,
        debt: &mut Debt<'_, 'm, H, O>,
        mut behind: Option<&mut Behind>,
    ) -> Left {
        let mut ids = [0; PLACES];
        let ids = self.mmu.unsync.snapshot(&self.locks, &mut ids);
        // Where places are scarce, nobody stays on the list.
        let may_stay = behind.is_some()
            && self.mmu.unsync.has_room(ids.len())
            && self.mmu.config.unsync_patience != 0;
        let mut left = Left::Nothing;
        for id in ids.iter().copied().map(PageId) {
            let page = self.page(id);
            if id != root && self.unlist_unlinked(id, page) {
                continue;
            }
            if id != root
                && page.writes.load(Ordering::Relaxed) >= self.mmu.config.flood_limit
                && !self.was_used(page)
            {
                if self.zap(id, debt) {
                    self.count_at(Event::Flood, page.gfn());
                }
                continue;
            }
            self.count_at(Event::Sync, page.gfn());
            let derived = if may_stay && id != root {
                let (stays, derived) = self.sync_in_place(id, page, debt);
                left = left.max(stays);
                derived
            } else {
                self.make_clean_deriving(id, debt).1
            };
            if derived == Derived::Behind
                && let Some(behind) = behind.as_deref_mut()
            {
                behind.add(id);
            }
        }
        left
    }

    /// Derives the entries of a page anew and leaves its table writable: the guest that keeps writing it faults no more. Whoever loads a root does
    /// so again. A table found unchanged is made clean, where patience ends; tells whether it was left.
    fn sync_in_place(
        &self,
        id: PageId,
        page: &Page,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> (Left, Derived) {
        let derived = self.derive_all(id, debt);
        if derived != Derived::Same {
            page.quiet.store(0, Ordering::Relaxed);
            note_write(page);
            return (Left::Unsync, derived);
        }
        let quiet = page.quiet.load(Ordering::Relaxed).saturating_add(1);
        page.quiet.store(quiet, Ordering::Relaxed);
        if quiet < self.mmu.config.unsync_patience {
            return (Left::Unsync, derived);
        }
        (Left::Nothing, self.make_clean_deriving(id, debt).1)
    }

    /// Installs what syncs found behind, after the flush that they owe (rule R3).
    fn catch_up(&self, behind: &Behind, debt: &mut Debt<'_, 'm, H, O>) {
        if behind.len != 0 {
            debt.pay();
            for id in &behind.ids[..behind.len] {
                self.fill_behind(*id);
            }
        }
    }

    /// Takes a page that nothing links off the list: whoever links it makes it clean first.
    fn unlist_unlinked(&self, id: PageId, page: &Page) -> bool {
        // Without the lock a guess, which costs no more than a sync that nobody needs.
        if !page.parents().is_empty() && page.flags().contains(Flags::LISTED) {
            return false;
        }
        let _stripe = self.mmu.frames.lock(&self.locks, page.gfn());
        let flags = page.flags();
        if !page.parents().is_empty() || !flags.contains(Flags::LISTED) {
            return !flags.contains(Flags::LISTED);
        }
        page.set_flags(flags - Flags::LISTED);
        self.mmu.unsync.remove(&self.locks, id);
        true
    }

    /// Tells whether a processor has walked through a page since this was last asked, by the accessed bits of the links to it.
    fn was_used(&self, page: &Page) -> bool {
        let stripe = self.mmu.frames.lock(&self.locks, page.gfn());
        let mut used = false;
        let mut left = MOST;
        stripe.nodes.any(page.parents(), |edge| {
            // Of more than one section may look at the first ones speak for the others.
            if left == 0 {
                return true;
            }
            left -= 1;
            let parent = self.page(edge.page());
            let link = self.load(parent, edge.slot());
            if link.has(Spte::ACCESSED) {
                used = true;
                // A guess is good enough: a paging-structure cache may keep the bit from being set again.
                let _ = self.mmu.host.compare_exchange(
                    parent.table(),
                    edge.slot(),
                    link.raw(),
                    link.without(Spte::ACCESSED).raw(),
                );
            }
            false
        });
        if used {
            page.writes.store(0, Ordering::Relaxed);
        }
        used
    }
}
