//! Atomics, locks and cells: the one module that knows loom and shuttle.
//!
//! `--cfg loom` is for the library's own tests of pairs of steps, every interleaving; `--cfg shuttle` for whole programs, random schedules (vmmu-tests).
//! Under both, tables and lists are small ([`SMALL`]).
//!
//! Key types: [`Lock`] with its [`Kind`] (the rank), [`Locks`] (which of them the running call holds, and how many it took), [`Claim`]
//! (exclusive use of a vCPU, never waited for), [`Apart`] (a cache line of its own), [`OnceBox`].
//!
//! Invariants:
//! 1. Lock order: [`Kind::Table`], then [`Kind::Gfn`], then [`Kind::Leaf`]; never two of one kind. Debug builds check it.
//! 2. Everything that must not happen under a lock (allocation, flush, a guest access that may block) asserts [`Locks::assert_none`].
//! 3. Nobody waits for a [`Claim`]: a second claimant is told that the vCPU is busy, so that no cycle can go through it.

use core::cell::Cell;
use core::ops::{Deref, DerefMut};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(any(loom, shuttle, feature = "count")))]
pub(crate) use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(all(not(any(loom, shuttle)), feature = "count"))]
pub(crate) use crate::count::{AtomicU8, AtomicU32, AtomicU64, fence};
#[cfg(all(not(any(loom, shuttle)), feature = "count"))]
pub(crate) use core::sync::atomic::Ordering;

/// Notes that an entry was installed, changed or removed, if the library counts.
#[inline(always)]
pub(crate) fn note_entry() {
    #[cfg(feature = "count")]
    crate::count::note_entry();
}

/// Notes that a lock was taken, or is left, if the library counts; what it guards stands for it.
#[cfg(feature = "count")]
fn note_lock<T>(guard: &RawGuard<'_, T>, step: fn(usize) -> crate::count::Step) {
    crate::count::note(step(crate::count::line::<T>(guard)));
}

pub(crate) use once_cell::race::OnceBox;

/// Counters that no protocol depends on stay invisible to loom and shuttle.
#[cfg(any(loom, shuttle))]
pub(crate) type Counter = core::sync::atomic::AtomicU64;
/// Counters that no protocol depends on stay invisible to loom and shuttle.
#[cfg(not(any(loom, shuttle)))]
pub(crate) type Counter = AtomicU64;

/// Whether a scheduler decides who runs, so that whatever is large is made small.
pub(crate) const SMALL: bool = cfg!(any(loom, shuttle));

/// The most entries that are changed from the moment that a lock is taken until none is held.
///
/// Where a scheduler decides who runs, one: two entries then take two sections.
pub(crate) const MOST: usize = if SMALL { 1 } else { 64 };

/// Passes the time in a loop that waits for another thread.
#[inline]
pub(crate) fn pause() {
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

/// A value that shares no cache line with its neighbours: what one processor writes at each fault, another one must not have to fetch for something else.
///
/// Two lines: processors fetch the neighbour of a line along with it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

impl<T> Deref for Apart<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// What a lock guards, which is also its rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// One table: its entries appear under it.
    Table = 0,
    /// A stripe of guest frames: their pages, parents, rmaps and counts.
    Gfn = 1,
    /// VM-wide lists (unsync pages, free pages, slot edits); taken last, for a few instructions.
    Leaf = 2,
}

/// How many kinds there are.
pub(crate) const KINDS: usize = 3;

/// The locks that one call holds, and how many of each kind it took.
///
/// Which are held is known in debug builds only; how many were taken is one word, a field of [`COUNT_BITS`] for each kind.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Cell<u8>,
    taken: Cell<u64>,
}

/// The width of a kind's count; one that overflows within a call spoils the statistics, nothing else.
const COUNT_BITS: usize = 21;

impl Locks {
    #[inline]
    fn enter(&self, kind: Kind) {
        debug_assert!(
            self.held.get() >> kind as u8 == 0,
            "lock order: {kind:?} taken while {:#b} is held",
            self.held.get()
        );
        if cfg!(debug_assertions) {
            self.held.set(self.held.get() | 1 << kind as u8);
        }
        let one = 1 << (COUNT_BITS * kind as usize);
        self.taken.set(self.taken.get().wrapping_add(one));
    }

    #[inline]
    fn leave(&self, kind: Kind) {
        if cfg!(debug_assertions) {
            self.held.set(self.held.get() & !(1 << kind as u8));
        }
    }

    /// Asserts that the call holds no lock, in debug builds.
    #[inline]
    #[track_caller]
    pub(crate) fn assert_none(&self) {
        debug_assert!(
            self.held.get() == 0,
            "a lock is held across a wait or an allocation"
        );
    }

    /// Tells whether any lock was taken since the last call of [`Locks::take_counts`].
    #[inline]
    pub(crate) fn took_any(&self) -> bool {
        self.taken.get() != 0
    }

    /// Returns how many locks of each kind were taken since the last call of this.
    #[inline]
    pub(crate) fn take_counts(&self) -> [u32; KINDS] {
        let taken = self.taken.replace(0);
        core::array::from_fn(|kind| (taken >> (COUNT_BITS * kind)) as u32 & ((1 << COUNT_BITS) - 1))
    }
}

#[cfg(not(any(loom, shuttle)))]
type RawMutex<T> = spin::mutex::SpinMutex<T>;
#[cfg(not(any(loom, shuttle)))]
type RawGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;
#[cfg(loom)]
type RawMutex<T> = loom::sync::Mutex<T>;
#[cfg(loom)]
type RawGuard<'a, T> = loom::sync::MutexGuard<'a, T>;
#[cfg(shuttle)]
type RawMutex<T> = shuttle::sync::Mutex<T>;
#[cfg(shuttle)]
type RawGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

#[inline]
fn lock_raw<T>(raw: &RawMutex<T>) -> RawGuard<'_, T> {
    #[cfg(all(not(any(loom, shuttle)), feature = "count"))]
    {
        raw.try_lock().unwrap_or_else(|| {
            crate::count::note_contended();
            raw.lock()
        })
    }
    #[cfg(not(any(loom, shuttle, feature = "count")))]
    {
        raw.lock()
    }
    #[cfg(any(loom, shuttle))]
    {
        raw.lock().expect("no panic happens under a lock")
    }
}

#[inline]
fn try_lock_raw<T>(raw: &RawMutex<T>) -> Option<RawGuard<'_, T>> {
    #[cfg(feature = "count")]
    crate::count::note(crate::count::Step::Update(crate::count::line(raw)));
    #[cfg(not(any(loom, shuttle)))]
    {
        raw.try_lock()
    }
    #[cfg(any(loom, shuttle))]
    {
        raw.try_lock().ok()
    }
}

/// A spin lock with a rank.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    kind: Kind,
    raw: RawMutex<T>,
}

impl<T> Lock<T> {
    pub(crate) fn new(kind: Kind, value: T) -> Self {
        Self {
            kind,
            raw: RawMutex::new(value),
        }
    }

    /// Takes the lock; `locks` checks the order.
    #[inline]
    pub(crate) fn lock<'a>(&'a self, locks: &'a Locks) -> Guard<'a, T> {
        locks.enter(self.kind);
        let raw = lock_raw(&self.raw);
        #[cfg(feature = "count")]
        note_lock(&raw, crate::count::Step::Lock);
        Guard {
            raw,
            locks,
            kind: self.kind,
        }
    }
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Guard<'a, T> {
    raw: RawGuard<'a, T>,
    locks: &'a Locks,
    kind: Kind,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.raw
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.raw
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(feature = "count")]
        note_lock(&self.raw, crate::count::Step::Unlock);
        self.locks.leave(self.kind);
    }
}

/// A lock that guards nothing by itself and stands outside the order: nothing is taken while it is held.
#[derive(Debug)]
pub(crate) struct Raw(RawMutex<()>);

impl Default for Raw {
    fn default() -> Self {
        Self(RawMutex::new(()))
    }
}

impl Raw {
    #[inline]
    pub(crate) fn lock(&self) -> RawGuard<'_, ()> {
        lock_raw(&self.0)
    }
}

/// Something that one thread at a time uses, and that nobody waits for.
#[derive(Debug)]
pub(crate) struct Claim<T>(RawMutex<T>);

/// A claim that was granted.
pub(crate) type Claimed<'a, T> = RawGuard<'a, T>;

impl<T> Claim<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RawMutex::new(value))
    }

    /// Claims the value, or returns `None` if somebody uses it now.
    #[inline]
    pub(crate) fn claim(&self) -> Option<Claimed<'_, T>> {
        try_lock_raw(&self.0)
    }
}

#[cfg(all(test, not(any(loom, shuttle)), debug_assertions))]
mod debug_builds_refuse {
    use super::{Kind, Lock, Locks};

    fn take_both(first: Kind, second: Kind) {
        let locks = Locks::default();
        let (one, other) = (Lock::new(first, ()), Lock::new(second, ()));
        let _one = one.lock(&locks);
        let _other = other.lock(&locks);
    }

    #[test]
    fn nothing_that_keeps_the_order() {
        take_both(Kind::Table, Kind::Gfn);
        take_both(Kind::Gfn, Kind::Leaf);
        take_both(Kind::Table, Kind::Leaf);
    }

    #[test]
    #[should_panic(expected = "lock order")]
    fn a_table_lock_under_a_gfn_lock() {
        take_both(Kind::Gfn, Kind::Table);
    }

    #[test]
    #[should_panic(expected = "lock order")]
    fn two_table_locks() {
        take_both(Kind::Table, Kind::Table);
    }

    #[test]
    #[should_panic(expected = "lock order")]
    fn two_gfn_locks() {
        take_both(Kind::Gfn, Kind::Gfn);
    }

    #[test]
    #[should_panic(expected = "a lock is held across")]
    fn a_wait_or_an_allocation_under_a_lock() {
        let locks = Locks::default();
        let lock = Lock::new(Kind::Leaf, ());
        let _held = lock.lock(&locks);
        locks.assert_none();
    }
}
