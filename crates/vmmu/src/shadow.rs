//! The shadow engine's fault: walk the guest, find or create the pages on the way, install the leaf, prefetch.
//!
//! Key types: [`Again`] (why an attempt is repeated), [`Way`] (what one attempt works on).
//! Neighbours: `walk` reads the guest, `tree` finds, creates and links pages, `edge` installs, `prefetch` guesses.
//!
//! Invariants:
//! 1. The walk, the look-up of pages and of the host frame hold no lock; what they found is checked again under the locks of the install.
//! 2. The snapshot of invalidation is taken before the host frame is looked up, always in that order.
//! 3. An attempt that fails leaves nothing half done; its debt is paid before the next one.

use crate::addr::{Gfn, Gva, Index, Level};
use crate::debt::Debt;
use crate::edge::{Installed, Leaf, Purpose, Refused};
use crate::error::Error;
use crate::frames::Missing;
use crate::host::{Host, LookupError, Need};
use crate::memory::SlottedMemory;
use crate::mmu::Call;
use crate::outcome::{EmulateReason, FaultOutcome};
use crate::page::{Flags, Page, PageId};
use crate::paging::{GuestFormat, PagingRules};
use crate::prefetch::Window;
use crate::role::Role;
use crate::slots::{SlotFlags, SlotView};
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::sync::Ordering;
use crate::vcpu::VcpuLocal;
use crate::walk::{Access, Gpte, GpteWidth, Rights, Walk, WalkFailure};

/// How often a fault is tried before the guest is asked to try again itself.
const ATTEMPTS: u32 = if cfg!(loom) { 2 } else { 16 };

/// Why an attempt did not come to an end.
#[derive(Debug)]
pub(crate) enum Again {
    /// Something changed meanwhile.
    Raced,
    /// Something has to be flushed first.
    Flush,
    /// Memory has to be allocated first.
    Missing(Missing),
    /// The page limit is reached: pages were zapped, and the guard has to be left for their grace period.
    NeedPages,
    /// It cannot be done.
    Error(Error),
}

impl From<Error> for Again {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refused> for Again {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Missing(missing) => Self::Missing(missing),
            Refused::FlushFirst => Self::Flush,
            _ => Self::Raced,
        }
    }
}

/// Where the last fault of a vCPU was installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near {
    /// The address's bits above its 2 MiB.
    prefix: u64,
    root: PageId,
    /// The page of level 2 on the way.
    parent: PageId,
}

/// Notes that a page is in use, for reclaim and for the guess that it is a table no more.
#[inline]
pub(crate) fn note_use(page: &Page) {
    if page.used.load(Ordering::Relaxed) == 0 {
        page.used.store(1, Ordering::Relaxed);
    }
    if page.writes.load(Ordering::Relaxed) != 0 {
        page.writes.store(0, Ordering::Relaxed);
    }
}

/// What one attempt works on.
#[derive(Debug)]
pub(crate) struct Way<'w> {
    pub(crate) gva: Gva,
    pub(crate) access: Access,
    pub(crate) walk: &'w Walk,
    pub(crate) root: PageId,
    /// The pages on the way so far: reclaim spares them.
    pub(crate) pinned: [PageId; 5],
    pub(crate) depth: usize,
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Serves a fault of a shadow-paged guest.
    pub(crate) fn shadow_fault(
        &self,
        local: &mut VcpuLocal,
        gva: Gva,
        access: Access,
    ) -> Result<FaultOutcome, Again> {
        for _ in 0..ATTEMPTS {
            let mut debt = Debt::new(self);
            let tried = self.try_fault(local, gva, access, &mut debt);
            debt.pay();
            match tried {
                Ok(outcome) => return Ok(outcome),
                Err(Again::Raced) => {}
                Err(Again::Flush) => self.flush_all(),
                Err(Again::Missing(missing)) => self.provide(missing)?,
                Err(other) => return Err(other),
            }
        }
        self.count(Event::FaultRetried);
        Ok(FaultOutcome::Retry)
    }

    /// Tries once. Apart from the loop around it, or the compiler works out beforehand what later attempts might use.
    #[inline(never)]
    fn try_fault(
        &self,
        local: &mut VcpuLocal,
        gva: Gva,
        access: Access,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<FaultOutcome, Again> {
        let root = self.live_root(local, debt)?;
        let mut walk = Walk::new();
        let memory = SlottedMemory::new(self, local.space);
        match local.walker.walk_into(&memory, gva, access, &mut walk) {
            Ok(()) => {}
            Err(WalkFailure::Retry) => {
                memory.page_in()?;
                return Err(Again::Raced);
            }
            Err(failure) => {
                self.forget(root, gva, debt);
                return Ok(self.refuse(gva, failure));
            }
        }
        let gfn = walk.gfn();
        let mut way = Way {
            gva,
            access,
            walk: &walk,
            root,
            pinned: [root; 5],
            depth: 1,
        };
        // The snapshot comes before everything that it covers: the slot, and the host frame.
        let snapshot = self.mmu.shards.snapshot(gfn, Level::L2, &self.mmu.slots);
        let Some(slot) = self.slot(local.space, gfn) else {
            return self.device(&way, debt);
        };
        if access.is_write() && slot.flags.contains(SlotFlags::READ_ONLY) {
            self.count_at(Event::FaultEmulated, gfn);
            return Ok(FaultOutcome::EmulateMmio {
                gpa: walk.gpa(),
                reason: EmulateReason::ReadOnlyMemory,
            });
        }
        let need = if access.is_write() {
            Need::Write
        } else {
            Need::Read
        };
        let host = match self.mmu.host.look_up(slot.backed(gfn), need) {
            Ok(host) => host,
            Err(LookupError::Hole) => return self.device(&way, debt),
            Err(_) => return Err(Error::HostMemory { gfn }.into()),
        };
        let snapshot = if mutant!(SnapshotAfterLookup) {
            self.mmu.shards.snapshot(gfn, Level::L2, &self.mmu.slots)
        } else {
            snapshot
        };
        if access.is_write() && !host.writable {
            self.count_at(Event::FaultEmulated, gfn);
            return Ok(FaultOutcome::EmulateMmio {
                gpa: walk.gpa(),
                reason: EmulateReason::ReadOnlyMemory,
            });
        }
        let Some((rights, bits)) = self.rights_of(local, &walk, access, &slot, host.writable)
        else {
            self.count_at(Event::FaultEmulated, gfn);
            return Ok(FaultOutcome::EmulateWrite {
                gpa: walk.gpa(),
                reason: EmulateReason::Smap,
            });
        };
        // A log of 4 KiB frames needs entries of that size: a write through a larger one would have to mark all of it.
        let logged = slot.flags.contains(SlotFlags::LOG_DIRTY);
        let most = if logged { Level::L1 } else { Level::L2 };
        let largest = slot.largest(
            gfn,
            host.largest
                .min(walk.leaf_level())
                .min(self.mmu.config.largest_leaf)
                .min(most),
        );
        let leaf = Leaf {
            gfn,
            pfn: host.pfn,
            rights,
            bits,
            snapshot,
        };
        let start = self.shortcut(local, &way, largest);
        self.map(
            local,
            &mut way,
            leaf,
            (start.unwrap_or(root), largest),
            debt,
        )
    }

    /// Returns the level-1 page of the address without going down from the root, where the last fault was next to this one.
    ///
    /// What is skipped are the levels above: should the root no longer reach the page, then the entry turns out to be there already when the same fault
    /// comes again, and the shortcut is forgotten.
    #[inline]
    fn shortcut(&self, local: &VcpuLocal, way: &Way<'_>, largest: Level) -> Option<PageId> {
        let near = local.near?;
        if near.prefix != way.gva.get() >> 21 || near.root != way.root || largest != Level::L1 {
            return None;
        }
        let parent = self.page(near.parent);
        let record = way.walk.record(Level::L2)?;
        let role = local.role_at(Level::L2, record.inherited);
        // The number may have gone to another page since, of another mode too. Alive first: the table of a dead page may be gone already, one
        // seen alive stays for this call.
        if !parent.is_for(record.table(), role) {
            return None;
        }
        let (gfn, role) = demand(way.walk, role, Level::L2)?;
        let child = self.linked(near.parent, Level::L2.index(way.gva.get()))?;
        let page = self.page(child);
        if !page.is_for(gfn, role) || !parent.is_alive() {
            return None;
        }
        note_use(page);
        Some(child)
    }

    /// Drops what an unsync page still maps at `gva`: a page fault leaves no cached translation of its address (Intel SDM vol. 3, 4.10.4.1).
    fn forget(&self, root: PageId, gva: Gva, debt: &mut Debt<'_, 'm, H, O>) {
        let mut id = root;
        for _ in 0..5 {
            let page = self.page(id);
            // Clean pages say what the guest's tables say.
            if !page.role().is_direct() && !page.flags().contains(Flags::CLEAN) {
                let _ = self.derive_way(id, gva, debt);
                return;
            }
            match self.linked(id, page.role().level().index(gva.get())) {
                Some(child) => id = child,
                None => return,
            }
        }
    }

    /// Answers a walk that came to no end.
    #[inline(never)]
    fn refuse(&self, gva: Gva, failure: WalkFailure) -> FaultOutcome {
        self.count(Event::FaultInjected);
        match failure {
            WalkFailure::Fault(fault) => FaultOutcome::InjectPageFault {
                gva,
                code: fault.code,
            },
            WalkFailure::MemoryMissing { gpa, .. } => FaultOutcome::TableMissing { gpa },
            _ => FaultOutcome::InjectGeneralProtection,
        }
    }

    /// Answers an access to what no slot has. What an earlier mapping left in the slot is removed and flushed first (scenario B3).
    #[inline(never)]
    fn device(&self, way: &Way<'_>, debt: &mut Debt<'_, 'm, H, O>) -> Result<FaultOutcome, Again> {
        if let Some((id, index)) = self.deepest(way.root, way.gva)
            && !mutant!(DeviceKeepsMapping)
        {
            let page = self.page(id);
            let _state = page.lock.lock(&self.locks);
            self.remove_recorded(id, index, debt);
        }
        debt.pay();
        self.count_at(Event::FaultEmulated, way.walk.gfn());
        Ok(FaultOutcome::EmulateMmio {
            gpa: way.walk.gpa(),
            reason: EmulateReason::NoMemory,
        })
    }

    /// Works out a leaf's rights and bits (rule R9), or `None` where no entry can grant this access without granting another.
    fn rights_of(
        &self,
        local: &VcpuLocal,
        walk: &Walk,
        access: Access,
        slot: &SlotView,
        host_writable: bool,
    ) -> Option<(Rights, u64)> {
        let mut rights = walk.rights();
        let mut bits = Spte::ACCESSED;
        let rules = local.walker.state().mode().rules();
        if access.is_write() {
            bits |= Spte::DIRTY;
            if !rights.contains(Rights::WRITE) {
                // CR0.WP = 0 and the kernel writes to a read-only page: the one exception, with a role of its own.
                if rights.contains(Rights::USER) && rules.contains(PagingRules::SMAP) {
                    return None;
                }
                if rights.contains(Rights::USER)
                    && rules.contains(PagingRules::SMEP)
                    && !mutant!(KernelWriteExecutes)
                {
                    rights -= Rights::EXECUTE;
                }
                if !mutant!(KernelWriteForUser) {
                    rights -= Rights::USER;
                }
                rights |= Rights::WRITE;
                bits |= Spte::KERNEL_WRITE;
            }
        } else if (!walk.is_dirty() && !mutant!(FirstReadWritable))
            || slot.flags.contains(SlotFlags::LOG_DIRTY)
        {
            // The first write has to be seen: it sets the guest's D bit, or the log's.
            rights -= Rights::WRITE;
        }
        if (slot.flags.contains(SlotFlags::READ_ONLY) && !mutant!(ReadOnlySlotWritable))
            || (!host_writable && !mutant!(HostRightsIgnored))
        {
            rights -= Rights::WRITE;
        }
        Some((rights, bits))
    }

    /// Goes down from the root, making the pages on the way, and installs the leaf.
    fn map(
        &self,
        local: &mut VcpuLocal,
        way: &mut Way<'_>,
        mut leaf: Leaf,
        (start, largest): (PageId, Level),
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<FaultOutcome, Again> {
        let exact = (leaf.gfn, leaf.pfn);
        let (mut id, mut target) = (start, largest);
        let mut parent = None;
        if target == Level::L1 && start == way.root {
            (id, parent) = self.follow(way);
        }
        loop {
            let role = self.page(id).role();
            let level = role.level();
            let index = level.index(way.gva.get());
            // A region that is mapped small already stays small: its link is followed.
            if level == target && level > Level::L1 && self.linked(id, index).is_some() {
                target = Level::L1;
            }
            if level > target {
                let (gfn, role) = demand(way.walk, role, level).ok_or(Again::Raced)?;
                parent = Some(id);
                id = self.step(way, id, index, gfn, role, debt)?;
                continue;
            }
            leaf.gfn = exact.0.align_down(level);
            leaf.pfn = exact.1.align_down(level);
            match self.place(way, id, level, index, &leaf) {
                Ok((installed, window)) => {
                    if installed == Installed::Present {
                        local.near = None;
                    } else if let Some(parent) = parent.filter(|_| level == Level::L1) {
                        local.near = Some(Near {
                            prefix: way.gva.get() >> 21,
                            root: way.root,
                            parent,
                        });
                    }
                    self.count_fixed(installed, leaf.gfn);
                    if !window.is_closed() {
                        self.prefetch(local.walker.decoder(), id, window);
                    }
                    return Ok(FaultOutcome::Resume);
                }
                Err(Refused::TooLarge) => target = Level::L1,
                Err(Refused::Occupied) => {
                    let page = self.page(id);
                    let state = page.lock.lock(&self.locks);
                    self.remove_recorded(id, index, debt);
                    drop(state);
                    return Err(Again::Raced);
                }
                Err(Refused::Tracked) => {
                    if !self.make_unsync(leaf.gfn) {
                        self.count_at(Event::FaultEmulated, leaf.gfn);
                        return Ok(FaultOutcome::EmulateWrite {
                            gpa: way.walk.gpa(),
                            reason: EmulateReason::GuestTable,
                        });
                    }
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    /// Installs the leaf in a slot, if the guest's entry is still what the walk saw; says how many neighbours to prefetch.
    pub(crate) fn place(
        &self,
        way: &Way<'_>,
        id: PageId,
        level: Level,
        index: Index,
        leaf: &Leaf,
    ) -> Result<(Installed, Window), Refused> {
        let page = self.page(id);
        let purpose = if way.access.is_write() {
            Purpose::Write
        } else {
            Purpose::Any
        };
        let mut state = page.lock.lock(&self.locks);
        if !page.is_alive() {
            return Err(Refused::Stale);
        }
        let stands_for_table = !page.role().is_direct() && !mutant!(LeafWithoutRecheck);
        if !stands_for_table {
            let installed = self.install_leaf(id, index, leaf, purpose)?;
            return Ok((installed, Window::default()));
        }
        let gpte = self.recheck(way, page, index)?;
        let installed = self.install_leaf(id, index, leaf, purpose)?;
        self.note_derived(page, index, gpte, &mut state);
        // Where the guest uses a page for the first time, its neighbours are seldom in use already.
        let may_prefetch =
            installed == Installed::New && level == Level::L1 && !way.walk.is_first_use();
        if may_prefetch && self.mmu.config.prefetch != 0 {
            state.window = self.window(page, index, state.window);
            return Ok((installed, state.window));
        }
        Ok((installed, Window::default()))
    }

    /// Re-reads the guest's entry of a slot under the table lock: unchanged but for A and D, or the install is stale.
    pub(crate) fn recheck(
        &self,
        way: &Way<'_>,
        page: &Page,
        index: Index,
    ) -> Result<Gpte, Refused> {
        let role = page.role();
        let seen = way.walk.entry(role.level()).ok_or(Refused::Stale)?;
        let now = self
            .read_gpte(role, Self::gpte_at(page, index), GpteWidth::Bytes8)
            .map_err(|_| Refused::Stale)?;
        if !now.same_but_for_ad(seen) {
            return Err(Refused::Stale);
        }
        Ok(now)
    }

    fn count_fixed(&self, installed: Installed, gfn: Gfn) {
        let event = match installed {
            Installed::Present => Event::FaultSpurious,
            Installed::Widened | Installed::New => Event::FaultFixed,
        };
        self.count_at(event, gfn);
    }
}

/// Returns the gfn and role of the page below an entry of `level`, as the walk demands.
#[inline]
pub(crate) fn demand(walk: &Walk, role: Role, level: Level) -> Option<(Gfn, Role)> {
    let below = level.below()?;
    let format = walk.format();
    if format != GuestFormat::Off && level > walk.leaf_level() {
        let gpte = walk.entry(level)?;
        // The page was reached by this walk, so that its role has what the entries above allow.
        let rights = if format.has_rights(level) {
            role.rights() & gpte.rights()
        } else {
            role.rights()
        };
        debug_assert_eq!(
            walk.record(below).map(|r| (r.table(), r.inherited)),
            Some((gpte.frame(), rights))
        );
        return Some((gpte.frame(), role.child(below, rights, false)));
    }
    let dirty = if walk.is_dirty() {
        walk.rights()
    } else {
        walk.rights() - Rights::WRITE
    };
    Some((walk.gfn().align_down(level), role.child(below, dirty, true)))
}

#[cfg(all(test, not(loom)))]
mod a_shortcut {
    use crate::AddressSpace;
    use crate::addr::{Gfn, Gva, Level};
    use crate::audit::Strictness;
    use crate::paging::Cr0;
    use crate::testhost::{AD, Guest, PWU, World, long_mode};
    use crate::walk::Access;
    use crate::{Engine, FaultOutcome};

    #[test]
    fn does_not_lead_into_pages_of_another_mode() {
        let world = World::new(Engine::Shadow, |_| {});
        let mut guest = Guest::new(World::ROOT);
        for i in 0..2 {
            let page = (Gfn::new(600 + i), Level::L1);
            guest.map(world.mmu.host(), i << 12, page, (PWU & !2) | AD);
        }
        let mut other = long_mode(World::ROOT);
        other.cr0 -= Cr0::WP;
        let vcpu = world.vcpu(1);
        vcpu.set_paging(&other, AddressSpace::Normal).unwrap();
        let touch = |gva| vcpu.handle_fault(Gva::new(gva), Access::WRITE);
        assert_eq!(touch(0), Ok(FaultOutcome::Resume));
        world.set_root();
        assert_eq!(world.touch(0, Access::READ), FaultOutcome::Resume);
        let (page, _) = world.slot(0, Level::L2);
        // As if the number of the page on vCPU 1's way had gone to that one.
        vcpu.shared
            .local
            .claim()
            .unwrap()
            .near
            .as_mut()
            .unwrap()
            .parent = page;
        assert_eq!(touch(4096), Ok(FaultOutcome::Resume));
        world.mmu.audit(Strictness::Exact).unwrap();
        assert!(!world.spte(world.slot(4096, Level::L1)).is_present());
    }
}

#[cfg(all(test, not(loom)))]
mod a_write_that_the_host_refuses {
    use crate::addr::{Gfn, Gpa, Level, Pfn};
    use crate::outcome::EmulateReason;
    use crate::testhost::{AD, Guest, PWU, RAM, World};
    use crate::walk::{Access, AccessKind};
    use crate::{Engine, FaultOutcome};

    #[test]
    fn is_answered_instead_of_repeated_for_ever() {
        let gpa = Gpa::new(600 << 12);
        let refused = FaultOutcome::EmulateMmio {
            gpa,
            reason: EmulateReason::ReadOnlyMemory,
        };
        let world = World::new(Engine::Shadow, |_| {});
        let read_only = Some((Pfn::new(RAM + 600), false));
        world.mmu.host().back(Gfn::new(600), read_only);
        let page = (Gfn::new(600), Level::L1);
        Guest::new(World::ROOT).map(world.mmu.host(), 0, page, PWU | AD);
        world.set_root();
        assert_eq!(world.touch(0, Access::WRITE), refused);
        assert_eq!(world.touch(0, Access::READ), FaultOutcome::Resume);

        let world = World::new(Engine::Npt, |_| {});
        world.mmu.host().back(Gfn::new(600), read_only);
        let written = world.vcpu(0).handle_nested_fault(gpa, AccessKind::Write);
        assert_eq!(written, Ok(refused));
    }
}
