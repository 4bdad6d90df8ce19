//! What calls cost in locks and atomics: counts, and the steps one by one. Only with the feature `count`; without it nothing of this is compiled in.
//!
//! Key types: [`Counts`] (sums of this thread), [`Step`] (one access), [`record`]. The atomics here are the library's while it counts. An embedder adds the
//! accesses of its own by [`note`].
//!
//! Invariants:
//! 1. Each thread counts for itself; nothing here is shared.
//! 2. An address stands for its cache line of 64 bytes.
//!
//! Known gap: what a lock guards is accessed plainly, and is not seen; whoever models it adds it to the lock.

extern crate std;

use core::cell::{Cell, RefCell};
use core::sync::atomic::Ordering;
use std::thread_local;
use std::vec::Vec;

/// An access, or what goes with one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Step {
    /// A load of the line.
    Load(usize),
    /// A store to the line.
    Store(usize),
    /// An atomic read-modify-write of the line.
    Update(usize),
    /// A full barrier.
    Fence,
    /// The lock in the line was taken.
    Lock(usize),
    /// It was left.
    Unlock(usize),
}

/// What a thread did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Locks taken.
    pub locks: u64,
    /// Locks that somebody held when they were asked for.
    pub contended: u64,
    /// Atomic read-modify-writes, those of locks not counted.
    pub updates: u64,
    /// Full barriers.
    pub fences: u64,
    /// Entries that were installed, changed or removed.
    pub entries: u64,
    /// The most entries from the moment that a lock was taken until none was held.
    pub longest: u64,
}

/// What a thread's locks guard right now.
#[derive(Clone, Copy, Default)]
struct Held {
    locks: u32,
    entries: u64,
}

thread_local! {
    static COUNTS: Cell<Counts> = Cell::new(Counts::default());
    static HELD: Cell<Held> = Cell::new(Held::default());
    static STEPS: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// Returns what this thread did since the last call of this.
#[must_use]
pub fn take() -> Counts {
    COUNTS.take()
}

/// Runs `work`, and returns what it returned and its steps.
pub fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<Step>) {
    STEPS.set(Some(Vec::new()));
    let result = work();
    (result, STEPS.take().unwrap_or_default())
}

/// Returns the number of the line in which a value lies.
#[must_use]
pub fn line<T>(value: &T) -> usize {
    core::ptr::from_ref(value).addr() >> 6
}

/// Notes a step; of a lock, without a look at whether it was contended.
pub fn note(step: Step) {
    let mut counts = COUNTS.get();
    match step {
        Step::Load(_) | Step::Store(_) => {}
        Step::Update(_) => counts.updates += 1,
        Step::Fence => counts.fences += 1,
        Step::Lock(_) => {
            counts.locks += 1;
            let held = HELD.get();
            HELD.set(Held {
                locks: held.locks + 1,
                ..held
            });
        }
        Step::Unlock(_) => {
            let mut held = HELD.get();
            held.locks = held.locks.saturating_sub(1);
            if held.locks == 0 {
                counts.longest = counts.longest.max(held.entries);
                held.entries = 0;
            }
            HELD.set(held);
        }
    }
    COUNTS.set(counts);
    STEPS.with_borrow_mut(|steps| {
        if let Some(steps) = steps {
            steps.push(step);
        }
    });
}

pub(crate) fn note_contended() {
    let counts = COUNTS.get();
    COUNTS.set(Counts {
        contended: counts.contended + 1,
        ..counts
    });
}

/// Notes that an entry was installed, changed or removed.
pub(crate) fn note_entry() {
    let counts = COUNTS.get();
    COUNTS.set(Counts {
        entries: counts.entries + 1,
        ..counts
    });
    let held = HELD.get();
    HELD.set(Held {
        entries: held.entries + 1,
        ..held
    });
}

/// A full barrier, or less.
pub(crate) fn fence(order: Ordering) {
    if order == Ordering::SeqCst {
        note(Step::Fence);
    }
    core::sync::atomic::fence(order);
}

macro_rules! updates {
    ($value:ty: $($name:ident)*) => {$(
        pub(crate) fn $name(&self, value: $value, order: Ordering) -> $value {
            note(Step::Update(line(self)));
            self.0.$name(value, order)
        }
    )*};
}

macro_rules! counted {
    ($($name:ident $value:ty;)*) => {$(
        /// An atomic that notes its accesses.
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(crate) struct $name(core::sync::atomic::$name);

        #[allow(dead_code, reason = "not every size has every use")]
        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(core::sync::atomic::$name::new(value))
            }
            pub(crate) fn load(&self, order: Ordering) -> $value {
                note(Step::Load(line(self)));
                self.0.load(order)
            }
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                note(Step::Store(line(self)));
                self.0.store(value, order);
            }
            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                note(Step::Update(line(self)));
                self.0.compare_exchange(current, new, success, failure)
            }
            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                note(Step::Update(line(self)));
                self.0.fetch_update(success, failure, update)
            }
            pub(crate) fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }
            updates! { $value: swap fetch_add fetch_sub fetch_and fetch_or fetch_max }
        }
    )*};
}

counted! {
    AtomicU8 u8;
    AtomicU32 u32;
    AtomicU64 u64;
}

#[cfg(test)]
mod counting {
    use super::{AtomicU64, Counts, Step, line, note, note_entry, record, take};
    use core::sync::atomic::Ordering;

    #[test]
    fn sees_updates_and_the_longest_hold() {
        let _ = take();
        let word = AtomicU64::new(0);
        let ((), steps) = record(|| {
            note(Step::Lock(1));
            note_entry();
            note(Step::Lock(2));
            note_entry();
            note(Step::Unlock(2));
            note(Step::Unlock(1));
            note(Step::Lock(1));
            note_entry();
            note(Step::Unlock(1));
            word.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(steps.len(), 7);
        assert_eq!(steps.last(), Some(&Step::Update(line(&word))));
        let expected = Counts {
            locks: 3,
            updates: 1,
            entries: 3,
            longest: 2,
            ..Counts::default()
        };
        assert_eq!(take(), expected);
    }
}
