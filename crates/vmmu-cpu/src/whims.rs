//! What a processor does that nobody asked for: it forgets, walks ahead, and changes its ways.
//!
//! Key type: [`Whims`]. [`crate::policy`] and [`crate::schedule`] say how often.
//!
//! Invariants:
//! 1. A speculative walk faults never and dirties nothing (Intel SDM vol. 3, 4.8 and 4.10.2.3).

use crate::addr::{PageSize, Va};
use crate::cpu::Cpu;
use crate::event::Event;
use crate::physical::Physical;
use crate::policy::Policy;
use crate::schedule::Schedule;
use crate::walk::Want;

/// How many addresses used lately are remembered.
const LATELY: usize = 64;
/// One access in so many is remembered.
const SAMPLE: u64 = 16;

/// The state behind it.
#[derive(Debug)]
pub(crate) struct Whims {
    candidates: Vec<Va>,
    lately: [Va; LATELY],
    schedule: Option<Schedule>,
    /// How many accesses are left of the present phase.
    left: u64,
}

impl Default for Whims {
    fn default() -> Self {
        Self {
            candidates: Vec::new(),
            lately: [Va::new(0); LATELY],
            schedule: None,
            left: u64::MAX,
        }
    }
}

impl<M: Physical> Cpu<M> {
    /// Changes the policy, and ends a schedule.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.whims.schedule = None;
        self.whims.left = u64::MAX;
    }

    /// Lets the policy change by a schedule, from the next access on.
    pub fn set_schedule(&mut self, schedule: Schedule) {
        self.whims.schedule = Some(schedule);
        self.whims.left = 1;
    }

    /// Sets the addresses that speculation draws from, unless it draws from those used lately.
    pub fn set_candidates(&mut self, candidates: impl IntoIterator<Item = Va>) {
        self.whims.candidates = candidates.into_iter().collect();
    }

    /// Translates `va` speculatively: fills the caches and sets accessed bits, faults never.
    pub fn guess(&mut self, va: Va) {
        let Ok(va) = self.regs.linear(va) else { return };
        self.counters.guesses += 1;
        self.note(Event::Guessed(va));
        // A speculative walk that can't complete leaves no trace but what it cached on the way,
        // and a violation, which is recorded where it is found.
        let _ = self.walk_linear(va, Want::Guess);
    }

    /// Translates an address of the processor's own choice speculatively, as it may at any time while it is in the guest: one that was used lately or
    /// is near it, or one of the candidates, as the policy says.
    pub fn speculate(&mut self) {
        let near = self.policy.near.hit(&mut self.rng);
        if near {
            let va = self.near();
            self.guess(va);
        } else if !self.whims.candidates.is_empty() {
            let index = self.rng.usize(0..self.whims.candidates.len());
            self.guess(self.whims.candidates[index]);
        }
    }

    /// Draws an address used lately, or one a few pages or large pages away.
    fn near(&mut self) -> Va {
        let va = self.whims.lately[self.rng.usize(0..LATELY)];
        let size = match self.rng.u8(..) {
            0..32 => PageSize::Size2M,
            _ => PageSize::Size4K,
        };
        let away = self.rng.u64(0..9).wrapping_sub(4);
        va.plus(away.wrapping_mul(size.bytes()))
    }

    /// Before an access: evicts, speculates and turns to another policy, if it is time.
    #[inline]
    pub(crate) fn disturb(&mut self, va: Va) {
        self.whims.left -= 1;
        if self.whims.left == 0 {
            self.turn();
        }
        if self.counters.accesses.is_multiple_of(SAMPLE) {
            let at = (self.counters.accesses / SAMPLE) as usize % LATELY;
            self.whims.lately[at] = va;
        }
        if self.policy.evict.hit(&mut self.rng) {
            self.evict(va);
        }
        if self.policy.speculate.hit(&mut self.rng) {
            self.speculate();
        }
    }

    #[cold]
    fn turn(&mut self) {
        self.whims.left = u64::MAX;
        if let Some(schedule) = &self.whims.schedule {
            (self.policy, self.whims.left) = schedule.draw(&mut self.rng);
        }
    }

    fn evict(&mut self, va: Va) {
        self.counters.evictions += 1;
        self.note(Event::Evicted);
        match self.rng.u8(0..8) {
            0 => {
                self.tlb.clear();
                self.structures.clear();
            }
            1 => self.structures.clear(),
            2 => {
                self.tlb.retain(|_| self.rng.bool());
                self.structures.retain(|_| self.rng.bool());
            }
            _ => self.tlb.drop_address(self.linear_tag(), va.get()),
        }
    }
}
