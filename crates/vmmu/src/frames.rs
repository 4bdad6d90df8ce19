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
use crate::region::{BLOCK, CHAINS, REGION, Words};
use crate::rmap::{Node, Nodes};
use crate::role::Role;
use crate::slots::AddressSpace;
use crate::sync::{Apart, Counter, Guard, Kind, Lock, Locks, Ordering};
use alloc::boxed::Box;
use alloc::vec::Vec;

pub(crate) use crate::region::Region;

/// What one gfn lock guards.
#[derive(Debug, Default)]
pub(crate) struct Stripe {
    regions: Vec<Region>,
    pub(crate) nodes: Nodes,
}

/// What the records of 64 frames that are or were mapped may take, in bytes.
const BLOCK_SHARE: usize = 8 * BLOCK;
/// What one word for each of them takes.
const WORDS: usize = size_of::<[u32; BLOCK]>();

/// What an operation lacks; allocate it without locks ([`Frames::provide`]), then repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Missing {
    /// The region's record.
    Region(Gfn),
    /// The reverse maps around the gfn.
    Heads(Gfn),
    /// Room for more than one mapping of each gfn around the gfn.
    Aliases(Gfn),
    /// Nodes in the gfn's stripe.
    Nodes(Gfn),
}

impl Missing {
    /// Returns the frame that it is about.
    pub(crate) const fn gfn(self) -> Gfn {
        let (Self::Region(gfn) | Self::Heads(gfn) | Self::Aliases(gfn) | Self::Nodes(gfn)) = self;
        gfn
    }
}

/// What became of a request for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Provided {
    /// There is memory now: repeat the operation.
    Memory,
    /// The bound on bookkeeping is reached: another entry has to make room.
    Bound,
}

/// The frame records of a VM.
#[derive(Debug)]
pub(crate) struct Frames {
    stripes: Box<[Apart<Lock<Stripe>>]>,
    /// What is free of the bound on bookkeeping, in bytes, but for what pages leave of theirs; negative, in two's complement, if more is needed of that.
    slack: Counter,
    /// What nodes take beside the first ones of each stripe, in bytes.
    chained: Counter,
    /// The stripe to look at next for nodes to shed.
    hand: Counter,
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
        self.region(gfn)
            .is_some_and(|(region, nodes)| region.drop_leaf(nodes, gfn, level, spte))
    }

    /// Adds a parent's SPTE to a page.
    pub(crate) fn add_parent(&mut self, page: &Page, spte: SpteRef) -> Result<(), Missing> {
        let mut head = page.parents();
        self.nodes
            .insert(&mut head, spte)
            .map_err(|_| Missing::Nodes(page.gfn()))?;
        page.set_parents(head);
        Ok(())
    }

    /// Takes a parent's SPTE off a page.
    pub(crate) fn drop_parent(&mut self, page: &Page, spte: SpteRef) -> bool {
        let mut head = page.parents();
        let hit = self.nodes.remove(&mut head, spte);
        page.set_parents(head);
        hit
    }

    /// Counts the entries that protecting a gfn changes: its leaves, and large ones over it; of more than `most` it counts one more.
    pub(crate) fn entries_of(&mut self, gfn: Gfn, most: usize) -> usize {
        let Some((region, nodes)) = self.region(gfn) else {
            return 0;
        };
        let mut seen = 0;
        for head in [region.large, region.small(gfn)] {
            nodes.any(head, |_| {
                seen += 1;
                seen > most
            });
        }
        seen.min(most + 1)
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
        all.resize_with(stripes, || Apart(Lock::new(Kind::Gfn, Stripe::default())));
        Ok(Self {
            stripes: all.into_boxed_slice(),
            slack: Counter::new(
                ((stripes * size_of::<Apart<Lock<Stripe>>>()) as u64).wrapping_neg(),
            ),
            chained: Counter::new(0),
            hand: Counter::new(0),
        })
    }

    #[inline]
    fn stripe(&self, gfn: Gfn) -> usize {
        // Neighbouring regions get neighbouring stripes: a large guest spreads evenly.
        (gfn.get() / REGION) as usize & (self.stripes.len() - 1)
    }

    /// Takes the gfn lock of `gfn`.
    #[inline(always)]
    pub(crate) fn lock<'a>(&'a self, locks: &'a Locks, gfn: Gfn) -> Guard<'a, Stripe> {
        self.stripes[self.stripe(gfn)].lock(locks)
    }

    /// Allocates what an operation lacked; nodes only if the bound allows them, to which pages contribute `spare` bytes. No lock is held.
    pub(crate) fn provide(
        &self,
        locks: &Locks,
        missing: Missing,
        spare: u64,
    ) -> Result<Provided, Error> {
        locks.assert_none();
        match missing {
            Missing::Region(gfn) => self.provide_region(locks, gfn)?,
            Missing::Heads(gfn) => {
                if self.provide_words(locks, gfn, Region::give_heads)? {
                    self.earn(BLOCK_SHARE - WORDS);
                }
            }
            Missing::Aliases(gfn) => {
                if self.provide_words(locks, gfn, Region::give_aliases)? {
                    self.spend(WORDS);
                }
            }
            Missing::Nodes(gfn) => return self.provide_nodes(locks, gfn, spare),
        }
        Ok(Provided::Memory)
    }

    fn spend(&self, bytes: usize) {
        self.slack.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    fn earn(&self, bytes: usize) {
        self.slack.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Tells whether the bound on bookkeeping leaves `bytes`, to which pages contribute `spare`, or nothing can be shed for it.
    pub(crate) fn is_within_bound(&self, spare: u64, bytes: i64) -> bool {
        let slack = self.slack.load(Ordering::Relaxed).wrapping_add(spare) as i64;
        slack >= bytes || self.chained.load(Ordering::Relaxed) == 0
    }

    fn chain(&self, bytes: usize) {
        self.spend(bytes);
        self.chained.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn unchain(&self, bytes: usize) {
        self.earn(bytes);
        self.chained.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Returns a gfn of the next stripe that has more nodes than the first ones, if any has.
    pub(crate) fn rich_stripe(&self, locks: &Locks) -> Option<Gfn> {
        (0..self.stripes.len()).find_map(|_| {
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % self.stripes.len() as u64;
            let stripe = self.stripes[at as usize].lock(locks);
            (stripe.nodes.len() > Nodes::GROWTH).then(|| Gfn::new(at * REGION))
        })
    }

    /// Takes the nodes beyond the first ones away from a stripe, if they are free. No lock is held.
    pub(crate) fn shrink(&self, locks: &Locks, gfn: Gfn) -> Result<(), Error> {
        let room = Nodes::room(Nodes::GROWTH)?;
        let old = self.lock(locks, gfn).nodes.shrink(room);
        // The guard is a temporary: it is gone before what is left over is dropped. So below.
        if old.capacity() > Nodes::GROWTH {
            self.unchain((old.capacity() - Nodes::GROWTH) * size_of::<Node>());
        }
        Ok(())
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
                    // With the nodes that its stripe may have whatever the bound says.
                    self.spend(size_of::<Region>() + Nodes::GROWTH * size_of::<Node>());
                    return Ok(());
                }
                stripe.regions.capacity()
            };
            let mut room: Vec<Region> = Vec::new();
            room.try_reserve_exact(capacity + (capacity / 4).max(1))?;
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

    /// Allocates words for the reverse maps around a gfn; tells whether they were needed.
    fn provide_words(
        &self,
        locks: &Locks,
        gfn: Gfn,
        give: impl Fn(&mut Region, Gfn, Words) -> Option<Words>,
    ) -> Result<bool, Error> {
        let mut left = Some(zeroes()?);
        if let Some((region, _)) = self.lock(locks, gfn).region(gfn) {
            left = left.take().and_then(|words| give(region, gfn, words));
        }
        Ok(left.is_none())
    }

    fn provide_nodes(&self, locks: &Locks, gfn: Gfn, spare: u64) -> Result<Provided, Error> {
        let have = self.lock(locks, gfn).nodes.len();
        let count = Nodes::larger(have);
        // The first ones were paid for with the region.
        let bytes = if have == 0 {
            0
        } else {
            (count - have) * size_of::<Node>()
        };
        self.chain(bytes);
        if bytes != 0 && !self.is_within_bound(spare, 0) && !mutant!(BoundIgnored) {
            self.unchain(bytes);
            return Ok(Provided::Bound);
        }
        let room = Nodes::room(count).inspect_err(|_| self.unchain(bytes))?;
        let old = self.lock(locks, gfn).nodes.grow(room);
        // As much as was allocated: somebody else was faster.
        if old.capacity() >= count {
            self.unchain(bytes);
        }
        Ok(Provided::Memory)
    }

    /// Prepares the dirty log of a gfn's region. No lock is held.
    pub(crate) fn provide_dirty(
        &self,
        locks: &Locks,
        gfn: Gfn,
        space: AddressSpace,
    ) -> Result<(), Error> {
        self.provide_region(locks, gfn)?;
        let mut left = Some(zeroes::<[u64; 8], 2>()?);
        if let Some((region, _)) = self.lock(locks, gfn).region(gfn) {
            left = left.take().and_then(|log| region.give_log(space, log));
        }
        drop(left);
        Ok(())
    }

    /// Forgets what a region's pages have to do with its frames: a mistake (rule R5).
    pub(crate) fn forget(&self, locks: &Locks, gfn: Gfn) {
        if let Some((region, _)) = self.lock(locks, gfn).region(gfn) {
            region.forget();
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
        let mut bytes = self.stripes.len() * size_of::<Apart<Lock<Stripe>>>();
        self.for_each_stripe(locks, |s| {
            bytes += s.nodes.bytes() + s.regions.capacity() * size_of::<Region>();
            bytes += s.regions.iter().map(Region::bytes).sum::<usize>();
        });
        bytes as u64
    }
}

/// Allocates zeroes.
fn zeroes<T: Copy + Default, const N: usize>() -> Result<Box<[T; N]>, Error> {
    let mut words = Vec::new();
    words.try_reserve_exact(N)?;
    words.resize(N, T::default());
    words
        .into_boxed_slice()
        .try_into()
        .map_err(|_| Error::OutOfMemory)
}
