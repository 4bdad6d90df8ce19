//! NMIs: the host has to take every one first. Those by which processors summon each other ([`crate::cpus`]) end there; the others are the
//! guest's.
//!
//! | state | meaning |
//! |---|---|
//! | `Open` | the guest is in no NMI handler |
//! | `Masked` | it is, until its IRET, which exits |
//! | `Pending` | as `Masked`, and another NMI waits |
//!
//! Known gaps: the one that waits is delivered right before the IRET, not right behind it; a device's NMI that comes while one of the host's
//! waits for the same processor, which keeps one, is lost, as the second of a device's own is.

use super::start::Changed;
use super::{Machine, Stop};
use crate::arch::register;
use crate::cpus::Summons;
use crate::event::Event;
use crate::vmcb::Intercepts1;

/// What the guest is doing about NMIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Nmi {
    Open,
    Masked,
    Pending,
}

/// Whose an NMI was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Answered {
    /// The host's, and it is done.
    Hosts,
    /// The host's, and the processor was reset.
    Reset,
    /// The guest's.
    Guests,
}

impl Machine {
    /// Answers an NMI that made the guest exit.
    #[cold]
    pub(super) fn take_nmi(&mut self) -> Result<(), Stop> {
        match self.answer_nmi()? {
            Answered::Reset => {}
            Answered::Hosts => self.vcpu.resume(),
            Answered::Guests if Event::from_field(self.vcpu.vmcb.exit_int_info).is_some() => {
                // The event comes first.
                self.vcpu.resume();
                self.cpus.summon(self.number, Summons::NMI);
            }
            Answered::Guests => self.inject_nmi(),
        }
        Ok(())
    }

    /// Takes an NMI that waits, and does what the other processors want.
    pub(super) fn answer_nmi(&mut self) -> Result<Answered, Stop> {
        let summons = self.cpus.answer_nmi(self.number, register::let_nmis_in);
        self.cpus.hold(self.number, summons);
        if summons.contains(Summons::STATE) && self.change_state()? == Changed::Yes {
            return Ok(Answered::Reset);
        }
        Ok(if summons.contains(Summons::NMI) {
            Answered::Guests
        } else {
            Answered::Hosts
        })
    }

    /// Gives the guest an NMI, as soon as it can take one.
    pub(super) fn inject_nmi(&mut self) {
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
