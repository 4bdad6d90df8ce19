//! What changes while programs run, as one moment has it: guest tables and their history, where guest frames are, the log's account.
//!
//! Key type: [`State`]. Guest frame `n` begins as host frame `n` + [`OFFSET`] and moves, alone or with its 2 MiB, to frames that were never used before.

use core::ops::Range;
use std::collections::BTreeMap;

use vmmu::addr::Level;
use vmmu_spec::{Memory, Physical, Width, WriteLog};

use crate::usage::Usage;

/// Guest frames that a guest's tables may name.
pub(crate) const FRAMES: u64 = 0x600;
/// All guest frames, those that only programs without guest tables use included.
pub(crate) const ALL_FRAMES: u64 = 1 << 22;
/// Frames of 2 MiB.
pub(crate) const BLOCK: u64 = 512;
const OFFSET: u64 = 0x1_0000;
/// The first host frame for what moves.
const SPARE: u64 = 1 << 24;

/// Guest memory begins as zeros.
#[derive(Debug)]
pub(crate) struct Zeros;

impl Memory for Zeros {
    fn read(&self, at: Physical, _: Width) -> Option<u64> {
        (at.get() >> 12 < FRAMES).then_some(0)
    }
}

/// What changes; no other thread runs while it is borrowed.
#[derive(Debug)]
pub(crate) struct State {
    /// What guest tables hold and held.
    pub(crate) log: WriteLog<Zeros>,
    /// Where guest frames are that have moved alone.
    moved: BTreeMap<u64, u64>,
    /// The first host frame of the blocks that have moved as a whole.
    blocks: BTreeMap<u64, u64>,
    /// The next host frame that was never used, the first of a block.
    next: u64,
    /// Frames that are taken back: nobody uses them, and nothing is stored in them.
    pub(crate) taken: Range<u64>,
    /// How often each frame of data was written, and what of that has been copied after a harvest.
    pub(crate) versions: BTreeMap<u64, u64>,
    pub(crate) copied: BTreeMap<u64, u64>,
    /// What processors have used.
    pub(crate) usage: Usage,
    /// The host allows less, now and then, than it could.
    pub(crate) is_fickle: bool,
    /// How often frames were looked up.
    pub(crate) look_ups: u64,
    /// Tables that nobody has.
    pub(crate) free: Vec<u64>,
}

impl State {
    pub(crate) fn new(tables: impl Iterator<Item = u64>) -> Self {
        Self {
            log: WriteLog::new(Zeros),
            moved: BTreeMap::new(),
            blocks: BTreeMap::new(),
            next: SPARE,
            taken: 0..0,
            versions: BTreeMap::new(),
            copied: BTreeMap::new(),
            usage: Usage::default(),
            is_fickle: true,
            look_ups: 0,
            free: tables.collect(),
        }
    }

    /// Returns the host frame of a guest frame.
    pub(crate) fn backing(&self, gfn: u64) -> u64 {
        let of_block = |first: &u64| first + gfn % BLOCK;
        let in_block = self.blocks.get(&(gfn / BLOCK)).map(of_block);
        let moved = self.moved.get(&gfn).copied();
        moved.or(in_block).unwrap_or(OFFSET + gfn)
    }

    /// Returns the guest frame that a host frame backs now.
    pub(crate) fn backed(&self, pfn: u64) -> Option<u64> {
        let alone = self.moved.iter().find(|(_, at)| **at == pfn);
        let with_block = |(block, first): (&u64, &u64)| {
            let at = pfn.checked_sub(*first).filter(|at| *at < BLOCK)?;
            Some(block * BLOCK + at)
        };
        let home = pfn.checked_sub(OFFSET).filter(|gfn| *gfn < ALL_FRAMES);
        alone
            .map(|(gfn, _)| *gfn)
            .or_else(|| self.blocks.iter().find_map(with_block))
            .or(home)
            .filter(|gfn| self.backing(*gfn) == pfn)
    }

    /// Returns the largest leaf that may map a guest frame: its block, while that is in one piece.
    pub(crate) fn largest(&self, gfn: u64) -> Level {
        let first = gfn - gfn % BLOCK;
        if self.moved.range(first..first + BLOCK).next().is_none() {
            Level::L2
        } else {
            Level::L1
        }
    }

    /// Moves guest frames, one or a whole block, to host frames that were never used.
    pub(crate) fn move_frames(&mut self, frames: Range<u64>) {
        let (first, new) = (frames.start, self.next);
        self.next += BLOCK;
        if frames.end - first < BLOCK {
            self.moved
                .extend(frames.map(|gfn| (gfn, new + gfn - first)));
        } else {
            self.moved.retain(|gfn, _| !frames.contains(gfn));
            self.blocks.insert(first / BLOCK, new);
        }
    }

    /// Returns an entry of a guest table.
    pub(crate) fn entry(&self, gpa: u64) -> u64 {
        self.log.read(Physical::new(gpa), Width::Eight).unwrap_or(0)
    }

    /// Stores an entry of a guest table.
    pub(crate) fn store(&mut self, gpa: u64, value: u64) {
        self.log.write(Physical::new(gpa), Width::Eight, value);
    }
}
