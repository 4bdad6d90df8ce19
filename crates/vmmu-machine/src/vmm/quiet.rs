//! Quiet points: moments at which no thread of a machine calls the library, which is when the auditor may look.
//!
//! Key types: [`Quiet`] (one of a machine), [`Member`] (a thread that calls the library), kept by whoever may.
//!
//! | a member is | counted as | and |
//! |---|---|---|
//! | at work | member | may call the library, and holds whatever it needs for that |
//! | away: at a safe point, or asleep | member, away | holds nothing of the library, is outside its guest |
//! | alone | member, away, and the one who is alone | every other member is away, until it is done |
//!
//! Who wants to be alone says so, calls processors out of their guests, and waits until all members are away. Nobody comes back before it is done.
//!
//! Invariants:
//! 1. A member that waits here is outside its guest: a flush that another member waits for does not wait for it.
//! 2. A member that panics is a member no more.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The quiet points of a machine.
#[derive(Debug, Default)]
pub struct Quiet {
    /// Somebody wants to be alone; a hint, read without the lock.
    wanted: AtomicBool,
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    members: usize,
    away: usize,
    /// Somebody is alone, or waits for the others to be away.
    taken: bool,
}

/// A thread that may call the library.
#[derive(Debug)]
#[must_use = "a thread is a member as long as the value lives"]
pub struct Member<'q>(&'q Quiet);

impl Quiet {
    /// Makes the calling thread a member, from when nobody is alone.
    pub fn join(&self) -> Member<'_> {
        let mut counts = self.not_taken(self.lock());
        counts.members += 1;
        Member(self)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'q>(&'q self, counts: MutexGuard<'q, Counts>) -> MutexGuard<'q, Counts> {
        self.changed
            .wait(counts)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn not_taken<'q>(&'q self, mut counts: MutexGuard<'q, Counts>) -> MutexGuard<'q, Counts> {
        while counts.taken {
            counts = self.wait(counts);
        }
        counts
    }
}

impl Member<'_> {
    /// A safe point: waits while somebody is alone, or wants to be.
    #[inline]
    pub fn pass(&self) {
        // Relaxed: who is missed here is met at the next safe point.
        if self.0.wanted.load(Ordering::Relaxed) {
            self.away(|| ());
        }
    }

    /// Sleeps, or whatever else needs nothing of the library; somebody may be alone meanwhile.
    pub fn away<T>(&self, doing: impl FnOnce() -> T) -> T {
        let _away = Away::go(self.0);
        doing()
    }

    /// Does something while every other member is away. `call_out` makes those come that are in their guests.
    pub fn alone<T>(&self, call_out: impl FnOnce(), doing: impl FnOnce() -> T) -> T {
        let quiet = self.0;
        let _away = Away::go(quiet);
        let mut counts = quiet.not_taken(quiet.lock());
        counts.taken = true;
        quiet.wanted.store(true, Ordering::Relaxed);
        let _taken = Taken(quiet);
        call_out();
        while counts.away < counts.members {
            counts = quiet.wait(counts);
        }
        drop(counts);
        doing()
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.0.lock().members -= 1;
        self.0.changed.notify_all();
    }
}

/// A member is away; it comes back when nobody is alone.
struct Away<'q>(&'q Quiet);

impl<'q> Away<'q> {
    fn go(quiet: &'q Quiet) -> Self {
        quiet.lock().away += 1;
        quiet.changed.notify_all();
        Self(quiet)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.not_taken(self.0.lock()).away -= 1;
    }
}

/// A member is alone, or about to be.
struct Taken<'q>(&'q Quiet);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.lock().taken = false;
        self.0.wanted.store(false, Ordering::Relaxed);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod who_is_alone {
    use super::Quiet;
    use core::sync::atomic::{AtomicU32, Ordering};

    /// Four members work and want to be alone all the time: nobody works meanwhile, and everybody gets his turn.
    #[test]
    fn meets_nobody_at_work() {
        const ROUNDS: u32 = 300;
        let (quiet, at_work, turns) = (Quiet::default(), AtomicU32::new(0), AtomicU32::new(0));
        let work = || {
            let member = quiet.join();
            for round in 0..ROUNDS {
                at_work.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                at_work.fetch_sub(1, Ordering::SeqCst);
                member.pass();
                if round % 3 == 0 {
                    member.alone(
                        || (),
                        || {
                            for _ in 0..10 {
                                assert_eq!(at_work.load(Ordering::SeqCst), 0);
                                std::thread::yield_now();
                            }
                            turns.fetch_add(1, Ordering::Relaxed);
                        },
                    );
                }
                if round % 7 == 0 {
                    member.away(std::thread::yield_now);
                }
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
        assert_eq!(turns.load(Ordering::Relaxed), 4 * ROUNDS / 3);
    }

    #[test]
    fn does_not_wait_for_a_member_that_panicked() {
        let quiet = Quiet::default();
        let member = quiet.join();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let other = quiet.join();
                other.alone(|| (), || panic!("on purpose"))
            });
            let alone = member.away(|| other.join());
            assert!(alone.is_err());
        });
        member.alone(|| (), || ());
        assert_eq!(quiet.lock().members, 1);
    }
}
