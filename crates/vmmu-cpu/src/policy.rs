//! What the processor does where the architecture lets it choose.
//!
//! Key types: [`Policy`], [`Odds`]. [`crate::Cpu`] asks a seeded generator at each choice, so
//! that one seed gives one run. [`crate::schedule`] changes the policy over time.
//!
//! Invariants:
//! 1. Every combination of odds is architecturally allowed: no policy makes a correct hypervisor
//!    fail.

/// A probability in 65,536ths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Odds(u32);

impl Odds {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Always.
    pub const ALWAYS: Self = Self(65_536);

    /// Makes odds of `of_256` in 256; more than 256 means always.
    #[must_use]
    pub const fn of_256(of_256: u16) -> Self {
        Self(of_256 as u32 * 256)
    }

    /// Makes odds of `of_65536` in 65,536; more than that means always.
    #[must_use]
    pub const fn of_65536(of_65536: u32) -> Self {
        Self(of_65536)
    }

    /// Returns odds `factor` times as good.
    pub(crate) const fn times(self, factor: u32) -> Self {
        Self(self.0.saturating_mul(factor))
    }

    /// Draws.
    #[inline]
    pub(crate) fn hit(self, rng: &mut fastrand::Rng) -> bool {
        match self.0 {
            0 => false,
            1..65_536 => u32::from(rng.u16(..)) < self.0,
            _ => true,
        }
    }
}

/// The choices of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Before an access: drop cached entries (those for the address, half of them, or all).
    pub evict: Odds,
    /// Before an access: translate an address speculatively (see [`crate::Cpu::speculate`]).
    pub speculate: Odds,
    /// When it speculates: take an address that was used lately, or one near it, instead of a candidate (see
    /// [`crate::Cpu::set_candidates`]).
    pub near: Odds,
    /// Use a cached translation when there is one; with [`Odds::NEVER`] none is even cached.
    pub use_tlb: Odds,
    /// Begin a walk at a cached structure entry when there is one; the deepest if always, any
    /// otherwise; with [`Odds::NEVER`] none is even cached.
    pub use_structures: Odds,
    /// Fault on a cached translation that denies the access, without looking at the tables,
    /// which may have become more permissive (Intel SDM vol. 3, 4.10.4.3).
    pub believe_denial: Odds,
}

impl Policy {
    /// Keeps everything as long as the architecture allows, and uses it even if memory changed.
    pub const KEEP: Self = Self {
        evict: Odds::NEVER,
        speculate: Odds::NEVER,
        near: Odds::NEVER,
        use_tlb: Odds::ALWAYS,
        use_structures: Odds::ALWAYS,
        believe_denial: Odds::ALWAYS,
    };

    /// Chooses anew each time.
    pub const RANDOM: Self = Self {
        evict: Odds::of_256(2),
        speculate: Odds::of_256(32),
        near: Odds::NEVER,
        use_tlb: Odds::of_256(192),
        use_structures: Odds::of_256(128),
        believe_denial: Odds::of_256(128),
    };

    /// Caches nothing: each access walks the tables from the root.
    pub const NONE: Self = Self {
        evict: Odds::NEVER,
        speculate: Odds::NEVER,
        near: Odds::NEVER,
        use_tlb: Odds::NEVER,
        use_structures: Odds::NEVER,
        believe_denial: Odds::NEVER,
    };
}

#[cfg(test)]
mod draws {
    use super::Odds;

    #[test]
    fn odds_are_as_good_as_they_say() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut hits = |odds: Odds| (0..65_536).filter(|_| odds.hit(&mut rng)).count();
        assert_eq!(hits(Odds::NEVER), 0);
        assert_eq!(hits(Odds::ALWAYS), 65_536);
        assert!((15_800..17_000).contains(&hits(Odds::of_256(64))));
        assert!((30..110).contains(&hits(Odds::of_65536(64))));
    }
}
