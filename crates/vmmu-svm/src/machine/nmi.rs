//! NMIs: every one is the guest's, but the host has to take it first.
//!
//! | state | meaning |
//! |---|---|
//! | `Open` | the guest is in no NMI handler |
//! | `Masked` | it is, until its IRET, which exits |
//! | `Pending` | as `Masked`, and another NMI waits |
//!
//! Known gap: the one that waits is delivered right before the IRET, not right behind it.

use super::Machine;
use crate::arch::register;
use crate::event::Event;
use crate::vmcb::Intercepts1;

/// What the guest is doing about NMIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Nmi {
    Open,
    Masked,
    Pending,
}

impl Machine {
    /// Answers an NMI. It comes between two instructions, so that no other event is on its way.
    #[cold]
    pub(super) fn take_nmi(&mut self) {
        register::take_nmi();
        match self.nmi {
            Nmi::Open => self.deliver_nmi(),
            Nmi::Masked | Nmi::Pending => self.nmi = Nmi::Pending,
        }
    }

    /// Answers the IRET that ends an NMI's handler.
    #[cold]
    pub(super) fn end_nmi(&mut self) {
        match self.nmi {
            Nmi::Pending => self.deliver_nmi(),
            Nmi::Open | Nmi::Masked => {
                self.vcpu.vmcb.intercepts1 -= Intercepts1::IRET;
                self.nmi = Nmi::Open;
            }
        }
    }

    fn deliver_nmi(&mut self) {
        self.vcpu.vmcb.event = Event::NMI.field();
        self.vcpu.vmcb.intercepts1 |= Intercepts1::IRET;
        self.nmi = Nmi::Masked;
    }
}
