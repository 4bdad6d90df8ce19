//! Deriving entries anew from the guest table: what sync, INVLPG and reported writes do to entries that exist.
//!
//! Neighbours: `clean` runs it for a whole page, `shadow` for one address, `report` for a write.
//!
//! A dense page keeps a copy of the guest table: comparing 512 words is an order of magnitude cheaper than decoding them.
//!
//! Invariants:
//! 1. Each entry is looked at under the table lock of the page: an installer either re-reads the gPTE afterwards, or its entry is seen here.
//! 2. The lock is given up after [`MOST`] entries. Nothing relates one entry to another: each agrees with the guest's as of some moment since the call began.
//! 3. A present entry would be kept if its gPTE were the word of the copy, or the copy is marked doubtful there: what equals the copy needs no look.
//! 4. An entry is kept only if installing it now would give the same frame and no fewer rights are demanded; doubt removes it.

use crate::addr::{Gfn, Index, Level, TABLE_SLOTS};
use crate::debt::Debt;
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{Doubt, PRESENT_WORDS, Page, PageId, Record, SpteRef, TableState};
use crate::role::Role;
use crate::sections::is_one_section;
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::sync::{MOST, note_entry};
use crate::walk::{Decoder, Entry, Gpte, GpteWidth, LeafEntry, Rights};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// From this many entries on, a copy of the guest table pays.
const DENSE: u32 = 48;

/// A section has room for a word of presence bits, where tables are large enough for copies: a doubt is cleared for all of it or not at all.
const _: () = assert!(MOST >= 64 || TABLE_SLOTS != 512);

/// Returns what a shadow of the leaf may allow: writing only once D is set, so that the guest's D bit is set in time.
#[inline]
pub(crate) fn shadow_rights(leaf: &LeafEntry) -> Rights {
    if leaf.is_dirty() || mutant!(WriteBeforeDirty) {
        leaf.rights
    } else {
        leaf.rights - Rights::WRITE
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Derives all entries of a page anew. No lock is held.
    pub(crate) fn derive_all(&self, id: PageId, debt: &mut Debt<'_, 'm, H, O>) -> Derived {
        let page = self.page(id);
        let decoder = self.mmu.decoder(page.role());
        if mutant!(EmptyPassesUnlocked) && page.population() == 0 {
            return Derived::Same;
        }
        // Of an empty page too: an installer that has read the guest's entry and not yet stored its own holds this lock, and shows no bit.
        let mut state = page.lock.lock(&self.locks);
        if state.copy.is_none() && page.population() >= DENSE {
            drop(state);
            let spare = new_copy();
            state = page.lock.lock(&self.locks);
            if state.copy.is_none() && spare.is_some() {
                state.copy = spare;
                state.doubt = Doubt::EVERYWHERE;
            }
        }
        let differing = self.differing(page, &mut state);
        if is_one_section(page, differing.as_ref()) {
            return self.derive_few((id, page), differing, decoder, &mut state, debt);
        }
        self.derive_many((id, page), differing, decoder, state, debt)
    }

    /// Derives what one section has room for.
    #[inline]
    fn derive_few(
        &self,
        (id, page): (PageId, &Page),
        differing: Option<[u64; PRESENT_WORDS]>,
        decoder: &Decoder,
        state: &mut TableState,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Derived {
        if differing.is_none() {
            state.doubt = Doubt::default();
        }
        let mut derived = Derived::Same;
        for word in 0..PRESENT_WORDS {
            let among = differing.map_or(u64::MAX, |differing| differing[word]);
            let some = among & page.present_word(word);
            if some != 0 {
                let one = self.derive_word((id, page), (word, some), decoder, state, debt);
                derived = derived.max(one);
            }
        }
        derived
    }

    /// Finds the entries whose gPTE differs from the copy, a word of bits for each 64; `None` if all have to be looked at.
    fn differing(&self, page: &Page, state: &mut TableState) -> Option<[u64; PRESENT_WORDS]> {
        if !state.doubt.is_nowhere() {
            return None;
        }
        let copy = state.copy.as_ref()?;
        let gfn = page.gfn();
        let differing = self.slot(page.role().space(), gfn).and_then(|slot| {
            let table = slot.backed(gfn);
            self.mmu.host.diff_table(table, copy, u64::MAX).ok()
        });
        if differing.is_none() {
            state.copy = None;
        }
        differing.map(|words| core::array::from_fn(|word| words[word]))
    }

    /// Derives entries of one presence word anew, under the table lock, and takes back the bits of those that are gone.
    pub(crate) fn derive_word(
        &self,
        (id, page): (PageId, &Page),
        (word, mut bits): (usize, u64),
        decoder: &Decoder,
        state: &mut TableState,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Derived {
        let (mut derived, mut empty) = (Derived::Same, 0);
        while bits != 0 {
            let bit = bits & bits.wrapping_neg();
            bits &= bits - 1;
            let slot = Index::truncate(word * 64 + bit.trailing_zeros() as usize);
            let (present, one) = self.derive_one((id, page), slot, decoder, state, debt);
            derived = derived.max(one);
            if !present {
                empty |= bit;
            }
        }
        if empty != 0 {
            page.clear_present(word, empty);
        }
        derived
    }

    /// Derives one entry anew, under the table lock; tells whether the slot is still present, and what was done.
    pub(crate) fn derive_one(
        &self,
        (id, page): (PageId, &Page),
        slot: Index,
        decoder: &Decoder,
        state: &mut TableState,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> (bool, Derived) {
        let spte = self.load(page, slot);
        if !spte.is_present() || page.role().is_direct() {
            return (spte.is_present(), Derived::Same);
        }
        // One read, and the copy of it is what everything below works on (rule R2).
        let gpte = self.read_gpte(page.role(), Self::gpte_at(page, slot), GpteWidth::Bytes8);
        let verdict = gpte.map_or(Verdict::Remove, |gpte| {
            self.judge(page, slot, spte, gpte, decoder)
        });
        if let (Some(copy), Ok(gpte)) = (state.copy.as_deref_mut(), gpte) {
            copy[slot.get() % 512] = gpte.raw();
        }
        match verdict {
            Verdict::Keep => {
                // What is changed is noted where it is.
                note_entry();
                (true, Derived::Same)
            }
            Verdict::Narrow(gfn) => {
                self.count_at(Event::SyncChanged, gfn);
                let mut stripe = self.mmu.frames.lock(&self.locks, gfn);
                self.narrow(&mut stripe, SpteRef::new(id, slot), debt);
                (true, Derived::Changed)
            }
            Verdict::Remove => {
                self.count(Event::SyncChanged);
                self.remove_recorded(id, slot, debt);
                let is_leaf = page.role().level() == Level::L1;
                if is_leaf && gpte.is_ok_and(|g| g.has(Gpte::PRESENT.with(Gpte::ACCESSED))) {
                    state.behind.insert(slot);
                    return (false, Derived::Behind);
                }
                (false, Derived::Changed)
            }
        }
    }

    /// Derives one entry of level 1 for INVLPG, under the table lock; tells whether the guest maps something there that may be installed at once, or
    /// allows a write that the entry does not.
    pub(crate) fn derive_leaf(
        &self,
        (id, page): (PageId, &Page),
        slot: Index,
        decoder: &Decoder,
        state: &mut TableState,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Derived {
        let role = page.role();
        if role.is_direct() {
            return Derived::Same;
        }
        let gpte = self.read_gpte(role, Self::gpte_at(page, slot), GpteWidth::Bytes8);
        let spte = self.load(page, slot);
        let copy = state.copy.as_deref();
        let copy = copy.filter(|_| !state.doubt.covers(slot));
        let is_same = copy
            .zip(gpte.ok())
            .is_some_and(|(copy, gpte)| copy[slot.get() % 512] == gpte.raw());
        // What equals the copy needs no look (invariant 2).
        let (is_present, derived) = if is_same && spte.is_present() {
            (true, Derived::Same)
        } else {
            self.derive_one((id, page), slot, decoder, state, debt)
        };
        let writes = Gpte::PRESENT.with(Gpte::WRITABLE).with(Gpte::DIRTY);
        let lacks_write = is_present && !spte.has(Spte::WRITE);
        match gpte {
            Ok(gpte) if lacks_write && gpte.has(writes) => Derived::Behind,
            Ok(gpte) if !is_present && gpte.has(Gpte::PRESENT) => Derived::Behind,
            _ => derived,
        }
    }

    /// Returns the page that a slot links if the guest's entry is a table's and demands just that page: then there is nothing to derive.
    ///
    /// Under the table lock. What [`Call::derive_one`] would find out, for the case that is most; any other is left to it.
    #[inline]
    pub(crate) fn confirm_link(
        &self,
        page: &Page,
        (slot, level): (Index, Level),
        decoder: &Decoder,
        state: &mut TableState,
    ) -> Option<PageId> {
        let role = page.role();
        let below = level.below()?;
        if role.is_direct() || mutant!(CopyNotRefreshed) {
            return None;
        }
        let is_present = self.load(page, slot).is_present();
        let (true, Record::Link(child)) = (is_present, page.record_at(slot, level)) else {
            return None;
        };
        let gpte = self
            .read_gpte(role, Self::gpte_at(page, slot), GpteWidth::Bytes8)
            .ok()?;
        let is_table = gpte.has(Gpte::ACCESSED)
            && decoder.is_valid(level, gpte)
            && !decoder.is_leaf(level, gpte)
            && decoder.format().has_rights(level);
        let demanded = role.child(below, role.rights() & gpte.rights(), false);
        if !is_table || !self.page(child).is_for(gpte.frame(), demanded) {
            return None;
        }
        if let Some(copy) = state.copy.as_deref_mut() {
            copy[slot.get() % 512] = gpte.raw();
        }
        Some(child)
    }

    /// Notes that a slot has just been filled or confirmed for `gpte`. Under the table lock.
    ///
    /// An entry that was there before and allows more than `gpte` does is left for the guest's flush: the copy must not hide it from the sync.
    pub(crate) fn note_derived(
        &self,
        page: &Page,
        slot: Index,
        gpte: Gpte,
        state: &mut TableState,
    ) {
        let Some(copy) = state.copy.as_deref_mut() else {
            return;
        };
        let spte = self.load(page, slot);
        if !spte.is_present() {
            return;
        }
        match self.judge(page, slot, spte, gpte, self.mmu.decoder(page.role())) {
            Verdict::Keep if mutant!(CopyNotRefreshed) => {}
            Verdict::Keep => copy[slot.get() % 512] = gpte.raw(),
            _ => state.doubt.add(slot),
        }
    }

    #[inline]
    fn judge(
        &self,
        page: &Page,
        slot: Index,
        spte: Spte,
        gpte: Gpte,
        decoder: &Decoder,
    ) -> Verdict {
        let role = page.role();
        let level = role.level();
        // A cleared A bit must be set again by the next use, so that the entry has to go.
        if !gpte.has(Gpte::ACCESSED) && !mutant!(KeepUnaccessed) {
            return Verdict::Remove;
        }
        // What most changes are: another page.
        if level == Level::L1
            && page.record_at(slot, Level::L1) != Record::Leaf(gpte.frame())
            && !mutant!(KeepFrame)
        {
            return Verdict::Remove;
        }
        match (
            page.record_at(slot, level),
            decoder.decode(level, gpte, role.rights()),
        ) {
            (Record::Leaf(gfn), Entry::Leaf(leaf)) => judge_leaf(gfn, spte, &leaf, level),
            (Record::Link(child), entry) => {
                let Some((gfn, child_role)) = demand_of(role, &entry) else {
                    return Verdict::Remove;
                };
                if self.page(child).is_for(gfn, child_role) || mutant!(KeepWrongChild) {
                    Verdict::Keep
                } else {
                    Verdict::Remove
                }
            }
            _ => Verdict::Remove,
        }
    }
}

/// What deriving entries came to, the most for all of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Derived {
    /// Nothing changed.
    Same,
    /// Something was removed or narrowed.
    Changed,
    /// The same, and the guest maps something else there that it has used: it may be installed anew.
    Behind,
}

/// What to do with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Keep,
    Narrow(Gfn),
    Remove,
}

/// Returns the gfn and role of the page that a present entry of a page with `role` has to lead to.
#[inline]
pub(crate) fn demand_of(role: Role, entry: &Entry) -> Option<(Gfn, Role)> {
    let below = role.level().below()?;
    match entry {
        Entry::Table(table) => Some((table.gfn, role.child(below, table.rights, false))),
        Entry::Leaf(leaf) => {
            let child = role.split(below, shadow_rights(leaf), leaf.is_dirty());
            Some((leaf.base, child))
        }
        _ => None,
    }
}

#[inline]
fn judge_leaf(gfn: Gfn, spte: Spte, leaf: &LeafEntry, level: Level) -> Verdict {
    let rights = shadow_rights(leaf);
    let user = rights.contains(Rights::USER) == spte.has(Spte::USER);
    let execute = rights.contains(Rights::EXECUTE) != spte.has(Spte::NO_EXECUTE);
    let user = user || mutant!(KeepUser);
    let execute = execute || mutant!(KeepExecute);
    let same = gfn == leaf.base || mutant!(KeepFrame);
    if !same || leaf.level != level || !user || !execute || spte.has(Spte::KERNEL_WRITE) {
        Verdict::Remove
    } else if spte.has(Spte::WRITE) && !rights.contains(Rights::WRITE) && !mutant!(KeepWrite) {
        Verdict::Narrow(gfn)
    } else {
        Verdict::Keep
    }
}

/// Allocates a copy; without memory there is none, and the page is compared entry by entry.
fn new_copy() -> Option<Box<[u64; 512]>> {
    if TABLE_SLOTS != 512 {
        return None;
    }
    let mut words = Vec::new();
    words.try_reserve_exact(512).ok()?;
    words.resize(512, 0);
    words.into_boxed_slice().try_into().ok()
}

#[cfg(all(test, feature = "count", not(any(loom, shuttle))))]
mod a_page_that_is_derived {
    use super::*;
    use crate::slots::SlotFlags;
    use crate::testhost::World;

    #[test]
    fn is_locked_for_no_more_than_64_entries() {
        let (world, _) = World::roomy(SlotFlags::empty());
        let (id, _) = world.slot(1 << 30, Level::L1);
        assert!(world.page(id).population() >= 400);
        let call = world.mmu.call();
        let mut debt = Debt::new(&call);
        // Without a copy, and with one.
        for _ in 0..2 {
            let _ = crate::count::take();
            assert_eq!(call.derive_all(id, &mut debt), Derived::Same);
            assert!(crate::count::take().longest <= MOST as u64);
        }
        let state = world.page(id).lock.lock(&call.locks);
        assert!(state.copy.is_some() && state.doubt.is_nowhere());
    }
}

#[cfg(all(test, not(loom)))]
mod a_sync_misses_no_change {
    use super::*;
    use crate::audit::{AuditFinding, Strictness};
    use crate::page::Flags;
    use crate::sync::{Locks, Ordering};
    use crate::testhost::{AD, Guest, PWU, World};
    use crate::walk::Access;
    use crate::{Engine, FaultOutcome};

    /// The pages of a dense table.
    const PAGES: u64 = 0x40_0000;
    /// Where the guest maps the table itself.
    const TABLE: u64 = 0x80_0000;

    /// Makes a guest with a dense table that has a copy, and that the guest may write unseen. Returns the table.
    fn dense_and_unsync() -> (World, Gfn) {
        let world = World::new(Engine::Shadow, |_| {});
        let mut guest = Guest::new(World::ROOT);
        let mut table = Gfn::new(0);
        for i in 0..64 {
            let page = (Gfn::new(600 + i), Level::L1);
            table = guest.map(world.mmu.host(), PAGES + i * 4096, page, PWU | AD);
        }
        guest.map(world.mmu.host(), TABLE, (table, Level::L1), PWU | AD);
        world.set_root();
        for i in 0..64 {
            let page = PAGES + i * 4096;
            assert_eq!(world.touch(page, Access::USER_WRITE), FaultOutcome::Resume);
        }
        for _ in 0..2 {
            assert_eq!(world.touch(TABLE, Access::WRITE), FaultOutcome::Resume);
            let (id, _) = world.slot(PAGES, Level::L1);
            if world.page(id).lock.lock(&Locks::default()).copy.is_none() {
                world.reload();
            }
        }
        let (id, _) = world.slot(PAGES, Level::L1);
        assert!(world.page(id).lock.lock(&Locks::default()).copy.is_some());
        assert!(!world.page(id).flags().contains(Flags::CLEAN));
        (world, table)
    }

    #[test]
    fn that_a_fault_saw_before_the_flush() {
        let (world, table) = dense_and_unsync();
        // The guest takes the right to write, and faults on the page for another reason before it flushes.
        let gpte = Gfn::new(605).address().get() | (PWU & !Spte::WRITE) | AD;
        world
            .mmu
            .host()
            .word(table, 5)
            .store(gpte, Ordering::SeqCst);
        let page = PAGES + 5 * 4096;
        assert_eq!(world.touch(page, Access::USER_READ), FaultOutcome::Resume);
        world.reload();
        assert!(!world.spte(world.slot(page, Level::L1)).has(Spte::WRITE));
        world.mmu.audit(Strictness::Exact).unwrap();
    }

    #[test]
    fn and_the_auditor_sees_one_that_the_copy_would_hide() {
        let (world, _) = dense_and_unsync();
        world.mmu.audit(Strictness::Structure).unwrap();
        let (id, slot) = world.slot(PAGES + 5 * 4096, Level::L1);
        let locks = Locks::default();
        let mut state = world.page(id).lock.lock(&locks);
        state.copy.as_mut().unwrap()[slot.get()] &= !Spte::WRITE;
        drop(state);
        let failure = world.mmu.audit(Strictness::Structure).unwrap_err();
        assert!(matches!(
            failure.findings(),
            [AuditFinding::CopyHides { .. }]
        ));
    }
}
