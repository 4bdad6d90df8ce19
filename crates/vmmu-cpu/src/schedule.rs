//! Policies that change over time: what a processor does to a whole guest.
//!
//! Key types: [`Phase`], [`Schedule`], [`Hostility`] (which makes a schedule).
//!
//! Invariants:
//! 1. A [`Schedule`] has a phase, and each phase lasts an access at least.

use core::ops::RangeInclusive;

use crate::policy::{Odds, Policy};

/// A stretch of accesses in which a processor keeps to one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The policy.
    pub policy: Policy,
    /// How many accesses it lasts: drawn from here.
    pub accesses: RangeInclusive<u32>,
    /// How often it comes, compared with the other phases.
    pub weight: u32,
}

/// What a processor changes its policy by: phases, drawn one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Phase>);

impl Schedule {
    /// Makes a schedule; phases that last nothing or weigh nothing never come. `None` if none is left.
    #[must_use]
    pub fn new(phases: impl IntoIterator<Item = Phase>) -> Option<Self> {
        let comes = |phase: &Phase| phase.weight > 0 && *phase.accesses.end() > 0;
        let phases: Vec<Phase> = phases.into_iter().filter(comes).collect();
        (!phases.is_empty()).then_some(Self(phases))
    }

    /// Draws a phase: its policy, and how many accesses it lasts.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> (Policy, u64) {
        let total: u64 = self.0.iter().map(|phase| u64::from(phase.weight)).sum();
        let mut at = rng.u64(0..total);
        for phase in &self.0 {
            match at.checked_sub(u64::from(phase.weight)) {
                Some(rest) => at = rest,
                None => {
                    let (first, last) = (*phase.accesses.start(), *phase.accesses.end());
                    let accesses = rng.u32(first.min(last)..=last);
                    return (phase.policy, u64::from(accesses.max(1)));
                }
            }
        }
        // The weights add up to `total`, so the loop has returned.
        (Policy::KEEP, 1)
    }
}

/// How a processor torments a whole guest: mostly it keeps everything, so that what was not flushed is there when it hurts; at times it forgets at
/// random, so that everything is walked anew; and it walks ahead of the guest all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hostility {
    /// The longest stretch of accesses in which everything is kept.
    pub calm: u32,
    /// The longest stretch in which entries are dropped and left unused at random.
    pub burst: u32,
    /// How often an entry is dropped during a burst.
    pub evict: Odds,
    /// How often an address near those used lately is walked ahead, during a calm stretch; 16 times as often in phases for that.
    pub speculate: Odds,
}

impl Default for Hostility {
    fn default() -> Self {
        Self {
            calm: 200_000,
            burst: 2_000,
            evict: Odds::of_256(2),
            speculate: Odds::of_65536(64),
        }
    }
}

impl Hostility {
    /// Returns the schedule; `None` if all stretches are empty.
    #[must_use]
    pub fn schedule(self) -> Option<Schedule> {
        let calm = Policy {
            speculate: self.speculate,
            near: Odds::ALWAYS,
            ..Policy::KEEP
        };
        let burst = Policy {
            evict: self.evict,
            near: Odds::ALWAYS,
            ..Policy::RANDOM
        };
        let eager = Policy {
            speculate: self.speculate.times(16),
            ..calm
        };
        // The structure caches show what the buffer hides.
        let structures = Policy {
            use_tlb: Odds::NEVER,
            ..calm
        };
        let phase = |policy, longest: u32, weight| Phase {
            policy,
            accesses: longest / 16..=longest,
            weight,
        };
        Schedule::new([
            phase(calm, self.calm, 4),
            phase(eager, self.calm / 4, 2),
            phase(burst, self.burst, 2),
            phase(structures, self.burst, 1),
            phase(Policy::NONE, self.burst / 2, 1),
        ])
    }
}

#[cfg(test)]
mod schedules {
    use super::{Hostility, Phase, Schedule};
    use crate::policy::Policy;

    #[test]
    fn phases_come_as_often_as_they_weigh_and_last_as_long_as_they_may() {
        let phase = |policy, accesses, weight| Phase {
            policy,
            accesses,
            weight,
        };
        let schedule = Schedule::new([
            phase(Policy::KEEP, 10..=20, 3),
            phase(Policy::NONE, 5..=5, 1),
            phase(Policy::RANDOM, 0..=0, 9),
            phase(Policy::RANDOM, 1..=9, 0),
        ]);
        let schedule = schedule.expect("two phases are left");
        let mut rng = fastrand::Rng::with_seed(1);
        let mut kept = 0;
        for _ in 0..4000 {
            let (policy, accesses) = schedule.draw(&mut rng);
            match policy {
                Policy::KEEP => assert!((10..=20).contains(&accesses)),
                _ => assert_eq!((policy, accesses), (Policy::NONE, 5)),
            }
            kept += u32::from(policy == Policy::KEEP);
        }
        assert!((2800..3200).contains(&kept), "{kept}");
    }

    #[test]
    fn a_hostility_without_stretches_has_no_schedule() {
        let nothing = Hostility {
            calm: 0,
            burst: 0,
            ..Hostility::default()
        };
        assert_eq!(nothing.schedule(), None);
        assert!(Hostility::default().schedule().is_some());
    }
}
