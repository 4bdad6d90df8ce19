//! Which strategy the library's gate has, chosen when a machine is described.
//!
//! Key types: [`GateChoice`]; [`ChosenGate`], the library's strategies behind one type, so that one machine serves them all; [`Mistake`], what `vmmu litmus` lets a
//! guest find out.
//!
//! Invariant:
//! 1. A strategy is the library's own code: what is here only passes calls on, or (a [`Mistake`]) leaves them out.

use vmmu::gate::{Asymmetric, Fenced, HeavyBarrier, Locked, Strategy, Word};

use crate::membarrier::Membarrier;

/// How guest writes that the hypervisor performs are ordered with the making of shadow pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GateChoice {
    /// Under one lock.
    Locked,
    /// Full barriers on both sides.
    Fenced,
    /// A barrier on every processor when the gate opens; [`Fenced`] where there is no membarrier(2).
    #[default]
    Asymmetric,
    /// Not as it must be: to see what a guest sees of it.
    Wrong(Mistake),
}

/// A machine that is wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// The asymmetric strategy, but the opening has no barrier executed by anybody: writers read the count without one.
    PlainRead,
    /// A write is reported before it is made, and the hypervisor is held up in between, as by an interrupt of its own. Not for a machine
    /// whose frames are taken back: they stay at their place in that time, and whoever takes one waits.
    EarlyReport,
    /// Pages are not counted, so that no write is ever looked at.
    Uncounted,
}

impl GateChoice {
    /// Tells whether guest writes are reported before they are made.
    pub(crate) fn reports_early(self) -> bool {
        self == Self::Wrong(Mistake::EarlyReport)
    }

    /// Makes the strategy.
    pub(crate) fn strategy(self) -> ChosenGate {
        match self {
            Self::Locked => ChosenGate::Locked(Locked::default()),
            Self::Fenced | Self::Wrong(Mistake::EarlyReport) => ChosenGate::Fenced(Fenced),
            Self::Asymmetric => ChosenGate::Asymmetric(Membarrier::strategy()),
            Self::Wrong(Mistake::PlainRead) => ChosenGate::PlainRead(Asymmetric::new(NoBarrier)),
            Self::Wrong(Mistake::Uncounted) => ChosenGate::Uncounted,
        }
    }
}

/// A barrier that nobody executes.
#[derive(Clone, Copy, Debug)]
pub struct NoBarrier;

impl HeavyBarrier for NoBarrier {
    fn heavy(&self) {}
}

/// The strategy of a [`GateChoice`].
#[derive(Debug)]
pub enum ChosenGate {
    /// See [`GateChoice::Locked`].
    Locked(Locked),
    /// See [`GateChoice::Fenced`].
    Fenced(Fenced),
    /// See [`GateChoice::Asymmetric`].
    Asymmetric(Asymmetric<Membarrier>),
    /// See [`Mistake::PlainRead`].
    PlainRead(Asymmetric<NoBarrier>),
    /// See [`Mistake::Uncounted`].
    Uncounted,
}

impl Default for ChosenGate {
    fn default() -> Self {
        GateChoice::default().strategy()
    }
}

impl Strategy for ChosenGate {
    const NAME: &'static str = "chosen at run time";

    fn create(&self, word: &Word) {
        match self {
            Self::Locked(gate) => gate.create(word),
            Self::Fenced(gate) => gate.create(word),
            Self::Asymmetric(gate) => gate.create(word),
            Self::PlainRead(gate) => gate.create(word),
            Self::Uncounted => {}
        }
    }

    fn destroy(&self, word: &Word) {
        match self {
            Self::Locked(gate) => gate.destroy(word),
            Self::Fenced(gate) => gate.destroy(word),
            Self::Asymmetric(gate) => gate.destroy(word),
            Self::PlainRead(gate) => gate.destroy(word),
            Self::Uncounted => {}
        }
    }

    #[inline]
    fn is_open(&self, word: &Word) -> bool {
        match self {
            Self::Locked(gate) => gate.is_open(word),
            Self::Fenced(gate) => gate.is_open(word),
            Self::Asymmetric(gate) => gate.is_open(word),
            Self::PlainRead(gate) => gate.is_open(word),
            Self::Uncounted => false,
        }
    }
}

#[cfg(test)]
mod a_choice {
    use super::{GateChoice, Mistake};
    use vmmu::gate::Gate;

    #[test]
    fn counts_pages_in_every_strategy_that_does() {
        let right = [
            GateChoice::Locked,
            GateChoice::Fenced,
            GateChoice::Asymmetric,
        ];
        let wrong = [Mistake::PlainRead, Mistake::EarlyReport].map(GateChoice::Wrong);
        for choice in right.into_iter().chain(wrong) {
            let gate = Gate::new(choice.strategy());
            assert!(!gate.is_open());
            gate.create();
            assert!(gate.is_open(), "{choice:?}");
            gate.destroy();
            assert_eq!(gate.count(), 0, "{choice:?}");
        }
        let blind = Gate::new(GateChoice::Wrong(Mistake::Uncounted).strategy());
        blind.create();
        assert!(!blind.is_open());
    }
}
