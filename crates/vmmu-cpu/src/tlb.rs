//! The translation lookaside buffer: several entries for one address may live.
//!
//! Key types: [`Tag`] (whose translation it is), [`TlbEntry`], [`Tlb`]. [`crate::walk`] fills it,
//! [`crate::invalidate`] empties it, [`crate::query`] looks into it.
//!
//! Invariants:
//! 1. An entry leaves only by an invalidation, an eviction or a fault: never because memory
//!    changed or because another entry for the address came.
//! 2. Entries that differ only in being dirty are one entry.
//! 3. Its owner keeps it from growing for ever: see [`crate::Cpu::set_capacity`].

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::access::Rights;
use crate::addr::{Asid, Frame, Gpa, Hpa, PageSize, Pcid};
use crate::mem::pool::Moment;
use crate::recent::Recent;

/// What a translation goes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// From linear addresses: all the way to host-physical ones.
    Linear,
    /// From guest-physical addresses to host-physical ones.
    Physical,
}

/// Number that stands for an EPT root in a [`Tag`]; 0 without EPT. Its owner is the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct EptNumber(pub(crate) u16);

/// Whose translation a cached entry is: entries of other tags are not used.
///
/// Linear translations belong to ASID (or VPID), PCID and EPT root, or to any PCID if global;
/// guest-physical ones to the ASID (NPT) or to the EPT root alone (APM vol. 2, 15.16; Intel SDM
/// vol. 3, 29.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    stage: Stage,
    ept: EptNumber,
    asid: Asid,
    pcid: Option<Pcid>,
}

impl Tag {
    #[inline]
    pub(crate) const fn linear(asid: Asid, pcid: Pcid, ept: EptNumber) -> Self {
        Self {
            stage: Stage::Linear,
            ept,
            asid,
            pcid: Some(pcid),
        }
    }

    #[inline]
    pub(crate) const fn physical(asid: Asid, ept: EptNumber) -> Self {
        let asid = if ept.0 == 0 { asid } else { Asid::new(0) };
        Self {
            stage: Stage::Physical,
            ept,
            asid,
            pcid: None,
        }
    }

    /// Returns the tag of global translations beside this one.
    #[inline]
    pub(crate) const fn globally(self) -> Self {
        Self { pcid: None, ..self }
    }

    /// Returns the stage.
    #[must_use]
    #[inline]
    pub const fn stage(self) -> Stage {
        self.stage
    }

    /// Returns the ASID or VPID (0 for guest-physical translations of EPT).
    #[must_use]
    pub const fn asid(self) -> Asid {
        self.asid
    }

    /// Returns the PCID, unless the translation is global or guest-physical.
    #[must_use]
    pub const fn pcid(self) -> Option<Pcid> {
        self.pcid
    }

    pub(crate) const fn ept(self) -> EptNumber {
        self.ept
    }

    /// Says whether the translation holds for every PCID.
    #[must_use]
    #[inline]
    pub const fn is_global(self) -> bool {
        matches!((self.stage, self.pcid), (Stage::Linear, None))
    }

    /// Packs the tag into the high part of a hash key.
    #[inline]
    pub(crate) const fn packed(self) -> u64 {
        let pcid = match self.pcid {
            Some(pcid) => pcid.get() as u64,
            None => 0x1000,
        };
        (self.stage as u64) << 48
            | (self.ept.0 as u64) << 32
            | (self.asid.get() as u64) << 16
            | pcid
    }
}

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TlbEntry {
    /// Whose translation it is.
    pub tag: Tag,
    /// The first (linear or guest-physical) address of the page.
    pub page: u64,
    /// The size of the page.
    pub size: PageSize,
    /// The size of the page that it is a part of, by the tables at CR3: larger if the nested tables map it in parts. Whatever drops one part drops
    /// all of them (Intel SDM vol. 3, 4.10.4.1, INVLPG).
    pub whole: PageSize,
    /// The first host-physical address of the page.
    pub hpa: Hpa,
    /// The first guest-physical address of the page.
    pub gpa: Gpa,
    /// What the tables at CR3 allow.
    pub rights: Rights,
    /// What the nested tables allow; everything without nested paging.
    pub nested: Rights,
    /// The protection key.
    pub key: u8,
    /// A write needs no walk: the dirty bits that it would set were seen set.
    pub dirty: bool,
    /// The root table of the walk (host-physical; of the nested tables if there are).
    pub root: Frame,
    /// When the entry was read from memory.
    pub since: Moment,
}

impl TlbEntry {
    /// Returns the host-physical address of `address`, which lies in the page.
    #[must_use]
    #[inline]
    pub const fn translate(&self, address: u64) -> Hpa {
        self.hpa.plus(address & (self.size.bytes() - 1))
    }

    /// Says whether the page holds `address`.
    #[must_use]
    #[inline]
    pub const fn covers(&self, address: u64) -> bool {
        address & !(self.size.bytes() - 1) == self.page
    }

    /// Says whether the page that this is a part of holds `address`.
    #[must_use]
    #[inline]
    pub const fn is_part_of(&self, address: u64) -> bool {
        (address ^ self.page) & !(self.whole.bytes() - 1) == 0
    }

    /// Says whether writes may go through the entry while CR0.WP is set (without WP, supervisor
    /// writes go through any entry that the nested tables don't stop).
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.rights.contains(Rights::WRITE) && self.nested.contains(Rights::WRITE)
    }

    /// Says whether the entries are the same but for the time and the dirty bit.
    fn same(&self, other: &Self) -> bool {
        Self {
            dirty: other.dirty,
            since: other.since,
            ..*self
        } == *other
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    tag: u64,
    page: u64,
}

impl Key {
    fn new(tag: Tag, address: u64, size: PageSize) -> Self {
        // The size sits in the bits that a page's base leaves free.
        Self {
            tag: tag.packed(),
            page: address & !(size.bytes() - 1) | size as u64,
        }
    }
}

/// The buffer itself.
#[derive(Debug, Default)]
pub(crate) struct Tlb {
    map: FxHashMap<Key, SmallVec<[TlbEntry; 1]>>,
    /// How many keys there are, by size and by being global: spares probing for absent sizes.
    keys: [[usize; 2]; 4],
    entries: usize,
    /// The larger pages that entries are parts of; also some whose parts are gone.
    parted: FxHashSet<Key>,
    recent: Recent,
}

impl Tlb {
    /// Returns one of the entries for `address`, any with the same chance.
    #[inline]
    pub(crate) fn pick(
        &mut self,
        tag: Tag,
        address: u64,
        rng: &mut fastrand::Rng,
    ) -> Option<TlbEntry> {
        match self.recent.get(tag, address) {
            Some(entry) => Some(*entry),
            None => self.pick_any(tag, address, rng),
        }
    }

    fn pick_any(&mut self, tag: Tag, address: u64, rng: &mut fastrand::Rng) -> Option<TlbEntry> {
        let mut found = None;
        let mut seen = 0;
        self.each(tag, address, |entry| {
            seen += 1;
            if seen == 1 || rng.u32(0..seen) == 0 {
                found = Some(*entry);
            }
        });
        if let (1, Some(entry)) = (seen, &found) {
            self.recent.put(tag, address, entry);
        }
        found
    }

    /// Calls `with` for every entry that may translate `address` for `tag`.
    pub(crate) fn each(&self, tag: Tag, address: u64, mut with: impl FnMut(&TlbEntry)) {
        let global = tag.globally();
        for size in PageSize::ALL {
            let [own, shared] = self.keys[size as usize];
            if own > 0 {
                self.map
                    .get(&Key::new(tag, address, size))
                    .into_iter()
                    .flatten()
                    .for_each(&mut with);
            }
            // For guest-physical tags the global tag is the tag itself.
            if shared > 0 && global != tag {
                self.map
                    .get(&Key::new(global, address, size))
                    .into_iter()
                    .flatten()
                    .for_each(&mut with);
            }
        }
    }

    pub(crate) fn insert(&mut self, entry: TlbEntry) {
        let entries = self
            .map
            .entry(Key::new(entry.tag, entry.page, entry.size))
            .or_default();
        if entries.is_empty() {
            self.keys[entry.size as usize][usize::from(entry.tag.is_global())] += 1;
        }
        if entry.whole != entry.size {
            self.parted
                .insert(Key::new(entry.tag, entry.page, entry.whole));
        }
        match entries.iter_mut().find(|old| old.same(&entry)) {
            // The older moment stays: it says how long the frame must have been kept.
            Some(old) => old.dirty |= entry.dirty,
            None => {
                entries.push(entry);
                self.entries += 1;
            }
        }
        self.recent.forget(entry.page, entry.size);
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Drops every entry that may translate `address` for `tag`, global ones included, and the other parts of its page.
    pub(crate) fn drop_address(&mut self, tag: Tag, address: u64) {
        self.drop_parts(tag, address);
        for size in PageSize::ALL {
            for tag in [tag, tag.globally()] {
                if self.keys[size as usize][usize::from(tag.is_global())] == 0 {
                    continue;
                }
                if let Some(gone) = self.map.remove(&Key::new(tag, address, size)) {
                    self.keys[size as usize][usize::from(tag.is_global())] -= 1;
                    self.entries -= gone.len();
                    self.recent.forget(address, size);
                }
            }
        }
    }

    /// Drops the parts of a larger page around `address`.
    fn drop_parts(&mut self, tag: Tag, address: u64) {
        if self.parted.is_empty() {
            return;
        }
        for size in PageSize::ALL {
            for tag in [tag, tag.globally()] {
                if self.parted.remove(&Key::new(tag, address, size)) {
                    self.retain(|entry| {
                        entry.tag != tag || entry.whole != size || !entry.is_part_of(address)
                    });
                }
            }
        }
    }

    /// Keeps the entries for which `keep` says so.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&TlbEntry) -> bool) {
        let keys = &mut self.keys;
        let count = &mut self.entries;
        *count = 0;
        self.map.retain(|_, entries| {
            let first = entries
                .first()
                .map(|e| (e.size as usize, usize::from(e.tag.is_global())));
            entries.retain(|entry| keep(entry));
            *count += entries.len();
            if let (true, Some((size, global))) = (entries.is_empty(), first) {
                keys[size][global] -= 1;
            }
            !entries.is_empty()
        });
        self.recent.clear();
    }

    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.keys = Default::default();
        self.entries = 0;
        self.parted.clear();
        self.recent.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &TlbEntry> {
        self.map.values().flatten()
    }
}
