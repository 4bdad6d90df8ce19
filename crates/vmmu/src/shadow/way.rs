//! What one attempt at a fault works on, and the way from the root to the entry.
//!
//! Key types: [`Way`], [`Near`] (where the last fault was: the next one is often beside it).

use crate::addr::{Gfn, Gva, Level};
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{Page, PageId};
use crate::paging::GuestFormat;
use crate::role::Role;
use crate::stats::Observer;
use crate::sync::Ordering;
use crate::vcpu::VcpuLocal;
use crate::walk::{Access, Rights, Walk};

/// Where the last fault of a vCPU was installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near {
    /// The address's bits above its 2 MiB.
    pub(super) prefix: u64,
    pub(super) root: PageId,
    /// The page of level 2 on the way.
    pub(super) parent: PageId,
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

impl<H: Host, O: Observer> Call<'_, H, O> {
    /// Returns the level-1 page of the address without going down from the root, where the last fault was next to this one.
    ///
    /// What is skipped are the levels above: should the root no longer reach the page, then the entry turns out to be there already when the same fault
    /// comes again, and the shortcut is forgotten.
    #[inline]
    pub(super) fn shortcut(
        &self,
        local: &VcpuLocal,
        way: &Way<'_>,
        largest: Level,
    ) -> Option<PageId> {
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
    let rights = if walk.is_dirty() {
        walk.rights()
    } else {
        walk.rights() - Rights::WRITE
    };
    let child = role.split(below, rights, walk.is_dirty());
    Some((walk.gfn().align_down(level), child))
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
