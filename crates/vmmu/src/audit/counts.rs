//! Recounts: flags, hash chains, tracking, the gate, the unsync list, references.

use super::Audit;
use super::finding::AuditFinding as Found;
use super::records::bit;
use crate::addr::{Gfn, Level};
use crate::clean::PLACES;
use crate::host::{Host, VcpuId};
use crate::page::{Flags, Page, PageId};
use crate::slots::AddressSpace;
use crate::stats::Observer;
use crate::sync::Ordering;
use alloc::collections::BTreeMap;

impl<H: Host, O: Observer> Audit<'_, '_, H, O> {
    /// Recounts whatever is counted.
    pub(super) fn check_counts(&mut self) {
        self.check_pages();
        self.check_pool();
        self.check_unsync_list();
        self.check_references();
        if self.call.is_direct_engine() {
            self.check_nested_tables();
        } else {
            self.check_hash();
            self.check_regions();
        }
    }

    fn check_pages(&mut self) {
        for id in self.pages.clone() {
            let page = self.page(id);
            let (flags, direct) = (page.flags(), page.role().is_direct());
            let alive = flags.contains(Flags::ALIVE);
            if alive {
                self.report.pages += 1;
                self.report.indirect += u64::from(!direct);
                self.report.clean += u64::from(flags.contains(Flags::CLEAN));
            } else {
                self.report.dead += 1;
            }
            let impossible = (!alive
                && flags.intersects(Flags::COUNTED | Flags::CLEAN | Flags::LISTED))
                || (flags.contains(Flags::CLEAN) && !direct && !flags.contains(Flags::COUNTED))
                || flags.contains(Flags::CLEAN | Flags::LISTED)
                || (direct && flags.intersects(Flags::COUNTED | Flags::LISTED));
            if impossible {
                let (page, flags) = (id.0, flags.bits());
                self.find(Found::FlagsContradict { page, flags });
            }
        }
    }

    fn check_pool(&mut self) {
        let (recorded, counted) = (self.call.mmu.pool.in_use(), self.pages.len() as u32);
        if recorded != counted {
            self.find(Found::PoolCount { recorded, counted });
        }
        let (recorded, counted) = (self.call.mmu.grace.waiting(), self.report.dead as u32);
        if recorded != counted {
            self.find(Found::GraceCount { recorded, counted });
        }
        let (recorded, counted) = (self.call.mmu.gate.count(), self.report.indirect);
        if recorded != counted {
            self.find(Found::GateCount { recorded, counted });
        }
    }

    fn check_unsync_list(&mut self) {
        let mut ids = [0; PLACES];
        let ids = self.call.mmu.unsync.snapshot(&self.call.locks, &mut ids);
        self.report.unsync = ids.len() as u64;
        for id in self.pages.clone() {
            let times = ids.iter().filter(|i| **i == id.0).count() as u32;
            let flag = self.page(id).flags().contains(Flags::LISTED);
            if times != u32::from(flag) {
                let page = id.0;
                self.find(Found::UnsyncList { page, times, flag });
            }
        }
        for page in ids.iter().copied() {
            if self.pages.binary_search(&PageId(page)).is_err() {
                let (times, flag) = (1, false);
                self.find(Found::UnsyncList { page, times, flag });
            }
        }
    }

    fn check_references(&mut self) {
        let mut roots = BTreeMap::new();
        for (i, vcpu) in self.call.mmu.vcpus.iter().enumerate() {
            match vcpu.local.claim() {
                Some(local) => {
                    if let Some(root) = local.roots.referenced() {
                        *roots.entry(root).or_insert(0_u32) += 1;
                    }
                }
                None => self.find(Found::VcpuBusy(VcpuId(i as u16))),
            }
        }
        for id in self.pages.clone() {
            let counted = roots.get(&id).copied().unwrap_or(0);
            let recorded = self.page(id).references.load(Ordering::Acquire);
            if recorded != counted {
                let page = id.0;
                self.find(Found::References {
                    page,
                    recorded,
                    counted,
                });
            }
        }
    }

    /// Every live page is in its region's chains once, and no other page stands for the same.
    fn check_hash(&mut self) {
        for gfn in core::mem::take(&mut self.records.endless) {
            self.find(Found::ChainEndless { gfn });
        }
        let hashed = core::mem::take(&mut self.records.hashed);
        let mut identities = BTreeMap::new();
        for (id, _) in hashed.iter().copied() {
            let page = self.page(id);
            if !page.is_alive() {
                self.find(Found::DeadHashed { page: id.0 });
                continue;
            }
            if let Some(other) = identities.insert((page.gfn(), page.role().raw()), id.0) {
                let (page, gfn) = (id.0, page.gfn());
                self.find(Found::Twins { page, other, gfn });
            }
        }
        for id in self.pages.clone() {
            let page = self.page(id);
            let place = (id, page.gfn().align_down(Level::L2));
            if page.is_alive() && hashed.binary_search(&place).is_err() {
                let (page, gfn) = (id.0, page.gfn());
                self.find(Found::Unhashed { page, gfn });
            }
        }
    }

    /// Large-page counters and tracking bits equal a recount, and nothing large lies over a table.
    fn check_regions(&mut self) {
        let mut live: BTreeMap<u64, u32> = BTreeMap::new();
        let mut counted_pages: BTreeMap<u64, u32> = BTreeMap::new();
        let mut tracked: BTreeMap<Gfn, u32> = BTreeMap::new();
        for id in self.pages.clone() {
            let page = self.page(id);
            if !page.is_alive() || page.role().is_direct() {
                continue;
            }
            let first = page.gfn().align_down(Level::L2).get();
            *live.entry(first).or_default() += 1;
            if page.flags().contains(Flags::COUNTED) {
                counted_pages.insert(first, id.0);
                *tracked.entry(page.gfn()).or_default() += 1;
            }
        }
        for (spte, gfn, level) in self.leaves.clone() {
            if level > Level::L1
                && let Some(page) = counted_pages.get(&gfn.align_down(Level::L2).get())
            {
                let (at, page) = (spte.into(), *page);
                self.find(Found::LargeOverTable { at, gfn, page });
            }
        }
        for (first, region) in core::mem::take(&mut self.records.regions) {
            let gfn = Gfn::new(first);
            let counted = live.remove(&first).unwrap_or(0);
            let recorded = region.live;
            if recorded != counted {
                self.find(Found::LiveCount {
                    gfn,
                    recorded,
                    counted,
                });
            }
            for gfn in (first..first + Level::L2.frames()).map(Gfn::new) {
                let recorded = bit(&region.tracked, gfn);
                let counted = tracked.get(&gfn).copied().unwrap_or(0);
                self.report.tracked += u64::from(recorded);
                if recorded != (counted != 0) {
                    self.find(Found::TrackingBit {
                        gfn,
                        recorded,
                        counted,
                    });
                }
            }
        }
        for (first, counted) in live {
            let (gfn, recorded) = (Gfn::new(first), 0);
            self.find(Found::LiveCount {
                gfn,
                recorded,
                counted,
            });
        }
    }

    /// A table of the direct engine is a root or has one parent.
    fn check_nested_tables(&mut self) {
        let mut parents: BTreeMap<PageId, u32> = BTreeMap::new();
        for (_, child) in core::mem::take(&mut self.links) {
            *parents.entry(child).or_default() += 1;
        }
        for space in [AddressSpace::Normal, AddressSpace::SystemManagement] {
            if let Some(root) = self.call.mmu.direct.get(space) {
                *parents.entry(root).or_default() += 1;
            }
        }
        for id in self.pages.clone() {
            let count = parents.get(&id).copied().unwrap_or(0);
            if count != 1 && Page::is_alive(self.page(id)) {
                self.find(Found::NestedParents {
                    page: id.0,
                    parents: count,
                });
            }
        }
    }
}
