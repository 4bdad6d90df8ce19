//! A copy of the frame records and of the pages' parents, taken one lock at a time.

use crate::addr::{Gfn, Level};
use crate::host::Host;
use crate::mmu::Call;
use crate::page::{Page, PageId, SpteRef};
use crate::slots::AddressSpace;
use crate::stats::Observer;
use crate::sync::Ordering;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// What is recorded about a region.
#[derive(Debug)]
pub(super) struct RegionCopy {
    pub(super) live: u32,
    pub(super) tracked: [u64; 8],
    pub(super) dirty: [Option<[u64; 8]>; 2],
}

/// The copy.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// By the number of their first frame.
    pub(super) regions: BTreeMap<u64, RegionCopy>,
    /// The reverse maps, by SPTE.
    pub(super) leaves: Vec<(SpteRef, Gfn, Level)>,
    /// The parents' lists, by SPTE.
    pub(super) parents: Vec<(SpteRef, PageId)>,
    /// The hash chains: the region, and a page in it.
    pub(super) hashed: Vec<(PageId, Gfn)>,
    /// Regions with a chain that does not end.
    pub(super) endless: Vec<Gfn>,
}

impl Records {
    pub(super) fn collect<H: Host, O: Observer>(call: &Call<'_, H, O>) -> Self {
        let mut all = Self::default();
        let pool = &call.mmu.pool;
        let most = pool.limit() as usize;
        call.mmu.frames.for_each_stripe(&call.locks, |stripe| {
            for region in stripe.regions() {
                let copy = RegionCopy {
                    live: region.live,
                    tracked: region.tracked(),
                    dirty: [AddressSpace::Normal, AddressSpace::SystemManagement]
                        .map(|space| region.dirty(space)),
                };
                all.regions.insert(region.first().get(), copy);
                for (gfn, level, head) in region.heads() {
                    stripe
                        .nodes
                        .for_each(head, |spte| all.leaves.push((spte, gfn, level)));
                }
                for first in region.chains() {
                    let (mut at, mut steps) = (Some(first), 0);
                    while let Some(id) = at {
                        all.hashed.push((id, region.first()));
                        let next = pool.get(id).hash_next.load(Ordering::Relaxed);
                        at = next.checked_sub(1).map(PageId);
                        steps += 1;
                        if steps > most {
                            all.endless.push(region.first());
                            break;
                        }
                    }
                }
            }
        });
        for id in pool.ids(&call.locks) {
            if let Some(page) = pool.try_get(id).filter(|p| p.has_table()) {
                all.collect_parents(call, id, page);
            }
        }
        all.leaves.sort_unstable_by_key(|(spte, ..)| spte.raw());
        all.parents.sort_unstable_by_key(|(spte, _)| spte.raw());
        all.hashed.sort_unstable();
        all
    }

    fn collect_parents<H: Host, O: Observer>(
        &mut self,
        call: &Call<'_, H, O>,
        id: PageId,
        page: &Page,
    ) {
        let stripe = call.mmu.frames.lock(&call.locks, page.gfn());
        let head = page.parents();
        stripe
            .nodes
            .for_each(head, |spte| self.parents.push((spte, id)));
    }

    /// Returns whether a gfn is recorded as tracked.
    pub(super) fn is_tracked(&self, gfn: Gfn) -> bool {
        self.regions
            .get(&gfn.align_down(Level::L2).get())
            .is_some_and(|r| bit(&r.tracked, gfn))
    }

    /// Returns whether a write through `space` to every frame of the block is in the dirty log, or nothing is logged.
    pub(super) fn is_logged(&self, gfn: Gfn, level: Level, space: AddressSpace) -> bool {
        let first = gfn.align_down(Level::L2).get();
        let count = level.frames().div_ceil(Level::L2.frames());
        (0..count).all(|i| {
            let words = self
                .regions
                .get(&(first + i * Level::L2.frames()))
                .and_then(|r| r.dirty[space as usize]);
            words.is_none_or(|words| {
                if level == Level::L1 {
                    bit(&words, gfn)
                } else {
                    words == [u64::MAX; 8]
                }
            })
        })
    }
}

/// Returns a gfn's bit in the words of its region.
pub(super) fn bit(words: &[u64; 8], gfn: Gfn) -> bool {
    let at = (gfn.get() % Level::L2.frames()) as usize;
    words[at / 64] >> (at % 64) & 1 != 0
}
