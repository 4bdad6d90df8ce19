//! INIT and start-up of one processor by another.
//!
//! State of a processor, one atomic word:
//!
//! | word | meaning | changed by |
//! |---|---|---|
//! | running | it executes the guest | itself, from start-up |
//! | INIT | an INIT has come | any processor, from running or start-up |
//! | waiting | it waits for a start-up | itself, from INIT |
//! | start-up, page | it is to start there, from reset | any processor, from INIT or waiting |
//!
//! Invariants:
//! 1. The state is stored before the summons, and read after they are taken.

use core::sync::atomic::Ordering;

use vmmu::host::VcpuId;

use super::{Cpus, Summons};

/// What a processor whose state has changed does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Start {
    /// It goes on.
    Running,
    /// It is reset, and waits.
    Waits,
    /// It is reset, and starts in real mode in this page.
    At(u8),
}

pub(super) const RUNNING: u32 = 0;
const INIT: u32 = 1;
pub(super) const WAITING: u32 = 2;
const START_UP: u32 = 0x100;

impl Cpus {
    /// Notes an INIT for a processor, and summons it.
    pub fn init(&self, number: VcpuId) {
        let change = |state| (state != WAITING).then_some(INIT);
        self.change(number, change);
    }
    /// Notes a start-up for a processor, and summons it; one that is not waiting for it never learns.
    pub fn start_up(&self, number: VcpuId, page: u8) {
        let change = |state| matches!(state, INIT | WAITING).then_some(START_UP | u32::from(page));
        self.change(number, change);
    }
    fn change(&self, number: VcpuId, change: impl FnMut(u32) -> Option<u32>) {
        let changed = self.get(number).is_some_and(|cpu| {
            cpu.state
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
                .is_ok()
        });
        if changed {
            self.summon(number, Summons::STATE);
        }
    }
    /// Says what this processor is to do, and counts it as done.
    pub fn answer(&self, number: VcpuId) -> Start {
        let Some(cpu) = self.get(number) else {
            return Start::Running;
        };
        let change = |state| {
            Some(if state == INIT || state == WAITING {
                WAITING
            } else {
                RUNNING
            })
        };
        let found = cpu
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
            .unwrap_or_else(|state| state);
        match found {
            RUNNING => Start::Running,
            INIT | WAITING => Start::Waits,
            start => Start::At(start as u8),
        }
    }
}

#[cfg(test)]
mod processors_summon_each_other {
    use super::super::processors_summon_each_other::{ONE, cpus, left, take};
    use super::*;

    #[test]
    fn to_start_after_an_init_only_and_once() {
        let cpus = cpus();
        assert_eq!(cpus.answer(ONE), Start::Waits);
        cpus.start_up(ONE, 0x99);
        assert_eq!(take(&cpus, ONE), Summons::STATE);
        assert_eq!(cpus.answer(ONE), Start::At(0x99));
        assert_eq!(cpus.answer(ONE), Start::Running);
        // The second start-up that systems send comes to a processor that runs.
        cpus.start_up(ONE, 0x99);
        assert_eq!(
            (left(&cpus, ONE), cpus.answer(ONE)),
            (Summons::empty(), Start::Running)
        );
        // Both before it has looked.
        cpus.init(ONE);
        cpus.start_up(ONE, 0x10);
        assert_eq!(cpus.answer(ONE), Start::At(0x10));
        cpus.init(ONE);
        assert_eq!(
            (cpus.answer(ONE), cpus.answer(ONE)),
            (Start::Waits, Start::Waits)
        );
    }
}
