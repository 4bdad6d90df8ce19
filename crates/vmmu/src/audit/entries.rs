//! Every SPTE: what it maps or links, whether it may, and whether the other end of the edge knows.

use super::finding::AuditFinding as Found;
use super::{Audit, Strictness};
use crate::addr::{Gfn, Index, Level, Pfn, TABLE_SLOTS};
use crate::host::{Host, Need};
use crate::mmu::Call;
use crate::page::{Flags, Page, PageId, Record, SpteRef};
use crate::paging::PagingRules;
use crate::role::Role;
use crate::slots::{SlotFlags, SlotView};
use crate::spte::{EntryFormat, Spte};
use crate::stats::Observer;
use crate::walk::{Entry, Gpte, GpteWidth, Rights};

impl<H: Host, O: Observer> Audit<'_, '_, H, O> {
    /// Checks every entry of every table.
    pub(super) fn check_entries(&mut self) {
        for id in self.pages.clone() {
            let page = self.page(id);
            self.check_copy(id, page);
            for slot in (0..TABLE_SLOTS).map(Index::truncate) {
                let spte = self.call.load(page, slot);
                if spte.is_present() {
                    self.check_entry(id, page, slot, spte);
                }
            }
        }
    }

    /// Checks that every present entry follows from the word of the copy, if there is one that a sync relies on.
    fn check_copy(&mut self, id: PageId, page: &Page) {
        let state = page.lock.lock(&self.call.locks);
        let (Some(copy), doubt) = (state.copy.clone(), state.doubt) else {
            return;
        };
        drop(state);
        for (slot, word) in copy.iter().enumerate() {
            let slot = Index::truncate(slot);
            let spte = self.call.load(page, slot);
            let relied_on = spte.is_present() && !doubt.covers(slot);
            if relied_on && !self.follows(page, slot, spte, Gpte::new(*word)) {
                let (at, bits, word) = (SpteRef::new(id, slot).into(), spte.raw(), *word);
                self.find(Found::CopyHides { at, bits, word });
            }
        }
    }

    fn check_entry(&mut self, id: PageId, page: &Page, slot: Index, spte: Spte) {
        let edge = SpteRef::new(id, slot);
        let at = edge.into();
        if page.present_word(slot.get() / 64) >> (slot.get() % 64) & 1 == 0 {
            self.find(Found::NoPresenceBit { at });
        }
        if !page.is_alive() {
            self.find(Found::DeadPresent { at });
        }
        match page.record(slot) {
            Record::Empty => self.find(Found::NoRecord { at }),
            Record::Link(child) => self.check_link(edge, page, spte, child),
            Record::Leaf(gfn) => self.check_leaf(edge, page, spte, gfn),
        }
        if self.strictness == Strictness::Exact
            && !page.role().is_direct()
            && page.flags().contains(Flags::CLEAN)
        {
            self.check_derivation(edge, page, spte);
        }
    }

    fn check_link(&mut self, edge: SpteRef, page: &Page, spte: Spte, child: PageId) {
        self.report.links += 1;
        self.links.push((edge, child));
        let (at, number) = (edge.into(), child.0);
        let below = self.page(child);
        if !below.is_alive() {
            self.find(Found::ChildDead { at, child: number });
        }
        if !demanded(page, edge.slot(), below) {
            self.find(Found::ChildMismatch { at, child: number });
        }
        let format = match (self.call.is_direct_engine(), page.role().is_pae_root()) {
            (true, _) => self.call.format(),
            (false, true) => EntryFormat::PAE_ROOT,
            (false, false) => EntryFormat::LONG,
        };
        let hardware = format.accessed | format.dirty;
        let bits = spte.raw();
        if bits & !hardware != format.make_link(below.table()).raw() & !hardware {
            let child = number;
            self.find(Found::LinkBits { at, child, bits });
        }
    }

    fn check_leaf(&mut self, edge: SpteRef, page: &Page, spte: Spte, gfn: Gfn) {
        let (at, bits) = (edge.into(), spte.raw());
        let (role, level) = (page.role(), page.role().level());
        if let Some(count) = self.report.leaves.get_mut(usize::from(level.get()) - 1) {
            *count += 1;
        }
        let direct_engine = self.call.is_direct_engine();
        if !direct_engine {
            self.leaves.push((edge, gfn, level));
        }
        let highest = if direct_engine { Level::L3 } else { Level::L2 };
        let large = level == Level::L1 || spte.has(Spte::LARGE);
        if !gfn.is_aligned(level) || level > highest || !large {
            self.find(Found::LeafShape {
                at,
                gfn,
                level,
                bits,
            });
        }
        if role.is_direct() {
            let expected = position(page, edge.slot());
            if gfn != expected {
                self.find(Found::LeafPosition { at, gfn, expected });
            }
        }
        if !direct_engine {
            self.check_rights(edge, role, spte);
        }
        let slot = self.call.mmu.slots.find(role.space(), gfn);
        match slot.filter(|slot| slot.largest(gfn, level) >= level) {
            None => self.find(Found::OutsideSlots { at, gfn }),
            Some(slot) => self.check_frame(edge, page, spte, gfn, &slot),
        }
    }

    /// Checks the host frame, and what may be written.
    fn check_frame(&mut self, edge: SpteRef, page: &Page, spte: Spte, gfn: Gfn, slot: &SlotView) {
        let (at, level) = (edge.into(), page.role().level());
        let Some(host) = self
            .call
            .mmu
            .host
            .look_up(slot.backed(gfn), Need::Read)
            .ok()
            .filter(|host| host.largest >= level)
        else {
            return self.find(Found::Unbacked { at, gfn, level });
        };
        let found = Pfn::new(frame_of(spte, level));
        if found != host.pfn {
            let (found, expected) = (found.get(), host.pfn.get());
            self.find(Found::WrongFrame {
                at,
                gfn,
                found,
                expected,
            });
        }
        let write = if self.call.is_direct_engine() {
            self.call.format().write
        } else {
            Spte::WRITE
        };
        if !spte.has(write) {
            return;
        }
        if slot.flags.contains(SlotFlags::READ_ONLY) || !host.writable {
            self.find(Found::WriteForbidden { at, gfn });
        }
        if level == Level::L1 && self.records.is_tracked(gfn) {
            self.find(Found::WriteTracked { at, gfn });
        }
        if slot.flags.contains(SlotFlags::LOG_DIRTY)
            && !self.records.is_logged(gfn, level, page.role().space())
        {
            self.find(Found::WriteUnlogged { at, gfn });
        }
    }

    /// Rule R9: what a leaf allows is in its page's role, but for kernel writes under CR0.WP = 0.
    fn check_rights(&mut self, edge: SpteRef, role: Role, spte: Spte) {
        let mut rights = rights_of(spte);
        let exception = spte.has(Spte::KERNEL_WRITE);
        if exception {
            rights -= Rights::WRITE;
        }
        let misused =
            exception && (rights.contains(Rights::USER) || role.rules().contains(PagingRules::WP));
        if misused || !role.rights().contains(rights) {
            let (at, bits) = (edge.into(), spte.raw());
            self.find(Found::RightsExceed { at, bits });
        }
    }

    /// Checks that an entry of a clean page follows from the guest's.
    fn check_derivation(&mut self, edge: SpteRef, page: &Page, spte: Spte) {
        let (role, slot) = (page.role(), edge.slot());
        let at = Call::<H, O>::gpte_at(page, slot);
        let gpte = self.call.read_gpte(role, at, GpteWidth::Bytes8);
        let follows = gpte.is_ok_and(|gpte| self.follows(page, slot, spte, gpte));
        if !follows {
            let gpte = gpte.map_or(0, Gpte::raw);
            let (at, bits) = (edge.into(), spte.raw());
            self.find(Found::Stale { at, bits, gpte });
        }
    }

    fn follows(&self, page: &Page, slot: Index, spte: Spte, gpte: Gpte) -> bool {
        let role = page.role();
        let entry = self
            .call
            .mmu
            .decoder(role)
            .decode(role.level(), gpte, role.rights());
        // In read-only memory the bit cannot be set: the entry is used all the same.
        let kept = self
            .call
            .mmu
            .slots
            .find(role.space(), page.gfn())
            .is_some_and(|slot| slot.flags.contains(SlotFlags::READ_ONLY));
        if !gpte.has(Gpte::ACCESSED) && !kept {
            return false;
        }
        match (page.record(slot), entry) {
            (Record::Link(child), entry) => {
                let (child, Some(below)) = (self.page(child), role.level().below()) else {
                    return false;
                };
                match entry {
                    Entry::Table(table) => {
                        child.gfn() == table.gfn
                            && child.role() == role.child(below, table.rights, false)
                    }
                    Entry::Leaf(leaf) => {
                        // A page made before D was set does not allow writing: the next write replaces it.
                        let wide = role.split(below, leaf.rights, true);
                        let narrow = role.split(below, leaf.rights - Rights::WRITE, false);
                        child.gfn() == leaf.base
                            && (child.role() == narrow || (leaf.is_dirty() && child.role() == wide))
                    }
                    _ => false,
                }
            }
            (Record::Leaf(gfn), Entry::Leaf(leaf)) => {
                let mut rights = rights_of(spte);
                let dirtied = leaf.is_dirty() || !rights.contains(Rights::WRITE);
                if spte.has(Spte::KERNEL_WRITE) {
                    rights -= Rights::WRITE;
                    // A user page that the kernel may write is not to be executed by it under SMEP.
                    if leaf.rights.contains(Rights::USER)
                        && role.rules().contains(PagingRules::SMEP)
                        && rights.contains(Rights::EXECUTE)
                    {
                        return false;
                    }
                }
                gfn == leaf.base
                    && leaf.level == role.level()
                    && dirtied
                    && leaf.rights.contains(rights)
            }
            _ => false,
        }
    }

    /// Compares the leaves with the reverse maps, both sorted by slot.
    pub(super) fn check_reverse_maps(&mut self) {
        let recorded = core::mem::take(&mut self.records.leaves);
        for same in recorded.chunk_by(|a, b| a.0 == b.0) {
            let at = same[0].0.into();
            if same.len() > 1 {
                let times = same.len() as u32;
                self.find(Found::LeafRepeated { at, times });
            }
            for (spte, gfn, level) in same.iter().copied() {
                let real = self
                    .leaves
                    .binary_search_by_key(&spte.raw(), |(leaf, ..)| leaf.raw());
                if !real.is_ok_and(|i| self.leaves[i] == (spte, gfn, level)) {
                    self.find(Found::LeafDangling { at, gfn, level });
                }
            }
        }
        for (spte, gfn, level) in core::mem::take(&mut self.leaves) {
            let first = recorded.partition_point(|(r, ..)| r.raw() < spte.raw());
            let mut same = recorded[first..].iter().take_while(|(r, ..)| *r == spte);
            if !same.any(|known| *known == (spte, gfn, level)) {
                let at = spte.into();
                self.find(Found::LeafUnlisted { at, gfn });
            }
        }
    }

    /// Compares the links with the parents' lists, both sorted by slot.
    pub(super) fn check_parents(&mut self) {
        if self.call.is_direct_engine() {
            return;
        }
        let recorded = core::mem::take(&mut self.records.parents);
        for same in recorded.chunk_by(|a, b| a.0 == b.0) {
            let at = same[0].0.into();
            if same.len() > 1 {
                let times = same.len() as u32;
                self.find(Found::LinkRepeated { at, times });
            }
            for (spte, id) in same.iter().copied() {
                let real = self
                    .links
                    .binary_search_by_key(&spte.raw(), |(link, _)| link.raw());
                if !real.is_ok_and(|i| self.links[i].1 == id) {
                    self.find(Found::LinkDangling { at, child: id.0 });
                }
            }
        }
        for (spte, id) in core::mem::take(&mut self.links) {
            let first = recorded.partition_point(|(r, _)| r.raw() < spte.raw());
            let mut same = recorded[first..].iter().take_while(|(r, _)| *r == spte);
            if !same.any(|known| known.1 == id) {
                let at = spte.into();
                self.find(Found::LinkUnlisted { at, child: id.0 });
            }
        }
    }
}

/// Returns the first frame that a slot of a linear table stands for.
fn position(page: &Page, slot: Index) -> Gfn {
    page.gfn()
        .wrapping_add(slot.get() as u64 * page.role().level().frames())
}

/// Tells whether a child's identity is one that its parent's role can demand in the slot.
fn demanded(page: &Page, slot: Index, child: &Page) -> bool {
    let (above, below) = (page.role(), child.role());
    let Some(level) = above.level().below() else {
        return false;
    };
    let linear = !above.is_direct()
        || (below.is_direct()
            && below.rights() == above.rights()
            && below.splits_dirty() == above.splits_dirty()
            && child.gfn() == position(page, slot));
    let child = if below.is_direct() {
        above.split(level, below.rights(), below.splits_dirty())
    } else {
        above.child(level, below.rights(), false)
    };
    below == child && above.rights().contains(below.rights()) && linear
}

/// Returns the host frame of a leaf's first 4 KiB, without the bits that large leaves use otherwise.
fn frame_of(spte: Spte, level: Level) -> u64 {
    spte.pfn().align_down(level).get()
}

/// Returns what an entry in the long format allows.
fn rights_of(spte: Spte) -> Rights {
    let mut rights = Rights::empty();
    rights.set(Rights::WRITE, spte.has(Spte::WRITE));
    rights.set(Rights::USER, spte.has(Spte::USER));
    rights.set(Rights::EXECUTE, !spte.has(Spte::NO_EXECUTE));
    rights
}
