//! Writes to the local APIC's page, which is read-only for a guest with several processors.
//!
//! All go to the register itself but those that would reset a processor: INIT and start-up are done by [`crate::cpus`], and NMIs too, since
//! the host takes them first. Other interrupts reach the right guest by themselves, as each of its processors runs on the host's with the
//! same identifier.
//!
//! Known gap: system-management interrupts are not sent.

use vmmu::addr::Gpa;
use vmmu::host::VcpuId;

use super::{Machine, Stop};
use crate::arch::apic::ApicRegister;
use crate::arch::register;
use crate::cpus::Summons;
use crate::event::Event;
use crate::store::{self, Store, StoreSource};

/// How an interrupt is delivered (AMD APM vol. 2, section 16.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Delivery {
    /// By its vector, or whatever else the real APIC does.
    Ordinary,
    /// Not at all.
    Nothing,
    Nmi,
    Init,
    StartUp,
}

/// Whom an interrupt command names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shorthand {
    Destination,
    Own,
    All,
    Others,
}

/// The lower half of the interrupt command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Command(u32);

impl Command {
    const fn delivery(self) -> Delivery {
        const LEVEL_TRIGGERED: u32 = 1 << 15;
        const ASSERTED: u32 = 1 << 14;
        match self.0 >> 8 & 7 {
            0 | 1 => Delivery::Ordinary,
            4 => Delivery::Nmi,
            // The end of an INIT's level, which says nothing any more.
            5 if self.0 & (LEVEL_TRIGGERED | ASSERTED) == LEVEL_TRIGGERED => Delivery::Nothing,
            5 => Delivery::Init,
            6 => Delivery::StartUp,
            _ => Delivery::Nothing,
        }
    }
    const fn shorthand(self) -> Shorthand {
        match self.0 >> 18 & 3 {
            0 => Shorthand::Destination,
            1 => Shorthand::Own,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        }
    }
    const fn is_logical(self) -> bool {
        self.0 & 1 << 11 != 0
    }
    const fn vector(self) -> u8 {
        self.0 as u8
    }
}

impl Machine {
    /// Takes over the local APIC as it is, and makes it the one of the processor that boots if that is what this one is.
    pub(super) fn find_apic(&mut self) {
        const BOOTS: u64 = 1 << 8;
        self.apic_base = register::read_msr(register::Msr::ApicBase);
        if self.number.0 == 0 && self.apic_base & BOOTS == 0 {
            self.apic_base |= BOOTS;
            self.cpus.apic.boots();
        }
    }

    /// Answers a write to the local APIC's page.
    pub(super) fn write_apic(&mut self, gpa: Gpa) -> Result<(), Stop> {
        let size = self.vcpu.code_size();
        let store = match Event::from_field(self.vcpu.vmcb.exit_int_info) {
            None => self.vcpu.fetch(&self.ram),
            Some(_) => None,
        };
        let store = store.and_then(|(bytes, _)| store::recognise(bytes, size));
        let (Some(Store { source, length }), Some(register)) = (store, ApicRegister::at(gpa))
        else {
            return self.touch(gpa, "the local APIC");
        };
        let value = match source {
            StoreSource::Register(register) => self.vcpu.get(register) as u32,
            StoreSource::Immediate(value) => value,
        };
        self.set_apic(register, value);
        self.vcpu.step_over(length);
        Ok(())
    }

    /// Writes a register of the local APIC in the guest's name.
    pub(super) fn set_apic(&self, register: ApicRegister, value: u32) {
        let apic = self.cpus.apic;
        match register {
            // By its identifier a processor is found.
            ApicRegister::ID => return,
            ApicRegister::COMMAND => return self.command(Command(value)),
            ApicRegister::LOGICAL_DESTINATION => self.cpus.set_logical(self.number, value),
            ApicRegister::DESTINATION_FORMAT => self.cpus.set_format(self.number, value),
            _ => {}
        }
        apic.write(register, value);
    }

    fn command(&self, command: Command) {
        let cpus = &self.cpus;
        match command.delivery() {
            Delivery::Ordinary => cpus.apic.write(ApicRegister::COMMAND, command.0),
            Delivery::Nothing => {}
            Delivery::Nmi => self.each(command, |cpu| cpus.summon(cpu, Summons::NMI)),
            Delivery::Init => self.each(command, |cpu| cpus.init(cpu)),
            Delivery::StartUp => self.each(command, |cpu| cpus.start_up(cpu, command.vector())),
        }
    }

    /// Calls `act` for each processor that the command names.
    fn each(&self, command: Command, act: impl Fn(VcpuId)) {
        let destination = (self.cpus.apic.read(ApicRegister::DESTINATION) >> 24) as u8;
        let is_named = |number: &VcpuId| match command.shorthand() {
            Shorthand::Own => *number == self.number,
            Shorthand::All => true,
            Shorthand::Others => *number != self.number,
            Shorthand::Destination if command.is_logical() => {
                self.cpus.is_logical(*number, destination)
            }
            Shorthand::Destination => {
                destination == u8::MAX || self.cpus.identifier(*number) == destination
            }
        };
        self.cpus.numbers().filter(is_named).for_each(act);
    }
}

#[cfg(test)]
mod commands_are_read {
    use super::*;

    #[test]
    fn as_systems_write_them() {
        let read = |value| (Command(value).delivery(), Command(value).shorthand());
        use Shorthand::{Destination, Others, Own};
        assert_eq!(read(0x0000_08fd), (Delivery::Ordinary, Destination));
        assert_eq!(read(0x000c_00fb), (Delivery::Ordinary, Others));
        assert_eq!(read(0x0004_00f6), (Delivery::Ordinary, Own));
        assert_eq!(read(0x0000_c500), (Delivery::Init, Destination));
        assert_eq!(read(0x0000_8500), (Delivery::Nothing, Destination));
        assert_eq!(read(0x0000_0699), (Delivery::StartUp, Destination));
        assert_eq!(Command(0x0000_0699).vector(), 0x99);
        assert_eq!(read(0x000c_0400), (Delivery::Nmi, Others));
        assert!(Command(0x0000_0c02).is_logical());
    }
}
