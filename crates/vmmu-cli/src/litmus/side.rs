//! Both sides of an answer, as this machine executes them.
//!
//! Key trait: [`Sides`]. [`Offered`] is the library's own type with a strategy; [`Mistake`] is a proposal that is wrong, with a plain increment.

use core::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};

use vmmu::gate::{Gate, Strategy};

/// What the guest's entry holds at first.
pub const OLD: u64 = 1;
/// What the guest writes.
pub const NEW: u64 = 2;

/// The creator's side and the write side.
pub trait Sides: Sync {
    /// What the two share, the guest's entry apart.
    type Shared: Sync;

    /// Makes it, for a VM without pages.
    fn shared(&self) -> Self::Shared;

    /// Counts a page, and returns what the guest's entry held when it was last read.
    fn create(&self, shared: &Self::Shared, entry: &AtomicU64) -> u64;

    /// Takes the page off.
    fn destroy(&self, shared: &Self::Shared);

    /// Stores to the guest's entry, and says whether there may be a page.
    fn write(&self, shared: &Self::Shared, entry: &AtomicU64, value: u64) -> bool;
}

/// A strategy of the library; the function makes one.
#[derive(Debug)]
pub struct Offered<S>(pub fn() -> S);

impl<S: Strategy> Sides for Offered<S> {
    type Shared = Gate<S>;

    fn shared(&self) -> Gate<S> {
        Gate::new((self.0)())
    }

    #[inline]
    fn create(&self, gate: &Gate<S>, entry: &AtomicU64) -> u64 {
        gate.create();
        entry.load(Ordering::Relaxed)
    }

    #[inline]
    fn destroy(&self, gate: &Gate<S>) {
        gate.destroy();
    }

    #[inline]
    fn write(&self, gate: &Gate<S>, entry: &AtomicU64, value: u64) -> bool {
        entry.store(value, Ordering::Relaxed);
        gate.is_open()
    }
}

/// A proposal with a plain increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mistake {
    /// A full barrier before the increment.
    pub before: bool,
    /// A full barrier after it.
    pub after: bool,
    /// A full barrier on the write side.
    pub write: bool,
    /// The entry is read for the last time before the increment.
    pub early: bool,
}

impl Mistake {
    /// No barrier anywhere.
    pub const VOLATILE: Self = Self {
        before: false,
        after: false,
        write: false,
        early: false,
    };
}

fn barrier(is_there: bool) {
    if is_there {
        fence(Ordering::SeqCst);
    } else {
        // The order of the instructions is not in question, only what the processor makes of it.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Sides for Mistake {
    type Shared = AtomicU64;

    fn shared(&self) -> AtomicU64 {
        AtomicU64::new(0)
    }

    #[inline]
    fn create(&self, count: &AtomicU64, entry: &AtomicU64) -> u64 {
        let early = entry.load(Ordering::Relaxed);
        barrier(self.before);
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        barrier(self.after);
        if self.early {
            early
        } else {
            entry.load(Ordering::Relaxed)
        }
    }

    fn destroy(&self, count: &AtomicU64) {
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    #[inline]
    fn write(&self, count: &AtomicU64, entry: &AtomicU64, value: u64) -> bool {
        entry.store(value, Ordering::Relaxed);
        barrier(self.write);
        count.load(Ordering::Relaxed) != 0
    }
}
