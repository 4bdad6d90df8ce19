//! Instructions executed one by one: single-step traps, instruction breakpoints, and what holds for one instruction only.
//!
//! Key functions: [`State::is_watched`], [`State::take_debug`], [`Op::execute_watched`].

use crate::cpu::{Cpu, Exception, Stop};
use crate::flags::Flags;
use crate::op::Op;
use crate::state::{SegmentName, State};

/// DR6: a single-step trap.
pub(crate) const SINGLE_STEP: u64 = 1 << 14;

impl State {
    /// Says whether the next instruction is to go through [`State::take_debug`] and [`Op::execute_watched`]: it may be trapped, hit a breakpoint, or end
    /// RF's or the interrupt shadow's one instruction. It changes only by instructions whose [`After`](crate::After) is `Anything`, and by what an embedder does.
    #[inline]
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.flags.intersects(Flags::TF.union(Flags::RF))
            || self.interrupt_shadow
            || self.trap_pending != 0
            || self.dr[7] & 0xff != 0
    }

    /// Takes what is due before the instruction at RIP is fetched: a trap that SYSCALL, SYSRET or a task switch left, or an instruction breakpoint. To be
    /// asked while [`State::is_watched`].
    pub fn take_debug(&mut self) -> Option<Exception> {
        let due = core::mem::take(&mut self.trap_pending);
        if due != 0 {
            self.dr[6] |= due;
            return Some(Exception::DEBUG);
        }
        if self.dr[7] & 0xff == 0 || self.flags.contains(Flags::RF) {
            return None;
        }
        let hit = self.breakpoints();
        if hit == 0 {
            return None;
        }
        self.dr[6] = self.dr[6] & !15 | hit;
        Some(Exception::DEBUG)
    }

    /// Returns the breakpoints that the next instruction hits (AMD APM vol. 2, section 13.1.3).
    fn breakpoints(&self) -> u64 {
        let base = if self.is_64_bit() {
            0
        } else {
            self.segment(SegmentName::Cs).base
        };
        let at = base.wrapping_add(self.rip());
        let hits = |n: usize| {
            let enabled = self.dr[7] >> (2 * n) & 3 != 0;
            let of_execution = self.dr[7] >> (16 + 4 * n) & 3 == 0;
            enabled && of_execution && self.dr[n] == at
        };
        (0..4).filter(|n| hits(*n)).fold(0, |all, n| all | 1 << n)
    }
}

impl<C: Cpu> Op<C> {
    /// Executes the instruction as [`Op::execute`] does; returns #DB if it is trapped after it has completed, to be raised at once.
    ///
    /// # Errors
    /// As [`Op::execute`].
    pub fn execute_watched(&self, cpu: &mut C) -> Result<Option<Exception>, Stop> {
        let state = cpu.state_mut();
        let (flags, shadow) = (state.flags, state.interrupt_shadow);
        state.flags.remove(Flags::RF);
        state.interrupt_shadow = false;
        state.trap_held = false;
        let done = self.execute(cpu);
        let state = cpu.state_mut();
        if let Err(stop) = done {
            state.flags.set(Flags::RF, flags.contains(Flags::RF));
            state.interrupt_shadow = shadow;
            return Err(stop);
        }
        if !flags.contains(Flags::TF) || state.trap_held {
            return Ok(None);
        }
        state.dr[6] |= SINGLE_STEP;
        Ok(Some(Exception::DEBUG))
    }
}
