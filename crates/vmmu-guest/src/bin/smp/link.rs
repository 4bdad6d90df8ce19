//! What one entry of the guest's tables is known to lead to, readable while others change it.
//!
//! Key types: [`Link`] (one for each entry in use), [`Seen`] (what was read of it), [`Change`] (its change by one processor).
//!
//! A link's version tells its phase by its two lowest bits:
//!
//! | phase | what holds | what an access may find |
//! |---|---|---|
//! | 0 | the entry is `now`, and no processor has an older translation | `now` |
//! | 1 | somebody prepares a change: `now` and `before` can't be told | unknown |
//! | 2 | the entry is being changed from `before` to `now`, flushes are under way | either |
//!
//! Invariants:
//! 1. Who has moved a link from phase 0 to 1 alone changes it, and the entry, until it is in phase 0 again.
//! 2. The version never repeats: one that is the same before and after an access was the same throughout.

use core::sync::atomic::{AtomicU64, Ordering};

/// What an entry leads to.
#[derive(Debug)]
pub(crate) struct Link {
    version: AtomicU64,
    now: AtomicU64,
    before: AtomicU64,
}

/// What was read of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    version: u64,
    pub(crate) now: u64,
    /// The same as `now` unless a change is under way.
    pub(crate) before: u64,
}

impl Seen {
    /// Whether no change is under way.
    pub(crate) const fn is_stable(self) -> bool {
        self.version.is_multiple_of(4)
    }
}

impl Link {
    /// An entry that leads nowhere.
    pub(crate) const fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            now: AtomicU64::new(0),
            before: AtomicU64::new(0),
        }
    }

    /// Reads it; nothing while a change is being prepared.
    pub(crate) fn look(&self) -> Option<Seen> {
        let version = self.version.load(Ordering::SeqCst);
        let now = self.now.load(Ordering::SeqCst);
        let before = self.before.load(Ordering::SeqCst);
        let seen = Seen {
            version,
            now,
            before: if version.is_multiple_of(4) {
                now
            } else {
                before
            },
        };
        (version % 4 != 1 && self.is_still(seen)).then_some(seen)
    }

    /// Whether nothing has changed since `seen` was read.
    pub(crate) fn is_still(&self, seen: Seen) -> bool {
        self.version.load(Ordering::SeqCst) == seen.version
    }

    /// What it leads to, for who holds the lock that keeps others from changing it.
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// Begins a change, unless another one is under way.
    pub(crate) fn try_change(&self) -> Option<Change<'_>> {
        let version = self.version.load(Ordering::SeqCst) & !3;
        self.version
            .compare_exchange(version, version + 1, Ordering::SeqCst, Ordering::SeqCst)
            .ok()
            .map(|_| Change {
                link: self,
                version,
            })
    }
}

/// A change of a link that is under way; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Change<'l> {
    link: &'l Link,
    version: u64,
}

impl Change<'_> {
    /// What the entry leads to.
    pub(crate) fn now(&self) -> u64 {
        self.link.now()
    }

    /// Says what the entry will lead to. Afterwards the entry is stored and flushes are asked for.
    pub(crate) fn announce(&self, new: u64) {
        self.link.before.store(self.now(), Ordering::SeqCst);
        self.link.now.store(new, Ordering::SeqCst);
        self.link.version.store(self.version + 2, Ordering::SeqCst);
    }
}

impl Drop for Change<'_> {
    /// No processor has an older translation.
    fn drop(&mut self) {
        self.link.version.store(self.version + 4, Ordering::SeqCst);
    }
}
