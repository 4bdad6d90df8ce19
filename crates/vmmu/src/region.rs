//! The records of 2 MiB of guest memory: reverse maps, chains of pages, tracking, dirty bits.
//!
//! Key type: [`Region`]. Neighbours: `frames` has one for each 2 MiB that needs it, `rmap` what a reverse map is.
//!
//! Invariants:
//! 1. The first word of a gfn's reverse map is 0 if nothing maps the gfn; the other is then 0 too.
//! 2. Memory comes in blocks of 64 gfns, four bytes a gfn: one for the first SPTE that maps each, another one for what else does, once needed.

use crate::addr::{Gfn, Level};
use crate::frames::Missing;
use crate::page::{PageId, SpteRef};
use crate::rmap::{Head, Nodes};
use crate::slots::AddressSpace;
use alloc::boxed::Box;

/// The hash chains of a region.
pub(crate) const CHAINS: usize = 16;
/// gfns whose reverse maps are allocated together.
pub(crate) const BLOCK: usize = 64;
/// The gfns of a region.
pub(crate) const REGION: u64 = Level::L2.frames();

/// A word for each gfn of a block.
pub(crate) type Words = Box<[u32; BLOCK]>;

/// The pages written since the last harvest, and those that a TLB may still be writing to.
pub(crate) type Log = Box<[[u64; 8]; 2]>;

/// The reverse maps of 64 gfns.
#[derive(Debug, Default)]
struct Block {
    first: Option<Words>,
    rest: Option<Words>,
}

/// The records of 2 MiB of guest memory.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) number: u64,
    /// Live indirect pages whose gfn lies here: the large-page counter.
    pub(crate) live: u32,
    /// 2 MiB leaves that map the region.
    pub(crate) large: Head,
    small: [Block; REGION as usize / BLOCK],
    pub(crate) chains: [u32; CHAINS],
    tracked: [u64; 8],
    /// By address space.
    dirty: [Option<Log>; 2],
}

impl Region {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            live: 0,
            large: Head::default(),
            small: core::array::from_fn(|_| Block::default()),
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

    /// Returns the reverse map of a 4 KiB gfn.
    #[inline]
    pub(crate) fn small(&self, gfn: Gfn) -> Head {
        let (block, at) = Self::place(gfn);
        let word = |words: &Option<Words>| words.as_deref().map_or(0, |words| words[at]);
        Head {
            first: word(&self.small[block].first),
            rest: word(&self.small[block].rest),
        }
    }

    #[inline]
    fn place(gfn: Gfn) -> (usize, usize) {
        let at = (gfn.get() % REGION) as usize;
        (at / BLOCK, at % BLOCK)
    }

    /// Adds an SPTE to the reverse map of the 4 KiB gfn that it maps.
    #[inline(always)]
    pub(crate) fn add_small(
        &mut self,
        nodes: &mut Nodes,
        gfn: Gfn,
        spte: SpteRef,
    ) -> Result<(), Missing> {
        let (block, at) = Self::place(gfn);
        let block = &mut self.small[block];
        let first = &mut block.first.as_deref_mut().ok_or(Missing::Heads(gfn))?[at];
        if *first == 0 {
            *first = spte.raw();
            return Ok(());
        }
        let rest = &mut block.rest.as_deref_mut().ok_or(Missing::Aliases(gfn))?[at];
        let mut head = Head {
            first: *first,
            rest: *rest,
        };
        nodes
            .insert(&mut head, spte)
            .map_err(|_| Missing::Nodes(gfn))?;
        (*first, *rest) = (head.first, head.rest);
        Ok(())
    }

    /// Adds a leaf of `level` to the reverse map of the block at `gfn`.
    #[inline]
    pub(crate) fn add_leaf(
        &mut self,
        nodes: &mut Nodes,
        gfn: Gfn,
        level: Level,
        spte: SpteRef,
    ) -> Result<(), Missing> {
        if level == Level::L1 {
            return self.add_small(nodes, gfn, spte);
        }
        nodes
            .insert(&mut self.large, spte)
            .map_err(|_| Missing::Nodes(gfn))
    }

    /// Takes a leaf of `level` out of the reverse map of the block at `gfn`, and tells whether it was there.
    #[inline]
    pub(crate) fn drop_leaf(
        &mut self,
        nodes: &mut Nodes,
        gfn: Gfn,
        level: Level,
        spte: SpteRef,
    ) -> bool {
        if level > Level::L1 {
            return nodes.remove(&mut self.large, spte);
        }
        let mut head = self.small(gfn);
        let hit = nodes.remove(&mut head, spte);
        self.set_small(gfn, head);
        hit
    }

    #[inline]
    fn set_small(&mut self, gfn: Gfn, head: Head) {
        let (block, at) = Self::place(gfn);
        let block = &mut self.small[block];
        if let Some(first) = block.first.as_deref_mut() {
            first[at] = head.first;
        }
        // Without memory for it, the set had one member at most.
        if let Some(rest) = block.rest.as_deref_mut() {
            rest[at] = head.rest;
        }
    }

    /// Moves in memory for the first word of the reverse maps around a gfn, and returns what is left over.
    pub(crate) fn give_heads(&mut self, gfn: Gfn, words: Words) -> Option<Words> {
        let (block, _) = Self::place(gfn);
        put(&mut self.small[block].first, words)
    }

    /// Moves in memory for the other word of the reverse maps around a gfn, and returns what is left over.
    pub(crate) fn give_aliases(&mut self, gfn: Gfn, words: Words) -> Option<Words> {
        let (block, _) = Self::place(gfn);
        put(&mut self.small[block].rest, words)
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
            .filter(|(_, _, head)| !head.is_empty())
    }

    /// Returns the bytes that the region takes, apart from itself.
    pub(crate) fn bytes(&self) -> usize {
        let blocks = self.small.iter().flat_map(|b| [&b.first, &b.rest]);
        blocks.flatten().count() * size_of::<[u32; BLOCK]>()
            + self.dirty.iter().flatten().count() * size_of::<[[u64; 8]; 2]>()
    }

    /// Forgets what the region's pages have to do with its frames: a mistake (rule R5).
    pub(crate) fn forget(&mut self) {
        self.tracked = [0; 8];
        self.live = 0;
    }

    /// Moves in a dirty log, and returns what is left over.
    pub(crate) fn give_log(&mut self, space: AddressSpace, log: Log) -> Option<Log> {
        put(&mut self.dirty[space as usize], log)
    }
}

/// Puts something in its place, or returns it if there is something already.
fn put<T>(place: &mut Option<T>, thing: T) -> Option<T> {
    if place.is_some() {
        return Some(thing);
    }
    *place = Some(thing);
    None
}
