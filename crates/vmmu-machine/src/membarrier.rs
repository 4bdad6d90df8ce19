//! The heavy barrier of a process: membarrier(2).
//!
//! Key type: [`Membarrier`].

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};
use vmmu::gate::{Asymmetric, HeavyBarrier};

/// A full barrier on every processor that runs a thread of this process.
///
/// All guest writes must be performed by threads of this process: other writers need the fenced strategy.
#[derive(Clone, Copy, Debug)]
pub struct Membarrier(());

impl Membarrier {
    /// Registers the process for it; returns nothing where the system has no such call.
    #[must_use]
    pub fn register() -> Option<Self> {
        let wanted = [
            MembarrierCommand::RegisterPrivateExpedited,
            MembarrierCommand::PrivateExpedited,
        ];
        let known = membarrier_query();
        let has = wanted.iter().all(|one| known.contains_command(*one));
        (has && membarrier(wanted[0]).is_ok() && membarrier(wanted[1]).is_ok()).then_some(Self(()))
    }

    /// Makes the asymmetric strategy with it, or the one that fences on both sides where there is none; [`Asymmetric::falls_back`] tells which.
    #[must_use]
    pub fn strategy() -> Asymmetric<Self> {
        Self::register().map_or_else(Asymmetric::default, Asymmetric::new)
    }
}

impl HeavyBarrier for Membarrier {
    fn heavy(&self) {
        membarrier(MembarrierCommand::PrivateExpedited).expect(
            "the call succeeded when the process was registered, and takes no other resources",
        );
    }
}

#[cfg(test)]
mod strategy {
    use super::Membarrier;
    use vmmu::gate::Gate;

    #[test]
    fn says_whether_there_is_a_barrier() {
        let strategy = Membarrier::strategy();
        assert_eq!(strategy.falls_back(), Membarrier::register().is_none());
        let gate = Gate::new(strategy);
        gate.create();
        assert!(gate.is_open());
    }
}
