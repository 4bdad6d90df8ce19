//! A shadow page: one table of SPTEs, and the bookkeeping beside it.
//!
//! Key types: [`Page`], [`PageId`] (its number in the pool), [`SpteRef`] (one slot of one page), [`Record`] (what a slot maps or mapped last).
//! Neighbours: `pool` owns the pages, `frames` finds them by gfn, `edge` writes their slots.
//!
//! | field | written under | read |
//! |---|---|---|
//! | gfn, role, table | before the page is hashed, not again until a grace period after its death | any time under a guard |
//! | flags, generation, parents, hash link | the gfn lock of the page's gfn (flags of nested tables: see `prune`) | flags: any time |
//! | records, presence bits | the table lock (a record: and the target's gfn lock) | records: under either lock |
//! | SPTEs | appear: table lock and target's gfn lock; disappear: target's gfn lock | any time |
//!
//! Invariants:
//! 1. A set presence bit means that the slot may be present; a clear one that it is not.
//! 2. A slot's record stays after the SPTE is removed; it says what a TLB may still hold.

use crate::addr::{Gfn, Index, Level, MAX_FRAME, Pfn, TABLE_SLOTS};
use crate::prefetch::Window;
use crate::rmap::Head;
use crate::role::Role;
use crate::slotset::SlotSet;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Kind, Lock, Ordering};
use alloc::vec::Vec;
use core::num::NonZeroU32;

/// A page's number in the pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct PageId(pub(crate) u32);

impl PageId {
    /// The largest number that fits a [`SpteRef`].
    pub(crate) const MAX: u32 = (1 << 22) - 3;
}

/// One slot of one page, in 31 bits, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SpteRef(NonZeroU32);

impl SpteRef {
    #[inline]
    pub(crate) const fn new(page: PageId, slot: Index) -> Self {
        // The increment makes it non-zero: a page number is at most 2^22 - 3.
        match NonZeroU32::new(((page.0 + 1) << 9) | slot.get() as u32) {
            Some(raw) => Self(raw),
            None => Self(NonZeroU32::MAX),
        }
    }
    #[inline]
    pub(crate) const fn from_raw(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
    #[inline]
    pub(crate) const fn raw(self) -> u32 {
        self.0.get()
    }
    #[inline]
    pub(crate) const fn page(self) -> PageId {
        PageId((self.0.get() >> 9) - 1)
    }
    #[inline]
    pub(crate) const fn slot(self) -> Index {
        Index::truncate(self.0.get() as usize & 511)
    }
}

impl core::fmt::Debug for SpteRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "page {} slot {}", self.page().0, self.slot().get())
    }
}

/// What a slot maps, or mapped last (rule R1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// Nothing yet.
    Empty,
    /// A leaf that maps the block of the page's level starting at this gfn.
    Leaf(Gfn),
    /// A link to a child page.
    Link(PageId),
}

/// The record of nothing: the frame number that no slot may have.
const EMPTY: u64 = MAX_FRAME;
/// What a page may take beside its table, in bytes.
pub(crate) const PAGE_BYTES: usize = 3 << 10;
/// A page without a table.
const NO_TABLE: u64 = u64::MAX;

impl Record {
    /// Packs the record into 40 bits. Above level 1 a leaf's gfn is a multiple of 512, so that bit 0 tells a link.
    #[inline]
    const fn pack(self, level: Level) -> u64 {
        match self {
            Self::Empty => EMPTY,
            Self::Leaf(gfn) => gfn.get(),
            Self::Link(child) => {
                debug_assert!(level.get() > 1);
                (child.0 as u64) << 1 | 1
            }
        }
    }

    #[inline]
    const fn unpack(packed: u64, level: Level) -> Self {
        if packed == EMPTY {
            Self::Empty
        } else if level.get() > 1 && packed & 1 == 1 {
            Self::Link(PageId((packed >> 1) as u32))
        } else {
            Self::Leaf(Gfn::new(packed))
        }
    }
}

bitflags::bitflags! {
    /// The state of a page. Changed under the gfn lock of the page's gfn only; that of a nested table, which is ALIVE and CLEAN or nothing, under table
    /// locks (`prune`).
    ///
    /// | alive | counted | clean | |
    /// |---|---|---|---|
    /// | 0 | 0 | 0 | dead: unhashed, being emptied or waiting for its grace period |
    /// | 1 | 0 | 0 | new, or unsync: the guest may write the table unseen |
    /// | 1 | 1 | 0 | being made clean |
    /// | 1 | 1 | 1 | clean: in use, the guest table is write-tracked |
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Flags: u32 {
        /// Hashed; may be linked and filled.
        const ALIVE = 1 << 0;
        /// Counts for write tracking of its gfn.
        const COUNTED = 1 << 1;
        /// Agrees with the guest table, which nobody can write unseen.
        const CLEAN = 1 << 2;
        /// On the list of unsync pages.
        const LISTED = 1 << 3;
        /// Used as a root.
        const ROOT = 1 << 4;
        /// About to die, and too many entries link it to be taken off in one section: it is linked no more, and all else is as before.
        const LEAVING = 1 << 5;
    }
}

/// How many words a presence bitmap has.
pub(crate) const PRESENT_WORDS: usize = TABLE_SLOTS.div_ceil(64);

/// Parts of a table, 64 slots each, in which some entry is in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Doubt(u8);

impl Doubt {
    /// All parts.
    pub(crate) const EVERYWHERE: Self = Self(u8::MAX);

    /// Tells whether there is none.
    #[inline]
    pub(crate) fn is_nowhere(self) -> bool {
        self.0 == 0
    }
    /// Tells whether a slot lies in such a part.
    #[inline]
    pub(crate) fn covers(self, slot: Index) -> bool {
        self.0 >> (slot.get() / 64) & 1 != 0
    }
    /// Adds the part in which a slot lies.
    #[inline]
    pub(crate) fn add(&mut self, slot: Index) {
        self.0 |= 1 << (slot.get() / 64);
    }
    /// Takes the part of presence word `word` away: its entries are looked at.
    #[inline]
    pub(crate) fn clear(&mut self, word: usize) {
        self.0 &= !(1 << word);
    }
}

/// What the table lock guards besides the slots.
#[derive(Debug, Default)]
pub(crate) struct TableState {
    /// What the guest table held when its entries were last derived, if a copy is kept: 512 words.
    pub(crate) copy: Option<alloc::boxed::Box<[u64; 512]>>,
    /// Where some entry follows from no single word that the guest table held: the copy cannot tell whether it has to change.
    pub(crate) doubt: Doubt,
    /// What was prefetched with the last fault.
    pub(crate) window: Window,
    /// Slots that were found behind their guest entry when they were last derived, and may be installed anew. A hint.
    pub(crate) behind: SlotSet,
}

/// One shadow page.
///
/// The first cache line has what every fault on the way through reads, and few write; the next ones what each fault in the table writes.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Page {
    gfn: AtomicU64,
    table: AtomicU64,
    role: AtomicU32,
    flags: AtomicU32,
    /// Raised by each unsync of the gfn (gfn lock).
    pub(crate) generation: AtomicU32,
    /// How often the slot of the pool was used: tells a page from its successor.
    pub(crate) incarnation: AtomicU32,
    /// How many vCPUs have the page loaded as their root.
    pub(crate) references: AtomicU32,
    /// Unsyncs and reported writes since the page was last seen in use.
    pub(crate) writes: AtomicU32,
    /// The next page of the hash chain (gfn lock), as number + 1.
    pub(crate) hash_next: AtomicU32,
    /// The SPTEs that link the page (gfn lock).
    parents: [AtomicU32; 2],
    /// Free list, debt or list of the retired, as number + 1.
    pub(crate) chain: AtomicU32,
    /// Not 0 if the page was found since reclaim last looked.
    pub(crate) used: AtomicU8,
    /// How many syncs in a row found nothing to change.
    pub(crate) quiet: AtomicU8,
    /// The epoch in which the page was retired, see `retire`.
    pub(crate) stamp: AtomicU64,
    /// The number of pages made before this one: tells old pages from new ones while everything is zapped.
    pub(crate) birth: AtomicU64,
    /// The epoch as of which the tree below this root is clean.
    pub(crate) clean_at: AtomicU64,
    /// The table lock.
    pub(crate) lock: Lock<TableState>,
    present: [AtomicU64; PRESENT_WORDS],
    /// The slots whose record is not [`Record::Empty`]: what a new life has to reset (table lock).
    recorded: [AtomicU64; PRESENT_WORDS],
    record_low: [AtomicU32; TABLE_SLOTS],
    record_high: [AtomicU8; TABLE_SLOTS],
}

/// What is written under the table lock is not in the line that all faults read.
#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(core::mem::offset_of!(Page, lock) >= 64);

impl Page {
    pub(crate) fn new() -> Self {
        Self {
            gfn: AtomicU64::new(0),
            table: AtomicU64::new(NO_TABLE),
            role: AtomicU32::new(1),
            flags: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            incarnation: AtomicU32::new(0),
            hash_next: AtomicU32::new(0),
            parents: [AtomicU32::new(0), AtomicU32::new(0)],
            references: AtomicU32::new(0),
            writes: AtomicU32::new(0),
            quiet: AtomicU8::new(0),
            chain: AtomicU32::new(0),
            stamp: AtomicU64::new(0),
            birth: AtomicU64::new(0),
            used: AtomicU8::new(0),
            clean_at: AtomicU64::new(0),
            present: core::array::from_fn(|_| AtomicU64::new(0)),
            recorded: core::array::from_fn(|_| AtomicU64::new(0)),
            record_low: core::array::from_fn(|_| AtomicU32::new(EMPTY as u32)),
            record_high: core::array::from_fn(|_| AtomicU8::new((EMPTY >> 32) as u8)),
            lock: Lock::new(Kind::Table, TableState::default()),
        }
    }

    /// Makes pages for the pool.
    pub(crate) fn chunk<const N: usize>() -> Result<alloc::boxed::Box<[Self; N]>, crate::Error> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(N)?;
        pages.resize_with(N, Self::new);
        pages
            .into_boxed_slice()
            .try_into()
            .map_err(|_| crate::Error::OutOfMemory)
    }

    /// Gives a page taken from the pool its identity. Nobody else can reach it yet.
    pub(crate) fn assign(&self, gfn: Gfn, role: Role, table: Pfn) {
        self.gfn.store(gfn.get(), Ordering::Relaxed);
        self.role.store(role.raw(), Ordering::Relaxed);
        self.table.store(table.get(), Ordering::Relaxed);
        self.hash_next.store(0, Ordering::Relaxed);
        self.set_parents(Head::default());
        self.writes.store(0, Ordering::Relaxed);
        self.clean_at.store(0, Ordering::Relaxed);
        self.incarnation.fetch_add(1, Ordering::Relaxed);
        for word in &self.present {
            word.store(0, Ordering::Relaxed);
        }
        for (i, word) in self.recorded.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            word.store(0, Ordering::Relaxed);
            while bits != 0 {
                let slot = (i * 64 + bits.trailing_zeros() as usize) % TABLE_SLOTS;
                bits &= bits - 1;
                self.record_low[slot].store(EMPTY as u32, Ordering::Relaxed);
                self.record_high[slot].store((EMPTY >> 32) as u8, Ordering::Relaxed);
            }
        }
    }

    #[inline]
    pub(crate) fn gfn(&self) -> Gfn {
        Gfn::new(self.gfn.load(Ordering::Relaxed))
    }
    #[inline]
    pub(crate) fn role(&self) -> Role {
        Role::from_raw(self.role.load(Ordering::Relaxed))
    }
    #[inline]
    pub(crate) fn table(&self) -> Pfn {
        Pfn::new(self.table.load(Ordering::Relaxed))
    }
    /// Tells whether the page has a table: it is in use, or waits for its grace period.
    pub(crate) fn has_table(&self) -> bool {
        self.table.load(Ordering::Relaxed) != NO_TABLE
    }
    /// Returns the SPTEs that link the page. Under the gfn lock of its gfn, or to see whether there are any.
    #[inline]
    pub(crate) fn parents(&self) -> Head {
        Head {
            first: self.parents[0].load(Ordering::Relaxed),
            rest: self.parents[1].load(Ordering::Relaxed),
        }
    }
    /// Changes the SPTEs that link the page. Under the gfn lock of its gfn.
    #[inline]
    pub(crate) fn set_parents(&self, head: Head) {
        self.parents[0].store(head.first, Ordering::Relaxed);
        self.parents[1].store(head.rest, Ordering::Relaxed);
    }
    /// Reads the flags; Acquire, so that who sees ALIVE sees the identity stored before it.
    #[inline]
    pub(crate) fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.flags.load(Ordering::Acquire))
    }
    /// Changes the flags. The caller holds the gfn lock of the page's gfn, or for a nested table the table lock that `prune` names.
    #[inline]
    pub(crate) fn set_flags(&self, flags: Flags) {
        self.flags.store(flags.bits(), Ordering::Release);
    }
    #[inline]
    pub(crate) fn is_alive(&self) -> bool {
        self.flags().contains(Flags::ALIVE)
    }

    /// Tells whether the page is the one that a walk demands, and alive.
    #[inline]
    pub(crate) fn is_for(&self, gfn: Gfn, role: Role) -> bool {
        self.is_alive() && self.gfn() == gfn && self.role() == role
    }

    /// Reads a slot's record. Meaningful under the table lock, or under the gfn lock of a target whose rmap names the slot.
    #[inline]
    pub(crate) fn record(&self, slot: Index) -> Record {
        self.record_at(slot, self.role().level())
    }

    /// As [`Page::record`], for a caller that knows the page's level.
    #[inline]
    pub(crate) fn record_at(&self, slot: Index, level: Level) -> Record {
        let low = u64::from(self.record_low[slot.get()].load(Ordering::Relaxed));
        let high = u64::from(self.record_high[slot.get()].load(Ordering::Relaxed));
        Record::unpack(high << 32 | low, level)
    }

    /// Writes a slot's record and its presence bit. Under the table lock and the target's gfn lock, before the SPTE is stored.
    #[inline]
    pub(crate) fn set_record(&self, slot: Index, record: Record) {
        self.set_record_at(slot, self.role().level(), record);
    }

    /// As [`Page::set_record`], for a caller that knows the page's level.
    #[inline(always)]
    pub(crate) fn set_record_at(&self, slot: Index, level: Level, record: Record) {
        let packed = record.pack(level);
        let (low, high) = (packed as u32, (packed >> 32) as u8);
        // Only what changes is stored: the lines are other processors' too, which install in other slots.
        if self.record_low[slot.get()].load(Ordering::Relaxed) != low {
            self.record_low[slot.get()].store(low, Ordering::Relaxed);
        }
        if self.record_high[slot.get()].load(Ordering::Relaxed) != high {
            self.record_high[slot.get()].store(high, Ordering::Relaxed);
        }
        let (word, bit) = (slot.get() / 64, 1 << (slot.get() % 64));
        // One writer at a time: the table lock is held.
        let set = |bits: &AtomicU64| {
            let old = bits.load(Ordering::Relaxed);
            if old & bit == 0 {
                bits.store(old | bit, Ordering::Relaxed);
            }
        };
        set(&self.recorded[word]);
        if !mutant!(NoPresenceBit) {
            set(&self.present[word]);
        }
    }

    /// Takes the table's frame away from the page, if it has one: the caller returns it to the embedder.
    pub(crate) fn take_table(&self) -> Option<Pfn> {
        let table = self.table.swap(NO_TABLE, Ordering::Relaxed);
        (table != NO_TABLE).then(|| Pfn::new(table))
    }

    /// Returns a word of the presence bitmap, a superset of what is present.
    #[inline]
    pub(crate) fn present_word(&self, word: usize) -> u64 {
        self.present[word].load(Ordering::Relaxed)
    }

    /// Clears presence bits of slots seen empty. Under the table lock.
    #[inline]
    pub(crate) fn clear_present(&self, word: usize, bits: u64) {
        let old = self.present[word].load(Ordering::Relaxed);
        self.present[word].store(old & !bits, Ordering::Relaxed);
    }

    /// Returns how many slots may be present.
    pub(crate) fn population(&self) -> u32 {
        let words = self.present.iter().map(|w| w.load(Ordering::Relaxed));
        // Without an instruction for it counting is dear, and most words of a sparse page are empty.
        words.filter(|w| *w != 0).map(u64::count_ones).sum()
    }
}

#[cfg(test)]
mod records_fit_forty_bits {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for (record, level) in [
            (Record::Empty, Level::L1),
            (Record::Empty, Level::L3),
            (Record::Leaf(Gfn::new(MAX_FRAME - 1)), Level::L1),
            (Record::Leaf(Gfn::new(1 << 32)), Level::L1),
            (Record::Leaf(Gfn::new(0)), Level::L2),
            (Record::Leaf(Gfn::new((1 << 39) + 512)), Level::L2),
            (Record::Link(PageId(0)), Level::L2),
            (Record::Link(PageId(PageId::MAX)), Level::L4),
        ] {
            assert_eq!(Record::unpack(record.pack(level), level), record);
        }
    }

    #[test]
    fn a_new_life_begins_without_records() {
        let page = Page::new();
        let role = Role::from_raw(1);
        for life in 0..2 {
            page.assign(Gfn::new(life), role, Pfn::new(life));
            for slot in 0..TABLE_SLOTS {
                assert_eq!(page.record(Index::truncate(slot)), Record::Empty);
            }
            for slot in [0, 1, TABLE_SLOTS - 1] {
                page.set_record(Index::truncate(slot), Record::Leaf(Gfn::new(1 << 33)));
            }
        }
    }

    #[test]
    fn a_reference_names_its_slot() {
        let r = SpteRef::new(PageId(PageId::MAX), Index::truncate(511));
        assert_eq!(
            (r.page(), r.slot()),
            (PageId(PageId::MAX), Index::truncate(511))
        );
        assert_eq!(SpteRef::from_raw(r.raw()), Some(r));
        assert!(r.raw() < 1 << 31);
    }

    #[test]
    fn bookkeeping_stays_below_three_kib() {
        assert!(size_of::<Page>() <= PAGE_BYTES, "{}", size_of::<Page>());
    }
}
