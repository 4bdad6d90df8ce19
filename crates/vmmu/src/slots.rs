//! Memory slots: which guest frames are RAM, read-only RAM, or nothing (a device's).
//!
//! Key types: [`SlotConfig`] (what an embedder asks for), [`SlotTable`] (all slots of a VM), [`SlotView`] (a copy that a fault works with).
//! Neighbours: [`crate::host`] names the memory behind a slot, `invalidate` removes what is mapped from a slot that changes.
//!
//! A slot's fields are atomics behind a sequence count, so that a look-up takes no lock and writes nothing.
//!
//! Invariants:
//! 1. Slots of one address space do not overlap.
//! 2. `sequence` is odd while a slot changes; a look-up that saw it odd or changed starts over.
//! 3. A slot's generation is never reused: what was looked up in a slot that has changed since cannot be installed.

use crate::Error;
use crate::addr::{Gfn, Level, MAX_FRAME};
use crate::host::{BackedFrame, MemoryToken};
use crate::sync::{AtomicU64, Counter, Kind, Lock, Locks, Ordering, fence, pause};

/// How many slots a VM may have, all address spaces together.
pub const MAX_SLOTS: usize = if cfg!(loom) {
    2
} else if cfg!(shuttle) {
    4
} else {
    64
};

/// A set of slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AddressSpace {
    /// What the guest sees in normal operation.
    #[default]
    Normal = 0,
    /// What it sees in system-management mode.
    SystemManagement = 1,
}

/// A slot's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub(crate) u16);

bitflags::bitflags! {
    /// What a slot is like.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SlotFlags: u8 {
        /// The guest cannot write: a write is answered with [`crate::FaultOutcome::EmulateMmio`].
        const READ_ONLY = 1 << 0;
        /// Writes are recorded in the dirty log.
        const LOG_DIRTY = 1 << 1;
    }
}

/// A slot as an embedder asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotConfig {
    /// The address space.
    pub space: AddressSpace,
    /// The first guest frame.
    pub base: Gfn,
    /// The length in 4 KiB frames.
    pub frames: u64,
    /// The embedder's name for the memory behind it.
    pub token: MemoryToken,
    /// Its flags.
    pub flags: SlotFlags,
}

/// A slot as it was when it was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotView {
    pub(crate) base: Gfn,
    pub(crate) frames: u64,
    pub(crate) token: MemoryToken,
    pub(crate) flags: SlotFlags,
    pub(crate) id: SlotId,
}

impl SlotView {
    #[inline]
    pub(crate) fn contains(&self, gfn: Gfn) -> bool {
        gfn.get().wrapping_sub(self.base.get()) < self.frames
    }

    #[inline]
    pub(crate) fn backed(&self, gfn: Gfn) -> BackedFrame {
        BackedFrame {
            token: self.token,
            frame: gfn.get().wrapping_sub(self.base.get()),
            gfn,
        }
    }

    /// Returns the largest page around `gfn` that does not leave the slot (scenario B6).
    #[inline]
    pub(crate) fn largest(&self, gfn: Gfn, at_most: Level) -> Level {
        let mut level = at_most;
        while level > Level::L1 {
            let start = gfn.align_down(level).get();
            let inside =
                start >= self.base.get() && start + level.frames() <= self.base.get() + self.frames;
            match level.below() {
                Some(below) if !inside && !mutant!(LargeOverSlotEdge) => level = below,
                _ => break,
            }
        }
        level
    }
}

#[derive(Debug, Default)]
struct Fields {
    /// The length in frames; zero: the slot is free.
    frames: AtomicU64,
    base: AtomicU64,
    token: AtomicU64,
    /// Flags in the low byte, the address space above.
    kind: AtomicU64,
}

/// Where a vCPU found a slot last. Its claimant is the only one who reads or writes it.
#[derive(Debug)]
pub(crate) struct SlotHint {
    /// The sequence in which it was found; odd: nothing was.
    sequence: Counter,
    base: Counter,
    frames: Counter,
    token: Counter,
    /// As in [`Fields`], and the slot's number from bit 16 on.
    kind: Counter,
}

impl SlotHint {
    pub(crate) fn new() -> Self {
        Self {
            sequence: Counter::new(1),
            base: Counter::new(0),
            frames: Counter::new(0),
            token: Counter::new(0),
            kind: Counter::new(0),
        }
    }

    #[inline]
    fn view(&self) -> SlotView {
        let kind = self.kind.load(Ordering::Relaxed);
        SlotView {
            base: Gfn::new(self.base.load(Ordering::Relaxed)),
            frames: self.frames.load(Ordering::Relaxed),
            token: MemoryToken(self.token.load(Ordering::Relaxed)),
            flags: SlotFlags::from_bits_truncate(kind as u8),
            id: SlotId((kind >> 16) as u16),
        }
    }

    #[inline]
    fn space(&self) -> AddressSpace {
        space_of(self.kind.load(Ordering::Relaxed) >> 8 & 0xff)
    }

    fn keep(&self, view: &SlotView, space: AddressSpace, sequence: u64) {
        let kind = u64::from(view.id.0) << 16 | (space as u64) << 8 | u64::from(view.flags.bits());
        self.base.store(view.base.get(), Ordering::Relaxed);
        self.frames.store(view.frames, Ordering::Relaxed);
        self.token.store(view.token.0, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.sequence.store(sequence, Ordering::Relaxed);
    }
}

#[inline]
fn space_of(number: u64) -> AddressSpace {
    if number == 0 {
        AddressSpace::Normal
    } else {
        AddressSpace::SystemManagement
    }
}

/// All slots of a VM.
#[derive(Debug)]
pub(crate) struct SlotTable {
    fields: [Fields; MAX_SLOTS],
    /// One more than the highest slot in use, so that a look-up stops early.
    used: AtomicU64,
    sequence: AtomicU64,
    edit: Lock<()>,
}

impl SlotTable {
    pub(crate) fn new() -> Self {
        Self {
            fields: core::array::from_fn(|_| Fields::default()),
            used: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            edit: Lock::new(Kind::Leaf, ()),
        }
    }

    /// Finds the slot of `gfn`, first where the last look-up with this hint did.
    #[inline(always)]
    pub(crate) fn find_near(
        &self,
        hint: &SlotHint,
        space: AddressSpace,
        gfn: Gfn,
    ) -> Option<SlotView> {
        // As long as the sequence stands where it stood, a scan would find the same fields.
        let kept = (hint.sequence.load(Ordering::Relaxed) == self.generation()
            && hint.space() == space)
            .then(|| hint.view());
        match kept {
            Some(view) if view.contains(gfn) => Some(view),
            _ => self.find_far(hint, space, gfn),
        }
    }

    #[cold]
    fn find_far(&self, hint: &SlotHint, space: AddressSpace, gfn: Gfn) -> Option<SlotView> {
        let (found, sequence) = self.find_in_sequence(space, gfn);
        if let Some(view) = found {
            hint.keep(&view, space, sequence);
        }
        found
    }

    /// Finds the slot of `gfn`. No lock; starts over when a slot changes meanwhile.
    #[inline]
    pub(crate) fn find(&self, space: AddressSpace, gfn: Gfn) -> Option<SlotView> {
        self.find_in_sequence(space, gfn).0
    }

    /// Finds the slot of `gfn`, and the sequence in which it was found.
    fn find_in_sequence(&self, space: AddressSpace, gfn: Gfn) -> (Option<SlotView>, u64) {
        loop {
            // Acquire: pairs with the Release that ends an edit; without it fields from before the edit could be read.
            let sequence = self.sequence.load(Ordering::Acquire);
            let found = self.scan(|slot, at| at == space && slot.contains(gfn));
            // The fence keeps the field loads above the second look; pairs with the fence in `edit`.
            fence(Ordering::Acquire);
            if sequence & 1 == 0 && self.sequence.load(Ordering::Relaxed) == sequence {
                return (found, sequence);
            }
            pause();
        }
    }

    /// Returns the number of edits so far, doubled, odd while one runs: what an install compares.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        if mutant!(SlotChangeUnseen) {
            return 0;
        }
        self.sequence.load(Ordering::Acquire)
    }

    #[inline]
    fn scan(&self, mut wanted: impl FnMut(&SlotView, AddressSpace) -> bool) -> Option<SlotView> {
        let used = (self.used.load(Ordering::Relaxed) as usize).min(MAX_SLOTS);
        for (i, f) in self.fields[..used].iter().enumerate() {
            let kind = f.kind.load(Ordering::Relaxed);
            let view = SlotView {
                base: Gfn::new(f.base.load(Ordering::Relaxed)),
                frames: f.frames.load(Ordering::Relaxed),
                token: MemoryToken(f.token.load(Ordering::Relaxed)),
                flags: SlotFlags::from_bits_truncate(kind as u8),
                id: SlotId(i as u16),
            };
            if wanted(&view, space_of(kind >> 8)) {
                return Some(view);
            }
        }
        None
    }

    /// Returns slot `id`, if it is in use.
    pub(crate) fn get(&self, id: SlotId) -> Option<(SlotView, AddressSpace)> {
        let mut found = None;
        self.scan(|slot, space| {
            let hit = slot.id == id && slot.frames != 0;
            if hit {
                found = Some((*slot, space));
            }
            hit
        });
        found
    }

    /// Adds a slot.
    pub(crate) fn add(&self, locks: &Locks, config: &SlotConfig) -> Result<SlotId, Error> {
        let range = Error::SlotRange {
            base: config.base,
            frames: config.frames,
        };
        let end = config.base.get().checked_add(config.frames).ok_or(range)?;
        // The very last frame is the record's "nothing".
        if config.frames == 0 || end > MAX_FRAME {
            return Err(range);
        }
        let _edit = self.edit.lock(locks);
        let overlap = self.scan(|slot, space| {
            // A free slot has kept its base.
            slot.frames != 0
                && space == config.space
                && slot.base.get() < end
                && config.base.get() < slot.base.get() + slot.frames
        });
        if overlap.is_some() {
            return Err(Error::SlotOverlap {
                base: config.base,
                space: config.space,
            });
        }
        let free = self
            .fields
            .iter()
            .position(|f| f.frames.load(Ordering::Relaxed) == 0)
            .ok_or(Error::TooManySlots)?;
        self.change(|| {
            self.write(free, config);
            self.used.fetch_max(free as u64 + 1, Ordering::Relaxed);
        });
        Ok(SlotId(free as u16))
    }

    /// Changes a slot's flags, or removes it (`None`), if it is still the one that was `seen`.
    pub(crate) fn update(
        &self,
        locks: &Locks,
        seen: &SlotView,
        flags: Option<SlotFlags>,
    ) -> Result<(), Error> {
        let id = seen.id;
        let _edit = self.edit.lock(locks);
        let (slot, space) = self
            .get(id)
            .filter(|(slot, _)| slot.base == seen.base && slot.frames == seen.frames)
            .ok_or(Error::NoSuchSlot(id))?;
        let config = SlotConfig {
            space,
            base: slot.base,
            frames: if flags.is_some() { slot.frames } else { 0 },
            token: slot.token,
            flags: flags.unwrap_or_default(),
        };
        self.change(|| self.write(id.0 as usize, &config));
        Ok(())
    }

    fn write(&self, at: usize, config: &SlotConfig) {
        let f = &self.fields[at];
        f.base.store(config.base.get(), Ordering::Relaxed);
        f.frames.store(config.frames, Ordering::Relaxed);
        f.token.store(config.token.0, Ordering::Relaxed);
        f.kind.store(
            (config.space as u64) << 8 | u64::from(config.flags.bits()),
            Ordering::Relaxed,
        );
    }

    /// Runs `edit` with the sequence odd. The caller holds the edit lock.
    fn change(&self, edit: impl FnOnce()) {
        self.sequence.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `find`: who sees a new field sees the odd sequence.
        fence(Ordering::Release);
        edit();
        // Release: pairs with the Acquire in `find`.
        self.sequence.fetch_add(1, Ordering::Release);
    }
}
