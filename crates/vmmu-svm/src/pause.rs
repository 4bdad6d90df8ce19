//! One processor holds the others, outside their guest and outside the library, to look at what they share.
//!
//! Key type: [`Pause`]. Whoever begins a pause summons the others and waits until each is held; each waits until the pause is over.
//!
//! | word | meaning | changed by |
//! |---|---|---|
//! | `by` | which processor has begun a pause, or none | that one, from none and back |
//! | `held` | which processors wait for its end, a bit each | each its own |
//!
//! Invariants:
//! 1. A processor sets its bit where it is outside the library, and clears it when `by` is none: while `by` names another and all bits are set, nobody
//!    else is inside.
//! 2. The next pause begins when no bit is set: nobody takes the end of one for that of another.

use core::sync::atomic::{AtomicU32, Ordering};

use vmmu::host::VcpuId;

const NONE: u32 = 0;

/// The pause, if there is one.
#[derive(Debug, Default)]
pub struct Pause {
    by: AtomicU32,
    held: AtomicU32,
}

/// Whether a pause was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Begun {
    /// It was, and has to be ended.
    Yes,
    /// Another processor has begun one, or its last one is not over for all.
    No,
}

impl Pause {
    /// Begins a pause in the name of `own`.
    pub fn begin(&self, own: VcpuId) -> Begun {
        let name = u32::from(own.0) + 1;
        // Acquire pairs with `hold`: who was held in the last pause has left it.
        let is_free = self.held.load(Ordering::Acquire) == 0;
        let begins = is_free
            && self
                .by
                .compare_exchange(NONE, name, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if begins { Begun::Yes } else { Begun::No }
    }
    /// Waits until all `others` are held, a bit each; calls `relax` meanwhile.
    pub fn wait(&self, others: u32, mut relax: impl FnMut()) {
        // Acquire pairs with `hold`: what they did before is seen.
        while self.held.load(Ordering::Acquire) & others != others {
            relax();
        }
    }
    /// Ends the pause.
    pub fn end(&self) {
        // Release: what was looked at is not changed before.
        self.by.store(NONE, Ordering::Release);
    }
    /// Holds the processor `own`, which is outside the library, as long as there is a pause of another's; calls `relax` meanwhile.
    pub fn hold(&self, own: VcpuId, mut relax: impl FnMut()) {
        let name = u32::from(own.0) + 1;
        let is_over = || matches!(self.by.load(Ordering::Acquire), by if by == NONE || by == name);
        if is_over() {
            return;
        }
        self.held.fetch_or(1 << own.0, Ordering::AcqRel);
        while !is_over() {
            relax();
        }
        self.held.fetch_and(!(1 << own.0), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod a_pause {
    extern crate std;
    use super::*;
    use core::hint::spin_loop;

    /// Processors that change what they share, a pair of words that are equal but inside, and hold still whenever asked.
    #[test]
    fn shows_what_all_share_while_nobody_changes_it() {
        let pause = Pause::default();
        let pair = [AtomicU32::new(0), AtomicU32::new(0)];
        let (asked, ends) = (AtomicU32::new(0), AtomicU32::new(0));
        let processor = |number: u16| {
            while ends.load(Ordering::Relaxed) == 0 {
                if asked.fetch_and(!(1 << number), Ordering::AcqRel) & 1 << number != 0 {
                    pause.hold(VcpuId(number), spin_loop);
                }
                for word in &pair {
                    word.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| processor(1));
            scope.spawn(|| processor(2));
            for _ in 0..200 {
                if pause.begin(VcpuId(0)) == Begun::No {
                    spin_loop();
                    continue;
                }
                asked.fetch_or(0b110, Ordering::AcqRel);
                pause.wait(0b110, spin_loop);
                let [one, two] = [0, 1].map(|word: usize| pair[word].load(Ordering::Relaxed));
                assert_eq!(one, two);
                pause.end();
            }
            ends.store(1, Ordering::Relaxed);
        });
        assert_eq!(pause.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn is_begun_by_one_at_a_time_and_after_the_last_is_over_for_all() {
        let pause = Pause::default();
        assert_eq!(pause.begin(VcpuId(0)), Begun::Yes);
        assert_eq!(pause.begin(VcpuId(1)), Begun::No);
        let mut rounds = 0;
        pause.hold(VcpuId(1), || {
            rounds += 1;
            pause.end();
            assert_eq!(pause.begin(VcpuId(0)), Begun::No);
        });
        assert_eq!(rounds, 1);
        assert_eq!(pause.begin(VcpuId(1)), Begun::Yes);
        // Whoever has begun it isn't held by it, nor is anybody if there is none.
        pause.hold(VcpuId(1), || panic!("held by its own"));
        pause.end();
        pause.hold(VcpuId(0), || panic!("held by none"));
    }
}
