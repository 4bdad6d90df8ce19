//! What an instruction reaches that the processor can't run by itself, because it exits: the guest's memory as the processor would reach it,
//! control registers, ports, guarded model-specific registers, CPUID.
//!
//! Key types: [`Services`], [`Follow`] (what is to be done once the instruction is over).
//!
//! Invariants:
//! 1. Addresses are translated by the guest's own tables, with accessed and dirty bits set as the processor sets them; a page fault is the guest's.
//! 2. Where nothing is, reads give ones and writes are dropped. Devices that pass through are left alone.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{Cr3, PagingState};
use vmmu::walk::{Access, CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth, WalkFailure, Walker};
use vmmu_emu::{Control, Exception, Features, Stop};

use super::{Machine, io};
use crate::arch::apic::{ApicRegister, LocalApic};
use crate::arch::guest_ram::GuestRam;
use crate::arch::register;
use crate::control::{
    CodeSegment, Refused, check_cr3, write_apic_base, write_cr0, write_cr4, write_efer,
};
use crate::cpuid::Shape;
use crate::guest_tables::Tables;
use crate::paging::Memory;
use crate::permission::MsrNumber;
use crate::vcpu::Vcpu;

/// How often a walk is tried while others change the tables.
const ATTEMPTS: u32 = 16;

/// What is to be done when the instruction is over.
#[derive(Debug, Default)]
pub(super) enum Follow {
    /// Nothing.
    #[default]
    Nothing,
    /// CR0, CR4 or EFER was written.
    Paging(PagingState),
    /// CR3 was.
    Root(Cr3),
    /// A page is no longer to be found in caches.
    Page(Gva),
    /// The base of the local APIC was written.
    ApicBase(u64),
    /// A register of the local APIC was.
    Apic(ApicRegister, u32),
    /// The processor waits for an interrupt.
    Wait,
    /// The run ends.
    End(super::Stop),
}

/// What the hypervisor serves.
#[derive(Debug)]
pub(super) struct Services<'a> {
    shape: &'a Shape,
    walker: Walker,
    code: CodeSegment,
    apic: LocalApic,
    apic_base: u64,
    follow: Follow,
}

impl<'a> Services<'a> {
    /// Makes those of the guest's processor as it is.
    pub(super) fn new(
        vcpu: &mut Vcpu,
        ram: &GuestRam,
        shape: &'a Shape,
        code: CodeSegment,
        apic: LocalApic,
        apic_base: u64,
    ) -> Self {
        Self {
            shape,
            walker: vcpu.guest_walker(ram),
            code,
            apic,
            apic_base,
            follow: Follow::Nothing,
        }
    }

    /// Returns what is to be done.
    pub(super) fn into_follow(self) -> Follow {
        self.follow
    }

    /// Translates an access within a page.
    pub(super) fn find(
        &self,
        memory: &Memory,
        ram: &GuestRam,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, NotFound> {
        let tables = Marked { memory, ram };
        for _ in 0..ATTEMPTS {
            return match self.walker.walk(&tables, gva, access) {
                Ok(walk) => Ok(walk.gpa()),
                Err(WalkFailure::Retry) => continue,
                Err(WalkFailure::Fault(fault)) => Err(NotFound::Fault(fault.code.bits() as u16)),
                Err(WalkFailure::NonCanonical) => {
                    Err(NotFound::Stop(Exception::GENERAL_PROTECTION.into()))
                }
                Err(_) => Err(NotFound::Stop(Stop::Exit)),
            };
        }
        Err(NotFound::Stop(Stop::Exit))
    }

    /// Says what the processor offers.
    pub(super) fn features(&self) -> Features {
        Features {
            cr4: self.shape.cr4_valid().bits(),
            efer: self.shape.efer_valid().bits(),
            physical_bits: self.shape.model().phys_bits.get(),
            ..Features::BASELINE
        }
    }

    fn paging(&mut self, new: Result<PagingState, Refused>) -> Result<(), Stop> {
        self.follow = Follow::Paging(new.map_err(refuse)?);
        Ok(())
    }

    pub(super) fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        let state = *self.walker.state();
        match register {
            Control::Cr0 => self.paging(write_cr0(state, value, self.code)),
            Control::Cr4 => self.paging(write_cr4(state, value, self.shape)),
            Control::Cr3 => {
                self.follow = Follow::Root(check_cr3(&state, value).map_err(refuse)?);
                Ok(())
            }
            // The task priority doesn't exit.
            Control::Cr8 => Err(Stop::Exit),
        }
    }

    pub(super) fn halt(&mut self) {
        self.follow = Follow::Wait;
    }

    pub(super) fn invalidate(&mut self, at: u64) {
        self.follow = Follow::Page(Gva::new(at));
    }

    pub(super) fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = register::cpuid(leaf, subleaf);
        let cr4 = self.walker.state().cr4;
        let shown = self.shape.filter(leaf, subleaf, cr4, answer);
        [shown.eax, shown.ebx, shown.ecx, shown.edx]
    }

    pub(super) fn read_msr(&self, number: u32) -> Result<u64, Stop> {
        match MsrNumber(number) {
            MsrNumber::APIC_BASE => Ok(self.apic_base),
            MsrNumber::EFER => Ok(self.walker.state().efer.bits()),
            _ => Err(refuse(Refused)),
        }
    }

    pub(super) fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop> {
        match MsrNumber(number) {
            MsrNumber::EFER => self.paging(write_efer(*self.walker.state(), value, self.shape)),
            MsrNumber::APIC_BASE => {
                let new = write_apic_base(self.apic_base, value).map_err(refuse)?;
                self.follow = Follow::ApicBase(new);
                Ok(())
            }
            _ => Err(refuse(Refused)),
        }
    }

    /// Reads a register of the local APIC.
    pub(super) fn read_apic(&self, register: ApicRegister) -> u32 {
        self.apic.read(register)
    }

    /// Writes a register of the local APIC: one, once.
    pub(super) fn write_apic(&mut self, register: ApicRegister, value: u32) -> Result<(), Stop> {
        if !matches!(self.follow, Follow::Nothing) {
            return Err(Stop::Exit);
        }
        self.follow = Follow::Apic(register, value);
        Ok(())
    }

    pub(super) fn port_in(&self, port: u16, bytes: usize) -> u32 {
        Machine::read_port(io::PortAccess::input(port, bytes))
    }

    pub(super) fn port_out(&mut self, port: u16, bytes: usize, value: u32) -> Result<(), Stop> {
        Machine::write_port(io::PortAccess::output(port, bytes), value).map_err(|stop| {
            self.follow = Follow::End(stop);
            Stop::Exit
        })
    }
}

/// Why an address wasn't translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotFound {
    /// A page fault with this code.
    Fault(u16),
    /// Anything else.
    Stop(Stop),
}

fn refuse(_: Refused) -> Stop {
    Exception::GENERAL_PROTECTION.into()
}

/// The guest's tables, in which accessed and dirty bits are set in the guest's name.
struct Marked<'a> {
    memory: &'a Memory,
    ram: &'a GuestRam,
}

impl GpteMemory for Marked<'_> {
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError> {
        Tables(self.ram).read(at, width)
    }
    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        let announced = self.memory.announce(at, 8);
        let done = Tables(self.ram).compare_exchange(at, width, current, new)?;
        announced.report();
        Ok(done)
    }
}
