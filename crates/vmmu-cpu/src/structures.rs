//! The paging-structure caches: where a walk may begin without reading the levels above.
//!
//! Key types: [`StructureEntry`], [`Structures`]. As [`crate::tlb`], of which this is the sibling
//! (Intel SDM vol. 3, 4.10.3; APM vol. 2, 5.5.3).
//!
//! Invariants:
//! 1. An entry of level n holds what a level-n table entry said: the table of level n-1, and the
//!    rights of the walk so far.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::access::Rights;
use crate::addr::{Frame, Hpa, Level};
use crate::format::Format;
use crate::mem::pool::Moment;
use crate::tlb::Tag;

/// A cached table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StructureEntry {
    /// Whose it is.
    pub tag: Tag,
    /// The format of the tables it came from; a walk of another format does not use it.
    pub format: Format,
    /// The level of the table entry.
    pub level: Level,
    /// The first address that the entry covers.
    pub base: u64,
    /// The table that the entry points at, as the walk addresses it: guest-physical if there is
    /// nested paging.
    pub(crate) table: u64,
    /// Where that table is.
    pub hpa: Hpa,
    /// The nested tables let the processor write that table.
    pub writable: bool,
    /// What the levels down to this one allow.
    pub rights: Rights,
    /// The root table of the walk (host-physical; of the nested tables if there are).
    pub root: Frame,
    /// When the entry was read from memory.
    pub since: Moment,
}

impl StructureEntry {
    fn same(&self, other: &Self) -> bool {
        Self {
            since: other.since,
            ..*self
        } == *other
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    tag: u64,
    base: u64,
}

/// The caches of all levels.
#[derive(Debug, Default)]
pub(crate) struct Structures {
    map: FxHashMap<Key, SmallVec<[StructureEntry; 1]>>,
    entries: usize,
}

/// Returns the first address that an entry of `level` covers.
#[inline]
pub(crate) fn base(format: Format, level: Level, address: u64) -> u64 {
    let shift = format.shift(level);
    address >> shift << shift
}

impl Structures {
    fn key(tag: Tag, format: Format, level: Level, address: u64) -> Key {
        Key {
            tag: tag.packed(),
            base: base(format, level, address) | u64::from(level.get()),
        }
    }

    /// Returns an entry of `level` for `address`, any with the same chance.
    pub(crate) fn pick(
        &self,
        tag: Tag,
        format: Format,
        level: Level,
        address: u64,
        rng: &mut fastrand::Rng,
    ) -> Option<StructureEntry> {
        let entries = self.map.get(&Self::key(tag, format, level, address))?;
        let mut found = None;
        let mut seen = 0;
        for entry in entries.iter().filter(|entry| entry.format == format) {
            seen += 1;
            if seen == 1 || rng.u32(0..seen) == 0 {
                found = Some(*entry);
            }
        }
        found
    }

    pub(crate) fn insert(&mut self, entry: StructureEntry) {
        let key = Self::key(entry.tag, entry.format, entry.level, entry.base);
        let entries = self.map.entry(key).or_default();
        if !entries.iter().any(|old| old.same(&entry)) {
            entries.push(entry);
            self.entries += 1;
        }
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Keeps the entries for which `keep` says so.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&StructureEntry) -> bool) {
        let count = &mut self.entries;
        *count = 0;
        self.map.retain(|_, entries| {
            entries.retain(|entry| keep(entry));
            *count += entries.len();
            !entries.is_empty()
        });
    }

    /// Drops the entries that a walk of `address` for `tag` might begin at.
    pub(crate) fn drop_address(&mut self, tag: Tag, address: u64) {
        // All formats but one agree on what an entry of a level covers.
        for (format, top) in [(Format::Bits32, Level::L2), (Format::Long5, Level::L5)] {
            for level in [Level::L2, Level::L3, Level::L4, Level::L5] {
                if level <= top {
                    let gone = self.map.remove(&Self::key(tag, format, level, address));
                    self.entries -= gone.map_or(0, |entries| entries.len());
                }
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.entries = 0;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &StructureEntry> {
        self.map.values().flatten()
    }
}
