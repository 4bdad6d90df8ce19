//! What is at the address of a fault: a leaf to install, or an answer at once.
//!
//! Key type: [`Found`].
//!
//! Invariants:
//! 1. The snapshot of invalidation comes before everything that it covers: the look-up of the slot, and of the host frame.

use super::{Again, Way};
use crate::addr::Level;
use crate::debt::Debt;
use crate::edge::Leaf;
use crate::error::Error;
use crate::host::{Host, HostFrame, LookupError, Need};
use crate::mmu::Call;
use crate::outcome::{EmulateReason, FaultOutcome};
use crate::paging::PagingRules;
use crate::slots::{SlotFlags, SlotView};
use crate::spte::Spte;
use crate::stats::{Event, Observer};
use crate::vcpu::VcpuLocal;
use crate::walk::{Access, Rights, Walk};

/// What is at an address.
#[derive(Debug)]
pub(super) enum Found {
    /// Memory: the leaf of the address's 4 KiB, and the largest level at which it may be mapped.
    Leaf(Leaf, Level),
    /// No memory, or none for this access.
    Answer(FaultOutcome),
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Works out the leaf that the access needs.
    #[inline]
    pub(super) fn leaf_of(
        &self,
        local: &VcpuLocal,
        way: &Way<'_>,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<Found, Again> {
        let (walk, gfn, write) = (way.walk, way.walk.gfn(), way.access.is_write());
        let mut snapshot = self.mmu.shards.snapshot(gfn, Level::L2, &self.mmu.slots);
        let Some(slot) = self.slot(local.space, gfn) else {
            return Ok(self.device(way, debt));
        };
        if write && slot.flags.contains(SlotFlags::READ_ONLY) {
            return Ok(self.emulate(way, EmulateReason::ReadOnlyMemory));
        }
        let need = if write { Need::Write } else { Need::Read };
        let host = match self.mmu.host.look_up(slot.backed(gfn), need) {
            Ok(host) => host,
            Err(LookupError::Hole) => return Ok(self.device(way, debt)),
            Err(_) => return Err(Error::HostMemory { gfn }.into()),
        };
        if mutant!(SnapshotAfterLookup) {
            snapshot = self.mmu.shards.snapshot(gfn, Level::L2, &self.mmu.slots);
        }
        if write && !host.writable {
            return Ok(self.emulate(way, EmulateReason::ReadOnlyMemory));
        }
        let Some((rights, bits)) = self.rights_of(local, walk, way.access, &slot, host.writable)
        else {
            return Ok(self.emulate(way, EmulateReason::Smap));
        };
        let leaf = Leaf {
            gfn,
            pfn: host.pfn,
            rights,
            bits,
            snapshot,
        };
        Ok(Found::Leaf(leaf, self.largest_leaf(walk, &slot, &host)))
    }

    /// Answers an access that the hypervisor has to do itself.
    #[inline(never)]
    fn emulate(&self, way: &Way<'_>, reason: EmulateReason) -> Found {
        let gpa = way.walk.gpa();
        self.count_at(Event::FaultEmulated, way.walk.gfn());
        Found::Answer(if reason == EmulateReason::Smap {
            FaultOutcome::EmulateWrite { gpa, reason }
        } else {
            FaultOutcome::EmulateMmio { gpa, reason }
        })
    }

    /// Returns the largest level at which an address may be mapped.
    #[inline]
    fn largest_leaf(&self, walk: &Walk, slot: &SlotView, host: &HostFrame) -> Level {
        // A log of 4 KiB frames needs entries of that size: a write through a larger one would have to mark all of it.
        let logged = slot.flags.contains(SlotFlags::LOG_DIRTY);
        let most = if logged { Level::L1 } else { Level::L2 };
        let backed = host.largest.min(walk.leaf_level());
        slot.largest(
            walk.gfn(),
            backed.min(self.mmu.config.largest_leaf).min(most),
        )
    }

    /// Answers an access to what no slot has. What an earlier mapping left in the slot is removed and flushed first (scenario B3).
    #[inline(never)]
    fn device(&self, way: &Way<'_>, debt: &mut Debt<'_, 'm, H, O>) -> Found {
        if let Some((id, index)) = self.deepest(way.root, way.gva)
            && !mutant!(DeviceKeepsMapping)
        {
            let page = self.page(id);
            let _state = page.lock.lock(&self.locks);
            self.remove_recorded(id, index, debt);
        }
        debt.pay();
        self.emulate(way, EmulateReason::NoMemory)
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
