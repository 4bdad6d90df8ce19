//! The tree of shadow pages: finding, creating and linking them.
//!
//! Neighbours: `shadow` asks for the pages on a way, `clean` makes them fit to be linked, `zap` makes room.
//!
//! Invariants:
//! 1. Everything a page needs is allocated before a lock is taken; what the race made superfluous goes back.
//! 2. A new page is counted by the gate before it is hashed, and is not clean.
//! 3. A child of level 2 or more is linked only below a root that is as clean as the epoch.

use crate::addr::{Gfn, Gva, Index, Level};
use crate::config::ForeignWrites;
use crate::debt::Debt;
use crate::derive::Derived;
use crate::edge::Refused;
use crate::error::Error;
use crate::host::{Host, TablePlace};
use crate::mmu::Call;
use crate::page::{Flags, Page, PageId, Record};
use crate::paging::GuestFormat;
use crate::pool::Exhausted;
use crate::role::Role;
use crate::shadow::{Again, Way, demand, note_use};
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::sync::Ordering;

/// Notes that a page on the way is in use, and that this fault needs it.
#[inline]
fn use_page(way: &mut Way<'_>, id: PageId, page: &Page) {
    note_use(page);
    if way.depth < way.pinned.len() {
        way.pinned[way.depth] = id;
        way.depth += 1;
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Returns the page that a slot links, if it links one.
    #[inline]
    pub(crate) fn linked(&self, id: PageId, index: Index) -> Option<PageId> {
        self.linked_in(self.page(id), index)
    }

    /// Returns the page that a slot of `page` links, if it links one.
    #[inline]
    pub(crate) fn linked_in(&self, page: &Page, index: Index) -> Option<PageId> {
        let level = page.role().level();
        let spte = self.load(page, index);
        if !spte.is_present() || (spte.has(Spte::LARGE) && level > Level::L1) {
            return None;
        }
        match page.record_at(index, level) {
            Record::Link(child) => Some(child),
            _ => None,
        }
    }

    /// Goes down from the root as far as the links that are in place lead where the walk does, to level 1 at most; for the guests that are
    /// most, those with 4 levels. Returns the last page and the one above. What [`Call::step`] does a level at a time, with the levels as constants.
    #[inline]
    pub(crate) fn follow(&self, way: &mut Way<'_>) -> (PageId, Option<PageId>) {
        let (mut id, mut page) = (way.root, self.page(way.root));
        let mut parent = None;
        let walk = way.walk;
        if walk.format() != GuestFormat::Level4 {
            return (id, parent);
        }
        for level in [Level::L4, Level::L3, Level::L2] {
            let index = level.index(way.gva.get());
            let is_present = self.load(page, index).is_present();
            let (true, Record::Link(child)) = (is_present, page.record_at(index, level)) else {
                break;
            };
            let Some((gfn, role)) = demand(walk, page.role(), level) else {
                break;
            };
            let next = self.page(child);
            if !(next.is_for(gfn, role) || mutant!(FollowAnyLink)) {
                break;
            }
            use_page(way, child, next);
            parent = Some(id);
            (id, page) = (child, next);
        }
        (id, parent)
    }

    /// Follows a slot to the page that the walk demands there, creating and linking it if need be.
    #[inline(never)]
    pub(crate) fn step(
        &self,
        way: &mut Way<'_>,
        id: PageId,
        index: Index,
        gfn: Gfn,
        role: Role,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<PageId, Again> {
        // No lock: whatever the record says, a page that is what the walk demands is the right one.
        let child = match self.linked(id, index) {
            Some(child) if self.page(child).is_for(gfn, role) || mutant!(FollowAnyLink) => child,
            _ => self.grow(way, id, index, gfn, role, debt)?,
        };
        use_page(way, child, self.page(child));
        Ok(child)
    }

    fn grow(
        &self,
        way: &mut Way<'_>,
        id: PageId,
        index: Index,
        gfn: Gfn,
        role: Role,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<PageId, Again> {
        let child = self.find_or_create(gfn, role, &way.pinned, debt)?;
        for _ in 0..4 {
            if !self.page(child).flags().contains(Flags::CLEAN) && !mutant!(LinkUnclean) {
                let _ = self.make_clean(child, debt);
            }
            // What becomes reachable was never cached: nobody has to flush before it is used.
            if !mutant!(LinkMeetsNobody) {
                self.meet_writes(debt);
            }
            if role.level() > Level::L1 && !role.is_direct() && !mutant!(LinkBelowUncleanRoot) {
                self.clean_root(way.root, debt);
            }
            debt.pay();
            match self.link_checked(way, id, index, child, (gfn, role), debt) {
                Ok(_) => return Ok(child),
                Err(Refused::Unclean | Refused::Occupied) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(Again::Raced)
    }

    pub(crate) fn link_checked(
        &self,
        way: &Way<'_>,
        id: PageId,
        index: Index,
        child: PageId,
        (gfn, role): (Gfn, Role),
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<(), Refused> {
        let page = self.page(id);
        let mut state = page.lock.lock(&self.locks);
        if !page.is_alive() && !mutant!(LinkFromDead) {
            return Err(Refused::Stale);
        }
        let gpte = if page.role().is_direct() || mutant!(LinkWithoutRecheck) {
            None
        } else {
            Some(self.recheck(way, page, index)?)
        };
        match self.link(id, index, child, gfn, role) {
            Ok(_) => {
                if let Some(gpte) = gpte {
                    self.note_derived(page, index, gpte, &mut state);
                }
                Ok(())
            }
            Err(Refused::Occupied) => {
                self.remove_recorded(id, index, debt);
                Err(Refused::Occupied)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Finds the page of a gfn and role, or makes one.
    pub(crate) fn find_or_create(
        &self,
        gfn: Gfn,
        role: Role,
        pinned: &[PageId],
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<PageId, Again> {
        if let Some(id) = self
            .mmu
            .frames
            .lock(&self.locks, gfn)
            .find(&self.mmu.pool, gfn, role)
        {
            return Ok(id);
        }
        // Made now, because it must not be allocated under a lock later.
        self.mmu.provide_decoder(role)?;
        let id = match self.take_page() {
            Ok(id) => id,
            Err(Exhausted::Memory(error)) => return Err(error.into()),
            Err(Exhausted::Limit) => {
                self.reclaim(pinned, debt);
                // None may be to be had just now, with others in use, or dead and not yet flushed: whoever waits gives up in the end.
                return Err(Again::NeedPages);
            }
        };
        self.locks.assert_none();
        let place = if role.is_pae_root() {
            TablePlace::Below4Gib
        } else {
            TablePlace::Anywhere
        };
        let table = match self.mmu.host.allocate_table(place) {
            Ok(table) => table,
            Err(out) => {
                if !mutant!(LeakPage) {
                    self.mmu.pool.put(&self.locks, id);
                }
                return Err(Error::from(out).into());
            }
        };
        let page = self.page(id);
        page.assign(gfn, role, table);
        page.birth.store(
            self.mmu.births.fetch_add(1, Ordering::Relaxed),
            Ordering::Relaxed,
        );
        if !role.is_direct() && !mutant!(GateUncounted) {
            self.mmu.gate.create();
        }
        self.publish(id, gfn, role).inspect(|made| {
            if *made == id {
                self.count_at(Event::Create, gfn);
            }
        })
    }

    /// Hashes a new page, unless another CPU was faster.
    fn publish(&self, id: PageId, gfn: Gfn, role: Role) -> Result<PageId, Again> {
        let page = self.page(id);
        let lost = loop {
            let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
            if let Some(other) = stripe.find(&self.mmu.pool, gfn, role) {
                break Ok(other);
            }
            match stripe.hash(id, page) {
                Ok(()) => {
                    let clean = if role.is_direct() {
                        Flags::CLEAN
                    } else {
                        Flags::empty()
                    };
                    page.set_flags(Flags::ALIVE | clean);
                    return Ok(id);
                }
                Err(missing) => {
                    drop(stripe);
                    if let Err(error) = self.provide(missing) {
                        break Err(error);
                    }
                }
            }
        };
        if !role.is_direct() {
            self.mmu.gate.destroy();
        }
        self.give_back(id);
        Ok(lost?)
    }

    /// Goes down as far as there are links, and returns the last page and the slot of `gva` in it.
    pub(crate) fn deepest(&self, root: PageId, gva: Gva) -> Option<(PageId, Index)> {
        let mut id = root;
        for _ in 0..5 {
            let index = self.page(id).role().level().index(gva.get());
            match self.linked(id, index) {
                Some(child) => id = child,
                None => return Some((id, index)),
            }
        }
        None
    }

    /// Does to the way to `gva` what INVLPG promises for its CPU. Returns the slot of level 1 where something may be installed at once, after the flush.
    pub(crate) fn invalidate_way(
        &self,
        root: PageId,
        gva: Gva,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Option<(PageId, Index)> {
        let is_seen_early = self.mmu.config.foreign_writes == ForeignWrites::SeenEarly;
        // A root that is not clean may be off the list.
        if is_seen_early || !self.page(root).flags().contains(Flags::CLEAN) {
            return self.derive_way(root, gva, debt);
        }
        // Nobody can have seen an entry of a clean page's table that the page does not agree with: what is left are the others. Whether they
        // lie on this way does not matter.
        let Some((listed, len)) = self.mmu.unsync.few(&self.locks) else {
            return self.derive_way(root, gva, debt);
        };
        let mut behind = None;
        for id in &listed[..len] {
            let page = self.page(*id);
            let level = page.role().level();
            let index = level.index(gva.get());
            let decoder = self.mmu.decoder(page.role());
            let mut state = page.lock.lock(&self.locks);
            if level > Level::L1 {
                let _ = self.derive_one((*id, page), index, decoder, &mut state, debt);
            } else if self.derive_leaf((*id, page), index, decoder, &mut state, debt)
                == Derived::Behind
            {
                behind = Some((*id, index));
            }
        }
        behind
    }

    /// Derives anew every entry on the way to `gva`, from the root down. Returns the slot of level 1 where something may be installed at once.
    pub(crate) fn derive_way(
        &self,
        root: PageId,
        gva: Gva,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Option<(PageId, Index)> {
        let (mut id, mut page) = (root, self.page(root));
        // One mode all the way down: the decoder is the root's.
        let decoder = self.mmu.decoder(page.role());
        for _ in 0..5 {
            let role = page.role();
            let level = role.level();
            let index = level.index(gva.get());
            let mut state = page.lock.lock(&self.locks);
            if let Some(child) = self.confirm_link(page, (index, level), decoder, &mut state) {
                drop(state);
                (id, page) = (child, self.page(child));
                continue;
            }
            if level == Level::L1 {
                let derived = self.derive_leaf((id, page), index, decoder, &mut state, debt);
                return (derived == Derived::Behind).then_some((id, index));
            }
            let (present, _) = self.derive_one((id, page), index, decoder, &mut state, debt);
            drop(state);
            if !present {
                return None;
            }
            let child = self.linked_in(page, index)?;
            (id, page) = (child, self.page(child));
        }
        None
    }
}
