//! The frame pool of [`PhysMemory`]: allocation, free with poison, and who was freed when.
//!
//! A processor remembers with everything that it caches the [`Moment`] at which it read it. A
//! frame that was freed later than that must not be reached through it any more, even if the
//! frame was allocated anew meanwhile: that is how a use of a freed table is found for certain.
//!
//! Invariants:
//! 1. Moments only grow; each free takes one of its own.
//! 2. A frame is marked freed before it is poisoned, and poisoned before it can be handed out.
//! 3. A frame handed out is zeroed, and was not in use.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::PhysMemory;
use crate::addr::Frame;

/// What every word of a freed frame holds: present, large, and full of reserved bits, so that a
/// walk that meets it by accident never looks like a harmless "not present".
pub const POISON: u64 = 0xdeaf_f4ee_d0de_a0ff;

/// A point in the order of frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// Later than every free: only frames that are free now are refused.
    pub const LATEST: Self = Self(u64::MAX);

    /// Makes the moment after the given number of frees.
    #[must_use]
    pub const fn new(frees: u64) -> Self {
        Self(frees)
    }

    /// Returns the number of frees before it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Why a frame may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// No memory there.
    #[error("outside of memory")]
    Outside,
    /// The frame is free: its content is poison.
    #[error("frame is free")]
    Free,
    /// The frame was freed, and allocated anew, since the reference to it was read.
    #[error("frame was freed and allocated anew since")]
    Reused,
}

/// Why a free was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// The frame is not allocated: freed twice, or never handed out.
    #[error("frame {0} is not allocated")]
    NotAllocated(Frame),
}

/// Where an allocation may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zone {
    /// Anywhere in the pool.
    Any,
    /// Below 4 GiB, as a PAE root must.
    Below4G,
}

/// Which free frame is handed out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reuse {
    /// The one freed last: a table's frame soon holds something else.
    Soonest,
    /// The one freed first, and fresh ones before it: poison stays visible longest.
    Latest,
}

/// A frame's status word: last free << 2 | state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u64);

impl Status {
    /// Never in the hands of the pool.
    pub(super) const PLAIN: Self = Self(0);
    const ALLOCATED: u64 = 1;
    const FREED: u64 = 2;

    #[inline]
    pub(super) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    #[inline]
    fn state(self) -> u64 {
        self.0 & 3
    }

    #[inline]
    fn last_free(self) -> u64 {
        self.0 >> 2
    }

    /// Says whether a reference read at `since` may still be used.
    #[inline]
    pub(super) fn usable(self, since: Moment) -> Result<(), Unusable> {
        match self.state() {
            Self::FREED => Err(Unusable::Free),
            _ if self.last_free() > since.0 => Err(Unusable::Reused),
            _ => Ok(()),
        }
    }
}

/// What the pool keeps beside the status words.
#[derive(Debug)]
pub(super) struct Pool {
    inner: Mutex<Inner>,
    epoch: AtomicU64,
    allocs: AtomicU64,
    frees: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    fresh: core::ops::Range<Frame>,
    free: VecDeque<Frame>,
    reuse: Reuse,
    fail_in: Option<u64>,
}

impl Pool {
    pub(super) fn new(fresh: core::ops::Range<Frame>) -> Self {
        let inner = Inner {
            fresh,
            free: VecDeque::new(),
            reuse: Reuse::Soonest,
            fail_in: None,
        };
        Self {
            inner: Mutex::new(inner),
            epoch: AtomicU64::new(0),
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
        }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic in another test thread leaves the lists whole: each step is one push or pop.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self, zone: Zone) -> Option<Frame> {
        if let Some(left) = self.fail_in.as_mut() {
            *left -= 1;
            if *left == 0 {
                self.fail_in = None;
                return None;
            }
        }
        match self.reuse {
            Reuse::Soonest => self.take_free(zone).or_else(|| self.take_fresh(zone)),
            Reuse::Latest => self.take_fresh(zone).or_else(|| self.take_free(zone)),
        }
    }

    fn take_fresh(&mut self, zone: Zone) -> Option<Frame> {
        let frame = self.fresh.start;
        if frame >= self.fresh.end || !fits(frame, zone) {
            return None;
        }
        self.fresh.start = Frame::new(frame.get() + 1);
        Some(frame)
    }

    fn take_free(&mut self, zone: Zone) -> Option<Frame> {
        let at = match self.reuse {
            Reuse::Soonest => self.free.iter().rposition(|f| fits(*f, zone)),
            Reuse::Latest => self.free.iter().position(|f| fits(*f, zone)),
        };
        self.free.remove(at?)
    }
}

fn fits(frame: Frame, zone: Zone) -> bool {
    match zone {
        Zone::Any => true,
        Zone::Below4G => frame.get() < 1 << 20,
    }
}

impl PhysMemory {
    /// Hands out a zeroed frame, or `None` when there is none, or when
    /// [`PhysMemory::fail_alloc_in`] says so.
    #[must_use]
    pub fn alloc(&self, zone: Zone) -> Option<Frame> {
        let frame = self.pool.inner().take(zone)?;
        let cell = self.status_cell(frame)?;
        let freed = Status(cell.load(Ordering::Acquire)).last_free();
        self.fill_unchecked(frame, 0);
        cell.store(freed << 2 | Status::ALLOCATED, Ordering::Release);
        self.pool.allocs.fetch_add(1, Ordering::Relaxed);
        Some(frame)
    }

    /// Takes a frame back, and fills it with [`POISON`].
    ///
    /// # Errors
    /// [`FreeError::NotAllocated`] for a frame that is not allocated; nothing changes then.
    pub fn free(&self, frame: Frame) -> Result<(), FreeError> {
        let refused = FreeError::NotAllocated(frame);
        let cell = self.status_cell(frame).ok_or(refused)?;
        let old = cell.load(Ordering::Acquire);
        if Status(old).state() != Status::ALLOCATED {
            return Err(refused);
        }
        let moment = self.pool.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let new = moment << 2 | Status::FREED;
        cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .map_err(|_| refused)?;
        self.fill_unchecked(frame, POISON);
        self.pool.frees.fetch_add(1, Ordering::Relaxed);
        self.pool.inner().free.push_back(frame);
        Ok(())
    }

    /// Returns the number of successful allocations so far.
    #[must_use]
    pub fn allocs(&self) -> u64 {
        self.pool.allocs.load(Ordering::Relaxed)
    }

    /// Returns the number of frees so far.
    #[must_use]
    pub fn frees(&self) -> u64 {
        self.pool.frees.load(Ordering::Relaxed)
    }

    /// Returns how many frames are allocated now.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocs() - self.frees()
    }

    /// Makes the `n`th allocation from now fail (1 is the next one); 0 takes that back.
    pub fn fail_alloc_in(&self, n: u64) {
        self.pool.inner().fail_in = (n > 0).then_some(n);
    }

    /// Chooses which free frame is handed out first; [`Reuse::Soonest`] unless told.
    pub fn set_reuse(&self, reuse: Reuse) {
        self.pool.inner().reuse = reuse;
    }

    /// Says whether the frame is allocated now.
    #[must_use]
    pub fn is_allocated(&self, frame: Frame) -> bool {
        self.raw_status(frame).state() == Status::ALLOCATED
    }

    /// Returns the present moment. Read it *after* the reference it will vouch for: then a frame
    /// freed and handed out again before the reference was read is never mistaken for a stale one.
    #[must_use]
    #[inline]
    pub fn moment(&self) -> Moment {
        Moment(self.pool.epoch.load(Ordering::SeqCst))
    }

    /// Says whether a reference to `frame`, read at `since`, may still be used.
    ///
    /// # Errors
    /// [`Unusable`] when the frame is outside of memory, free, or was freed after `since`.
    #[inline]
    pub fn usable(&self, frame: Frame, since: Moment) -> Result<(), Unusable> {
        if frame.get() >= self.frames {
            return Err(Unusable::Outside);
        }
        self.raw_status(frame).usable(since)
    }
}

#[cfg(test)]
mod knows_what_was_freed {
    use super::{FreeError, Moment, POISON, Reuse, Unusable, Zone};
    use crate::addr::Frame;
    use crate::mem::PhysMemory;

    fn memory() -> PhysMemory {
        PhysMemory::with_pool(64, Frame::new(8)..Frame::new(12))
    }

    #[test]
    fn freed_frames_are_poisoned_and_stay_unusable_for_old_references() {
        let mem = memory();
        let frame = mem.alloc(Zone::Any).expect("pool has frames");
        let before = mem.moment();
        assert_eq!(mem.usable(frame, before), Ok(()));
        mem.free(frame).expect("allocated");
        assert_eq!(mem.peek(frame.hpa().plus(8)), POISON);
        assert_eq!(mem.usable(frame, Moment::LATEST), Err(Unusable::Free));
        assert_eq!(mem.alloc(Zone::Any), Some(frame));
        assert_eq!(mem.peek(frame.hpa()), 0);
        assert_eq!(mem.usable(frame, before), Err(Unusable::Reused));
        assert_eq!(mem.usable(frame, mem.moment()), Ok(()));
    }

    #[test]
    fn double_and_foreign_frees_are_refused() {
        let mem = memory();
        let frame = mem.alloc(Zone::Any).expect("pool has frames");
        mem.free(frame).expect("allocated");
        assert_eq!(mem.free(frame), Err(FreeError::NotAllocated(frame)));
        assert_eq!(
            mem.free(Frame::new(1)),
            Err(FreeError::NotAllocated(Frame::new(1)))
        );
        assert_eq!((mem.allocs(), mem.frees(), mem.allocated()), (1, 1, 0));
    }

    #[test]
    fn the_pool_ends_and_fails_on_demand() {
        let mem = memory();
        mem.set_reuse(Reuse::Latest);
        mem.fail_alloc_in(2);
        assert!(mem.alloc(Zone::Any).is_some());
        assert!(mem.alloc(Zone::Any).is_none());
        let rest = (0..9).filter_map(|_| mem.alloc(Zone::Below4G)).count();
        assert_eq!(rest, 3);
    }

    #[test]
    fn touching_a_freed_frame_is_a_stray_access() {
        let mem = memory();
        let frame = mem.alloc(Zone::Any).expect("pool has frames");
        mem.free(frame).expect("allocated");
        let _ = mem.load(frame.hpa());
        assert_eq!(mem.strays(), 1);
    }
}
