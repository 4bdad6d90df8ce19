//! The direct engine: nested tables that map guest-physical memory, in the NPT or EPT format.
//!
//! Table locks only: a table of this engine has one parent and one place, so that neither hash nor reverse map is needed.
//!
//! Invariants:
//! 1. An entry appears under the lock of its table, after the sequence of invalidation was compared there; an invalidation raises `busy` first and then
//!    takes each table's lock: either it finds the entry, or the installer finds `busy` or the new sequence (scenario T11).
//! 2. A slot's position says what it maps: the record is written all the same, for the auditor (rule R1).
//! 3. A table below the root is ALIVE while it is linked, and only then is anything installed in it (`prune`, which gives tables back).

use crate::addr::{Gfn, Gpa, Index, Level};
use crate::config::Engine;
use crate::debt::Debt;
use crate::error::Error;
use crate::host::{Host, HostFrame, LookupError, Need, TablePlace};
use crate::invalidate::Snapshot;
use crate::mmu::Call;
use crate::outcome::{EmulateReason, FaultOutcome};
use crate::page::{Flags, PRESENT_WORDS, Page, PageId, Record};
use crate::paging::{CpuModel, GuestFormat, PagingMode, PagingRules};
use crate::pool::Exhausted;
use crate::prune::present_slots;
use crate::role::Role;
use crate::shadow::Again;
use crate::slots::{AddressSpace, SlotFlags, SlotView};
use crate::spte::{EntryFormat, Spte};
use crate::stats::{Event, Observer};
use crate::sync::{AtomicU32, Ordering};
use crate::walk::{AccessKind, Rights};

/// The roots, one for each address space, as page number + 1.
#[derive(Debug)]
pub(crate) struct DirectRoots([AtomicU32; 2]);

impl DirectRoots {
    pub(crate) fn new() -> Self {
        Self([AtomicU32::new(0), AtomicU32::new(0)])
    }

    #[inline]
    pub(crate) fn get(&self, space: AddressSpace) -> Option<PageId> {
        // Acquire: pairs with the Release that publishes the root.
        self.0[space as usize]
            .load(Ordering::Acquire)
            .checked_sub(1)
            .map(PageId)
    }
}

fn role_at(space: AddressSpace, level: Level, cpu: CpuModel) -> Role {
    Role::direct(
        PagingMode::new(GuestFormat::Off, PagingRules::empty(), cpu),
        space,
        level,
        Rights::all(),
    )
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    pub(crate) fn format(&self) -> EntryFormat {
        if self.mmu.config.engine == Engine::Ept {
            EntryFormat::EPT
        } else {
            EntryFormat::LONG
        }
    }

    /// Returns the root of an address space, made at the first use.
    pub(crate) fn direct_root(&self, space: AddressSpace) -> Result<PageId, Again> {
        if let Some(root) = self.mmu.direct.get(space) {
            return Ok(root);
        }
        let id = self.direct_page(space, Level::L4, Gfn::new(0), &[])?;
        self.page(id).set_flags(Flags::ALIVE | Flags::CLEAN);
        let cell = &self.mmu.direct.0[space as usize];
        match cell.compare_exchange(0, id.0 + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(id),
            Err(other) => {
                self.discard(id);
                Ok(PageId(other - 1))
            }
        }
    }

    /// Returns the role of a nested table.
    #[inline]
    pub(crate) fn nested_role(&self, space: AddressSpace, level: Level) -> Role {
        role_at(space, level, self.mmu.config.cpu)
    }

    /// Makes a table that is not in the tree yet.
    fn direct_page(
        &self,
        space: AddressSpace,
        level: Level,
        gfn: Gfn,
        pinned: &[PageId],
    ) -> Result<PageId, Again> {
        let id = match self.take_page() {
            Ok(id) => id,
            Err(Exhausted::Limit) => return Err(self.make_room(pinned)),
            Err(Exhausted::Memory(error)) => return Err(error.into()),
        };
        match self.mmu.host.allocate_table(TablePlace::Anywhere) {
            Ok(table) => {
                self.page(id)
                    .assign(gfn, self.nested_role(space, level), table);
                self.page(id).used.store(1, Ordering::Relaxed);
                self.count_at(Event::Create, gfn);
                Ok(id)
            }
            Err(out) => {
                self.mmu.pool.put(&self.locks, id);
                Err(Error::from(out).into())
            }
        }
    }

    /// Prunes some tables because of the limit, and says what to do next.
    #[cold]
    fn make_room(&self, pinned: &[PageId]) -> Again {
        let mut debt = Debt::new(self);
        self.prune(pinned, &mut debt);
        debt.pay();
        // None may be to be had just now, with others in use, or dead and not yet flushed: whoever waits gives up in the end.
        Again::NeedPages
    }

    /// Gives back a page that nobody else has seen.
    fn discard(&self, id: PageId) {
        self.page(id).set_flags(Flags::empty());
        self.give_back(id);
    }

    /// Serves a nested page fault.
    pub(crate) fn direct_fault(
        &self,
        space: AddressSpace,
        gpa: Gpa,
        access: AccessKind,
    ) -> Result<FaultOutcome, Again> {
        let gfn = Gfn::containing(gpa);
        let writes = access == AccessKind::Write;
        for _ in 0..16 {
            let snapshot = self.mmu.shards.snapshot(gfn, Level::L3, &self.mmu.slots);
            let Some(slot) = self.slot(space, gfn) else {
                return Ok(self.direct_device(gpa, EmulateReason::NoMemory));
            };
            if writes && slot.flags.contains(SlotFlags::READ_ONLY) {
                return Ok(self.direct_device(gpa, EmulateReason::ReadOnlyMemory));
            }
            let host = match self.mmu.host.look_up(
                slot.backed(gfn),
                if writes { Need::Write } else { Need::Read },
            ) {
                Ok(host) => host,
                Err(LookupError::Hole) => {
                    return Ok(self.direct_device(gpa, EmulateReason::NoMemory));
                }
                Err(_) => return Err(Error::HostMemory { gfn }.into()),
            };
            if writes && !host.writable {
                return Ok(self.direct_device(gpa, EmulateReason::ReadOnlyMemory));
            }
            match self.direct_map(space, gfn, &slot, host, writes, snapshot) {
                Err(Again::Raced) => {}
                Err(Again::Flush) => self.flush_all(),
                other => return other,
            }
        }
        self.count(Event::FaultRetried);
        Ok(FaultOutcome::Retry)
    }

    fn direct_device(&self, gpa: Gpa, reason: EmulateReason) -> FaultOutcome {
        self.count_at(Event::FaultEmulated, Gfn::containing(gpa));
        FaultOutcome::EmulateMmio { gpa, reason }
    }

    pub(crate) fn direct_map(
        &self,
        space: AddressSpace,
        gfn: Gfn,
        slot: &SlotView,
        host: HostFrame,
        writes: bool,
        snapshot: Snapshot,
    ) -> Result<FaultOutcome, Again> {
        let logs = slot.flags.contains(SlotFlags::LOG_DIRTY);
        let most = if logs {
            Level::L1
        } else {
            host.largest.min(self.mmu.config.largest_leaf)
        };
        let target = slot.largest(gfn, most);
        let writable = host.writable
            && (!slot.flags.contains(SlotFlags::READ_ONLY) || mutant!(NestedReadOnlyWritable))
            && (writes || !logs);
        let root = self.direct_root(space)?;
        let (mut id, mut page, mut level) = (root, self.page(root), Level::L4);
        // The tables on the way, which pruning spares.
        let mut way = [root; 3];
        let mut depth = 0;
        loop {
            let index = level.index(gfn.address().get());
            let spte = self.load(page, index);
            (id, page) = match self.nested_child(page, (index, level), spte, gfn) {
                Some(child) => child,
                None if self.is_link(page, index, spte) => return Err(Again::Raced),
                None if level <= target => {
                    let leaf = self.direct_leaf(gfn, host, level, writable);
                    let block = gfn.align_down(level);
                    return self.direct_install(id, index, block, leaf, snapshot);
                }
                None if spte.is_present() => return self.direct_split(id, index),
                None => {
                    let child = self.direct_link(id, index, gfn, &way)?;
                    (child, self.page(child))
                }
            };
            level = level.below().ok_or(Again::Raced)?;
            way[depth % 3] = id;
            depth += 1;
            note_use(page);
        }
    }

    /// Tells whether `spte`, read from a slot, is a link. Certain under the table lock, a guess otherwise.
    pub(crate) fn is_link(&self, page: &Page, index: Index, spte: Spte) -> bool {
        spte.is_present()
            && page.role().level() > Level::L1
            && !spte.has(Spte::LARGE)
            && matches!(page.record(index), Record::Link(_))
    }

    fn direct_leaf(&self, gfn: Gfn, host: HostFrame, level: Level, writable: bool) -> Spte {
        let format = self.format();
        let offset = gfn.get() & (level.frames() - 1);
        let pfn = crate::addr::Pfn::new(host.pfn.get().wrapping_sub(offset));
        let leaf = format.make_leaf(pfn, Rights::USER | Rights::EXECUTE, level > Level::L1);
        if writable {
            leaf.with(format.write)
        } else {
            leaf
        }
    }

    /// Links a new table below an empty slot.
    fn direct_link(
        &self,
        id: PageId,
        index: Index,
        gfn: Gfn,
        way: &[PageId],
    ) -> Result<PageId, Again> {
        let page = self.page(id);
        let level = page.role().level();
        let below = level.below().ok_or(Again::Raced)?;
        let child = self.direct_page(page.role().space(), below, gfn.align_down(level), way)?;
        let state = page.lock.lock(&self.locks);
        let again = if !page.is_alive() || self.load(page, index).is_present() {
            Some(Again::Raced)
        } else if page.record(index) != Record::Empty
            && self.flush_is_pending()
            && !mutant!(SplitBeforeFlush)
        {
            Some(Again::Flush)
        } else {
            None
        };
        if let Some(again) = again {
            drop(state);
            self.discard(child);
            return Err(again);
        }
        self.page(child).set_flags(Flags::ALIVE | Flags::CLEAN);
        page.set_record(index, Record::Link(child));
        self.mmu.host.store(
            page.table(),
            index,
            self.format().make_link(self.page(child).table()).raw(),
        );
        drop(state);
        Ok(child)
    }

    /// Removes a leaf that is larger than what may be mapped now.
    fn direct_split(&self, id: PageId, index: Index) -> Result<FaultOutcome, Again> {
        let mut debt = Debt::new(self);
        let page = self.page(id);
        let state = page.lock.lock(&self.locks);
        if !self.is_link(page, index, self.load(page, index)) {
            self.direct_remove(page, index, &mut debt);
        }
        drop(state);
        debt.pay();
        Err(Again::Raced)
    }

    fn direct_install(
        &self,
        id: PageId,
        index: Index,
        gfn: Gfn,
        leaf: Spte,
        snapshot: Snapshot,
    ) -> Result<FaultOutcome, Again> {
        let page = self.page(id);
        let level = page.role().level();
        let mut debt = Debt::new(self);
        let state = page.lock.lock(&self.locks);
        if (!self.mmu.shards.is_unchanged(gfn, Level::L3, snapshot)
            || snapshot.slots != self.mmu.slots.generation())
            && !mutant!(NestedWithoutCheck)
        {
            return Err(Again::Raced);
        }
        let old = self.load(page, index);
        let is_dead = !page.is_alive() && !mutant!(InstallInPruned);
        if is_dead || self.is_link(page, index, old) {
            return Err(Again::Raced);
        }
        if old.is_present() {
            let grows = old.same_target(leaf) && old.raw() & !leaf.raw() & self.format().write == 0;
            if !grows {
                self.direct_remove(page, index, &mut debt);
                drop(state);
                debt.pay();
                return Err(Again::Raced);
            }
            let wide = old.with(leaf.raw());
            if wide == old {
                self.count_at(Event::FaultSpurious, gfn);
                return Ok(FaultOutcome::Resume);
            }
            if self
                .mmu
                .host
                .compare_exchange(page.table(), index, old.raw(), wide.raw())
                .is_err()
            {
                return Err(Again::Raced);
            }
        } else {
            if matches!(page.record(index), Record::Link(_))
                && self.flush_is_pending()
                && !mutant!(CollapseBeforeFlush)
            {
                return Err(Again::Flush);
            }
            page.set_record(index, Record::Leaf(gfn));
            self.mmu.host.store(page.table(), index, leaf.raw());
            self.count_at(
                [Event::Leaf4K, Event::Leaf2M, Event::Leaf1G]
                    [(usize::from(level.get()) - 1).min(2)],
                gfn,
            );
        }
        if leaf.has(self.format().write) && !mutant!(NestedUnmarked) {
            self.direct_dirty(gfn, page, &mut debt, false);
        }
        drop(state);
        debt.pay();
        self.count_at(Event::FaultFixed, gfn);
        Ok(FaultOutcome::Resume)
    }

    /// Records a write that a leaf allows or has allowed.
    fn direct_dirty(&self, gfn: Gfn, page: &Page, debt: &mut Debt<'_, 'm, H, O>, late: bool) {
        let (level, space) = (page.role().level(), page.role().space());
        if let Some((region, _)) = self.mmu.frames.lock(&self.locks, gfn).region(gfn)
            && region.logs(space)
        {
            if late {
                region.mark_written(gfn, level, space);
                debt.remember_dirty(gfn);
            } else {
                region.mark_dirty(gfn, level, space);
            }
        }
    }

    /// Removes a leaf, under its table's lock.
    pub(crate) fn direct_remove(&self, page: &Page, index: Index, debt: &mut Debt<'_, 'm, H, O>) {
        if !self.load(page, index).is_present() {
            return;
        }
        debt.owe();
        let old = Spte::new(self.mmu.host.exchange(page.table(), index, 0));
        if let Record::Leaf(gfn) = page.record(index)
            && old.raw() & (self.format().write | self.format().dirty) != 0
        {
            self.direct_dirty(gfn, page, debt, true);
        }
    }

    /// Takes WRITE from the leaf that maps a logged frame, so that the next write is seen. The caller has taken the frame from the log.
    pub(crate) fn protect_direct(
        &self,
        space: AddressSpace,
        gfn: Gfn,
        debt: &mut Debt<'_, 'm, H, O>,
    ) {
        let Some(mut id) = self.mmu.direct.get(space) else {
            return;
        };
        loop {
            let page = self.page(id);
            let index = page.role().level().index(gfn.address().get());
            let _state = page.lock.lock(&self.locks);
            let mut old = self.load(page, index);
            if self.is_link(page, index, old) {
                if let Record::Link(child) = page.record(index) {
                    id = child;
                    continue;
                }
                return;
            }
            let format = self.format();
            while old.is_present() && old.has(format.write) {
                debt.owe();
                // D goes with W: an entry that cannot be written carries no news.
                let new = old.without(format.write | format.dirty);
                match self
                    .mmu
                    .host
                    .compare_exchange(page.table(), index, old.raw(), new.raw())
                {
                    Ok(_) => return,
                    Err(found) => old = Spte::new(found),
                }
            }
            return;
        }
    }

    /// Removes every leaf of the range, in both address spaces.
    pub(crate) fn unmap_direct(&self, base: Gfn, frames: u64, debt: &mut Debt<'_, 'm, H, O>) {
        for space in [AddressSpace::Normal, AddressSpace::SystemManagement] {
            if let Some(root) = self.mmu.direct.get(space)
                && !(mutant!(UnmapOneSpace) && space != AddressSpace::Normal)
            {
                self.unmap_table(root, base.get(), base.get().saturating_add(frames), debt);
            }
        }
    }

    fn unmap_table(&self, id: PageId, from: u64, to: u64, debt: &mut Debt<'_, 'm, H, O>) {
        let page = self.page(id);
        let (level, first) = (page.role().level(), page.gfn().get());
        for word in 0..PRESENT_WORDS {
            // One word at a time under the lock: 64 entries. The children come after it is dropped.
            let mut children = [None; 64];
            {
                let _state = (!mutant!(UnmapUnlocked)).then(|| page.lock.lock(&self.locks));
                for index in present_slots(word, page.present_word(word)) {
                    let at = first + index.get() as u64 * level.frames();
                    if at >= to || at + level.frames() <= from {
                        continue;
                    }
                    match page.record(index) {
                        Record::Link(child)
                            if self.is_link(page, index, self.load(page, index)) =>
                        {
                            children[index.get() % 64] = Some(child);
                        }
                        _ => self.direct_remove(page, index, debt),
                    }
                }
            }
            for child in children.into_iter().flatten() {
                self.unmap_table(child, from, to, debt);
            }
        }
    }
}

/// Notes that a table is in use, for pruning.
#[inline]
fn note_use(page: &Page) {
    if page.used.load(Ordering::Relaxed) == 0 {
        page.used.store(1, Ordering::Relaxed);
    }
}
