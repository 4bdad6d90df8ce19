//! How a processor begins, is reset by another's INIT, and starts again.

use super::nmi::Nmi;
use super::{Machine, Stop};
use crate::arch::register;
use crate::channel::End;
use crate::cpus::Start;
use crate::vmcb::Intercepts1;

/// The intercept of #DB, which a step sets.
const NO_EXCEPTIONS_OF_A_STEP: u32 = !(1 << 1);

/// Whether a processor was reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Changed {
    Yes,
    No,
}

impl Machine {
    /// Begins to run: the first processor at its entry, another when it is started.
    pub(super) fn begin(&mut self) -> Result<(), Stop> {
        match self.change_state()? {
            Changed::Yes => Ok(()),
            Changed::No => {
                let state = *self.vcpu.state();
                self.apply(state)
            }
        }
    }

    /// Does what another processor's INIT or start-up asks for: waits until there is a start-up, and starts there.
    #[cold]
    pub(super) fn change_state(&mut self) -> Result<Changed, Stop> {
        let mut asked = self.cpus.answer(self.number);
        if asked == Start::Running {
            return Ok(Changed::No);
        }
        if self.number.0 == 0 {
            // INIT starts the first processor from its reset vector, where no firmware is.
            return Err(Stop::End(End::Shutdown(
                "reset by INIT of the first processor",
            )));
        }
        self.cpus.apic.reset(register::discard_interrupts);
        self.cpus.set_logical(self.number, 0);
        self.cpus.set_format(self.number, u32::MAX);
        // With the interrupts NMIs may have been let in: what they were for is looked for.
        let mut nmis = 0;
        loop {
            // An NMI of the guest's that comes here is lost, as one that waits at INIT.
            let summons = self
                .cpus
                .answer_wait(self.number, nmis, register::let_nmis_in);
            self.cpus.hold(self.number, summons);
            match self.cpus.answer(self.number) {
                Start::Running => {}
                other => asked = other,
            }
            if let Start::At(page) = asked {
                self.start_up(page)?;
                return Ok(Changed::Yes);
            }
            nmis = register::wait_for_nmi();
        }
    }

    fn start_up(&mut self, page: u8) -> Result<(), Stop> {
        self.nmi = Nmi::Open;
        (self.step, self.last_step) = (None, None);
        self.vcpu.vmcb.intercepts1 -= Intercepts1::IRET;
        self.vcpu.vmcb.exceptions &= NO_EXCEPTIONS_OF_A_STEP;
        self.vcpu.start_up(page, &self.shape);
        let state = *self.vcpu.state();
        self.apply(state)
    }
}
