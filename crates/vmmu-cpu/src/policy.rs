//! What the processor does where the architecture lets it choose.
//!
//! Key types: [`Policy`], [`Odds`]. [`crate::Cpu`] asks a seeded generator at each choice, so
//! that one seed gives one run.
//!
//! Invariants:
//! 1. Every combination of odds is architecturally allowed: no policy makes a correct hypervisor
//!    fail.

/// A probability in 256ths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Odds(u16);

impl Odds {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Always.
    pub const ALWAYS: Self = Self(256);

    /// Makes odds of `of_256` in 256; more than 256 means always.
    #[must_use]
    pub const fn of_256(of_256: u16) -> Self {
        Self(of_256)
    }

    /// Draws.
    pub(crate) fn hit(self, rng: &mut fastrand::Rng) -> bool {
        match self.0 {
            0 => false,
            1..256 => rng.u16(0..256) < self.0,
            _ => true,
        }
    }
}

/// The choices of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Before an access: drop cached entries (those for the address, half of them, or all).
    pub evict: Odds,
    /// Before an access: translate one of the candidates (see
    /// [`crate::Cpu::set_candidates`]) speculatively.
    pub speculate: Odds,
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
        use_tlb: Odds::ALWAYS,
        use_structures: Odds::ALWAYS,
        believe_denial: Odds::ALWAYS,
    };

    /// Chooses anew each time.
    pub const RANDOM: Self = Self {
        evict: Odds::of_256(2),
        speculate: Odds::of_256(32),
        use_tlb: Odds::of_256(192),
        use_structures: Odds::of_256(128),
        believe_denial: Odds::of_256(128),
    };

    /// Caches nothing of use: each access walks the tables from the root.
    pub const NONE: Self = Self {
        evict: Odds::NEVER,
        speculate: Odds::NEVER,
        use_tlb: Odds::NEVER,
        use_structures: Odds::NEVER,
        believe_denial: Odds::NEVER,
    };
}
