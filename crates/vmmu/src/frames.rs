//! Frame records, keyed by gfn (rule R5): which pages stand for a gfn, which SPTEs map it, whether it is tracked, whether it is dirty.
//!
//! Key types: [`Frames`] (all of a VM), [`Stripe`] (what one gfn lock guards), [`Region`] (2 MiB of guest memory), [`Missing`] (what has
//! to be allocated before the operation can be repeated).
//!
//! A gfn lock guards a stripe: the regions whose number hashes to it. Shadow leaves are at most 2 MiB, so that one lock covers a frame at
//! both sizes. Memory for a region, its reverse maps and their nodes is allocated without locks and moved in under the lock.
//!
//! Invariants:
//! 1. Records outlive slots and serve all address spaces.
//! 2. `tracked` has a gfn's bit set exactly if a live page of the gfn is COUNTED.
//! 3. `live` is the number of live indirect pages in the region: while it is not 0, nothing large maps the region (rule R6).

use crate::Error;
use crate::addr::{Gfn, Level};
use crate::page::{Flags, Page, PageId, SpteRef};
use crate::pool::Pool;
use crate::rmap::{Head, Nodes};
use crate::role::Role;
use crate::slots::AddressSpace;
use crate::sync::{Guard, Kind, Lock, Locks, Ordering};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The hash chains of a region.
const CHAINS: usize = 16;
/// gfns whose reverse maps are allocated together.
const BLOCK: usize = 64;
/// The gfns of a region.
const REGION: u64 = Level::L2.frames();

/// What one gfn lock guards.
#[derive(Debug, Default)]
pub(crate) struct Stripe {
    regions: Vec<Region>,
    pub(crate) nodes: Nodes,
}

/// The records of 2 MiB of guest memory.
#[derive(Debug)]
pub(crate) struct Region {
    number: u64,
    /// Live indirect pages whose gfn lies here: the large-page counter.
    pub(crate) live: u32,
    /// 2 MiB leaves that map the region.
    pub(crate) large: Head,
    small: [Vec<Head>; REGION as usize / BLOCK],
    chains: [u32; CHAINS],
    tracked: [u64; 8],
    /// By address space: pages written since the last harvest, and those that a TLB may still be writing to.
    dirty: [Option<Box<[[u64; 8]; 2]>>; 2],
}

/// What an operation lacks; allocate it without locks ([`Frames::provide`]), then repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Missing {
    /// The region's record.
    Region(Gfn),
    /// The reverse maps around the gfn.
    Heads(Gfn),
    /// Nodes for chains in the gfn's stripe.
    Nodes(Gfn),
}

/// The frame records of a VM.
#[derive(Debug)]
pub(crate) struct Frames {
    stripes: Box<[Lock<Stripe>]>,
}

impl Region {
    fn new(number: u64) -> Self {
        Self {
            number,
            live: 0,
            large: Head::default(),
            small: core::array::from_fn(|_| Vec::new()),
            chains: [0; CHAINS],
            tracked: [0; 8],
            dirty: [None, None],
        }
    }

    #[inline]
    fn bit(gfn: Gfn) -> (usize, u64) {
        let at = (gfn.get() % REGION) as usize;
        (at / 64, 1 << (at % 64))
    }

    /// Tells whether a counted page stands for the gfn: no writable SPTE may map it.
    #[inline]
    pub(crate) fn is_tracked(&self, gfn: Gfn) -> bool {
        let (word, bit) = Self::bit(gfn);
        self.tracked[word] & bit != 0
    }

    pub(crate) fn set_tracked(&mut self, gfn: Gfn, tracked: bool) {
        let (word, bit) = Self::bit(gfn);
        if tracked {
            self.tracked[word] |= bit;
        } else {
            self.tracked[word] &= !bit;
        }
    }

    /// Returns the reverse map of a 4 KiB gfn, if there is memory for it.
    #[inline]
    pub(crate) fn small(&self, gfn: Gfn) -> Head {
        let at = (gfn.get() % REGION) as usize;
        self.small[at / BLOCK]
            .get(at % BLOCK)
            .copied()
            .unwrap_or_default()
    }

    #[inline]
    pub(crate) fn small_mut(&mut self, gfn: Gfn) -> Option<&mut Head> {
        let at = (gfn.get() % REGION) as usize;
        self.small[at / BLOCK].get_mut(at % BLOCK)
    }

    /// Returns the reverse map for leaves of `level` that map the block at `gfn`, if there is memory for it.
    #[inline]
    pub(crate) fn head_mut(&mut self, gfn: Gfn, level: Level) -> Option<&mut Head> {
        if level == Level::L1 {
            self.small_mut(gfn)
        } else {
            Some(&mut self.large)
        }
    }

    /// Tells whether writes through `space` are logged.
    #[inline]
    pub(crate) fn logs(&self, space: AddressSpace) -> bool {
        self.dirty[space as usize].is_some()
    }

    fn set_dirty(&mut self, which: usize, gfn: Gfn, level: Level, space: AddressSpace) {
        if let Some(words) = self.dirty[space as usize].as_deref_mut() {
            let words = &mut words[which];
            if level == Level::L1 {
                let (word, bit) = Self::bit(gfn);
                words[word] |= bit;
            } else {
                *words = [u64::MAX; 8];
            }
        }
    }

    /// Records a write to the gfn, if writes are logged.
    #[inline]
    pub(crate) fn mark_dirty(&mut self, gfn: Gfn, level: Level, space: AddressSpace) {
        if self.logs(space) {
            self.set_dirty(0, gfn, level, space);
        }
    }

    /// Records a write through an entry that is gone, and that a TLB may repeat until it is flushed.
    pub(crate) fn mark_written(&mut self, gfn: Gfn, level: Level, space: AddressSpace) {
        self.set_dirty(0, gfn, level, space);
        self.set_dirty(1, gfn, level, space);
    }

    /// Records once more what TLBs may have written before a flush that is over now.
    pub(crate) fn redirty(&mut self) {
        for [dirty, late] in self.dirty.iter_mut().flatten().map(|b| &mut **b) {
            for (d, l) in dirty.iter_mut().zip(late) {
                *d |= *l;
            }
        }
    }

    /// Forgets late writers: nobody's flush is owed.
    pub(crate) fn forget_late(&mut self) {
        for words in self.dirty.iter_mut().flatten() {
            words[1] = [0; 8];
        }
    }

    /// Takes the dirty log of the region.
    pub(crate) fn take_dirty(&mut self, space: AddressSpace, mask: &[u64; 8]) -> [u64; 8] {
        let mut taken = [0; 8];
        if let Some(words) = self.dirty[space as usize].as_deref_mut() {
            for (t, (w, m)) in taken.iter_mut().zip(words[0].iter_mut().zip(mask)) {
                *t = *w & m;
                *w &= if mutant!(HarvestTakesMore) { 0 } else { !m };
            }
        }
        taken
    }

    /// Returns the region's first frame.
    pub(crate) fn first(&self) -> Gfn {
        Gfn::new(self.number * REGION)
    }

    /// Returns a bit for each tracked gfn.
    pub(crate) fn tracked(&self) -> [u64; 8] {
        self.tracked
    }

    /// Returns a bit for each gfn written through `space` since the last harvest, if that is logged.
    pub(crate) fn dirty(&self, space: AddressSpace) -> Option<[u64; 8]> {
        self.dirty[space as usize].as_deref().map(|words| words[0])
    }

    /// Returns the first page of each hash chain that has one.
    pub(crate) fn chains(&self) -> impl Iterator<Item = PageId> + '_ {
        self.chains
            .iter()
            .filter_map(|c| c.checked_sub(1))
            .map(PageId)
    }

    /// Returns every reverse map that is not empty, with what its SPTEs map.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (Gfn, Level, Head)> + '_ {
        let first = self.first();
        let small = (0..REGION).map(move |i| first.wrapping_add(i));
        small
            .map(|gfn| (gfn, Level::L1, self.small(gfn)))
            .chain([(first, Level::L2, self.large)])
            .filter(|(_, _, head)| *head != Head::default())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self
                .small
                .iter()
                .map(|b| b.capacity() * size_of::<Head>())
                .sum::<usize>()
            + self.dirty.iter().flatten().count() * 128
    }
}

impl Stripe {
    /// Returns the record of the gfn's region.
    #[inline]
    pub(crate) fn region(&mut self, gfn: Gfn) -> Option<(&mut Region, &mut Nodes)> {
        let number = gfn.get() / REGION;
        let nodes = &mut self.nodes;
        self.regions
            .iter_mut()
            .find(|r| r.number == number)
            .map(|r| (r, nodes))
    }

    /// Takes an SPTE out of the reverse map of what it maps.
    pub(crate) fn drop_leaf(&mut self, gfn: Gfn, level: Level, spte: SpteRef) -> bool {
        self.region(gfn).is_some_and(|(region, nodes)| {
            region
                .head_mut(gfn, level)
                .is_some_and(|h| nodes.remove(h, spte))
        })
    }

    /// Adds a parent's SPTE to a page.
    pub(crate) fn add_parent(&mut self, page: &Page, spte: SpteRef) -> Result<(), Missing> {
        let mut head = Head(page.parents.load(Ordering::Relaxed));
        self.nodes
            .insert(&mut head, spte)
            .map_err(|_| Missing::Nodes(page.gfn()))?;
        page.parents.store(head.0, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a parent's SPTE off a page.
    pub(crate) fn drop_parent(&mut self, page: &Page, spte: SpteRef) -> bool {
        let mut head = Head(page.parents.load(Ordering::Relaxed));
        let hit = self.nodes.remove(&mut head, spte);
        page.parents.store(head.0, Ordering::Relaxed);
        hit
    }

    fn chain(gfn: Gfn) -> usize {
        gfn.get() as usize % CHAINS
    }

    /// Visits the live pages of a gfn until `visit` says true.
    pub(crate) fn any_page(
        &mut self,
        pool: &Pool,
        gfn: Gfn,
        mut visit: impl FnMut(PageId, &Page) -> bool,
    ) -> bool {
        let Some((region, _)) = self.region(gfn) else {
            return false;
        };
        let mut at = region.chains[Self::chain(gfn)];
        while let Some(id) = at.checked_sub(1) {
            let page = pool.get(PageId(id));
            at = page.hash_next.load(Ordering::Relaxed);
            if page.gfn() == gfn && visit(PageId(id), page) {
                return true;
            }
        }
        false
    }

    /// Visits the live pages of all gfns in the region of `gfn` until `visit` says true.
    pub(crate) fn any_page_in_region(
        &mut self,
        pool: &Pool,
        gfn: Gfn,
        mut visit: impl FnMut(PageId, &Page) -> bool,
    ) {
        let chains = self
            .region(gfn)
            .map_or([0; CHAINS], |(region, _)| region.chains);
        for mut at in chains {
            while let Some(id) = at.checked_sub(1) {
                let page = pool.get(PageId(id));
                at = page.hash_next.load(Ordering::Relaxed);
                if visit(PageId(id), page) {
                    return;
                }
            }
        }
    }

    /// Finds the live page of a gfn with a role.
    pub(crate) fn find(&mut self, pool: &Pool, gfn: Gfn, role: Role) -> Option<PageId> {
        let mut found = None;
        self.any_page(pool, gfn, |id, page| {
            let hit = page.role() == role;
            if hit {
                found = Some(id);
            }
            hit
        });
        found
    }

    /// Hashes a page: from here on it is found.
    pub(crate) fn hash(&mut self, id: PageId, page: &Page) -> Result<(), Missing> {
        let gfn = page.gfn();
        let (region, _) = self.region(gfn).ok_or(Missing::Region(gfn))?;
        let chain = &mut region.chains[Self::chain(gfn)];
        page.hash_next.store(*chain, Ordering::Relaxed);
        *chain = id.0 + 1;
        if !page.role().is_direct() {
            region.live += 1;
        }
        Ok(())
    }

    /// Takes a page out of the hash.
    pub(crate) fn unhash(&mut self, pool: &Pool, id: PageId, page: &Page) {
        let gfn = page.gfn();
        let Some((region, _)) = self.region(gfn) else {
            return;
        };
        let next = page.hash_next.load(Ordering::Relaxed);
        let mut at = region.chains[Self::chain(gfn)];
        if at == id.0 + 1 {
            region.chains[Self::chain(gfn)] = next;
        } else {
            while let Some(before) = at.checked_sub(1) {
                let link = &pool.get(PageId(before)).hash_next;
                at = link.load(Ordering::Relaxed);
                if at == id.0 + 1 {
                    link.store(next, Ordering::Relaxed);
                    break;
                }
            }
        }
        if !page.role().is_direct() && !mutant!(CountNotLowered) {
            region.live -= 1;
        }
    }

    /// Recomputes whether a gfn is tracked, from its pages.
    pub(crate) fn retrack(&mut self, pool: &Pool, gfn: Gfn) {
        let counted = self.any_page(pool, gfn, |_, page| page.flags().contains(Flags::COUNTED));
        if let Some((region, _)) = self.region(gfn) {
            region.set_tracked(gfn, counted);
        }
    }

    /// Returns every region.
    pub(crate) fn regions_mut(&mut self) -> impl Iterator<Item = &mut Region> {
        self.regions.iter_mut()
    }

    /// Returns every region, for the auditor.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter()
    }
}

impl Frames {
    /// Makes the records, `stripes` locks of them.
    pub(crate) fn new(stripes: usize) -> Result<Self, Error> {
        let mut all = Vec::new();
        all.try_reserve_exact(stripes)?;
        all.resize_with(stripes, || Lock::new(Kind::Gfn, Stripe::default()));
        Ok(Self {
            stripes: all.into_boxed_slice(),
        })
    }

    #[inline]
    fn stripe(&self, gfn: Gfn) -> usize {
        // Neighbouring regions get neighbouring stripes: a large guest spreads evenly.
        (gfn.get() / REGION) as usize & (self.stripes.len() - 1)
    }

    /// Takes the gfn lock of `gfn`.
    #[inline]
    pub(crate) fn lock<'a>(&'a self, locks: &'a Locks, gfn: Gfn) -> Guard<'a, Stripe> {
        self.stripes[self.stripe(gfn)].lock(locks)
    }

    /// Allocates what an operation lacked. No lock is held.
    pub(crate) fn provide(&self, locks: &Locks, missing: Missing) -> Result<(), Error> {
        locks.assert_none();
        match missing {
            Missing::Region(gfn) => self.provide_region(locks, gfn),
            Missing::Heads(gfn) => self.provide_heads(locks, gfn),
            Missing::Nodes(gfn) => {
                let have = self.lock(locks, gfn).nodes.len();
                let room = Nodes::larger(have)?;
                // The guard is a temporary: it is gone before the left-over vector is dropped.
                let old = self.lock(locks, gfn).nodes.grow(room);
                drop(old);
                Ok(())
            }
        }
    }

    fn provide_region(&self, locks: &Locks, gfn: Gfn) -> Result<(), Error> {
        loop {
            let capacity = {
                let mut stripe = self.lock(locks, gfn);
                if stripe.region(gfn).is_some() {
                    return Ok(());
                }
                if stripe.regions.len() < stripe.regions.capacity() {
                    stripe.regions.push(Region::new(gfn.get() / REGION));
                    return Ok(());
                }
                stripe.regions.capacity()
            };
            let mut room: Vec<Region> = Vec::new();
            room.try_reserve_exact(capacity + capacity.max(1))?;
            let old = {
                let mut stripe = self.lock(locks, gfn);
                if stripe.regions.capacity() < room.capacity() {
                    room.append(&mut stripe.regions);
                    core::mem::swap(&mut stripe.regions, &mut room);
                }
                room
            };
            drop(old);
        }
    }

    fn provide_heads(&self, locks: &Locks, gfn: Gfn) -> Result<(), Error> {
        let mut block = Vec::new();
        block.try_reserve_exact(BLOCK)?;
        block.resize(BLOCK, Head::default());
        let mut stripe = self.lock(locks, gfn);
        if let Some((region, _)) = stripe.region(gfn) {
            let at = (gfn.get() % REGION) as usize / BLOCK;
            if region.small[at].is_empty() {
                core::mem::swap(&mut region.small[at], &mut block);
            }
        }
        drop(stripe);
        Ok(())
    }

    /// Prepares the dirty log of a gfn's region. No lock is held.
    pub(crate) fn provide_dirty(
        &self,
        locks: &Locks,
        gfn: Gfn,
        space: AddressSpace,
    ) -> Result<(), Error> {
        self.provide_region(locks, gfn)?;
        let mut words: Vec<[u64; 8]> = Vec::new();
        words.try_reserve_exact(2)?;
        words.resize(2, [0; 8]);
        let one: Box<[[u64; 8]; 2]> = words
            .into_boxed_slice()
            .try_into()
            .map_err(|_| Error::OutOfMemory)?;
        let mut spare = Some(one);
        let mut stripe = self.lock(locks, gfn);
        if let Some((region, _)) = stripe.region(gfn)
            && region.dirty[space as usize].is_none()
        {
            region.dirty[space as usize] = spare.take();
        }
        drop(stripe);
        Ok(())
    }

    /// Forgets what a region's pages have to do with its frames: a mistake (rule R5).
    pub(crate) fn forget(&self, locks: &Locks, gfn: Gfn) {
        if let Some((region, _)) = self.lock(locks, gfn).region(gfn) {
            region.tracked = [0; 8];
            region.live = 0;
        }
    }

    /// Returns how many stripes there are.
    pub(crate) fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// Visits every stripe, one lock at a time.
    pub(crate) fn for_each_stripe(&self, locks: &Locks, mut visit: impl FnMut(&mut Stripe)) {
        for stripe in &self.stripes {
            visit(&mut stripe.lock(locks));
        }
    }

    /// Returns the bytes that the records take.
    pub(crate) fn bytes(&self, locks: &Locks) -> u64 {
        let mut bytes = self.stripes.len() * size_of::<Lock<Stripe>>();
        self.for_each_stripe(locks, |s| {
            bytes += s.nodes.bytes() + s.regions.iter().map(Region::bytes).sum::<usize>();
        });
        bytes as u64
    }
}
