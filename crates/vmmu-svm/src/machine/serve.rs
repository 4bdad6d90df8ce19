//! Instructions that exit and aren't recognised by their bytes, accesses where nothing is, and to the local APIC: executed by the emulator, with all that the hypervisor
//! serves within its reach.
//!
//! Invariants:
//! 1. The bytes may have changed since the processor read them. What is executed is what is there now, if it changes nothing but general registers,
//!    arithmetic flags, memory and what [`Follow`] names; anything else ends the run with a reason.
//! 2. With several processors, one may change the instruction, or take its page away, right after the exit, before the flush that it owes the others:
//!    then it is run again, and the processor sees for itself.
//! 3. A page fault, or what else the instruction raises, goes to the guest.

use alloc::format;

use vmmu::addr::{Gpa, Gva};
use vmmu::walk::PageFaultCode;
use vmmu_emu::{Cpu as _, Flags, Mode, State, Stop as Left, decode};

use super::emulate::{code, take_registers};
use super::guest_cpu::{GuestCpu, Reach};
use super::services::{Follow, Services};
use super::{Machine, Stop, refused};
use crate::event::{Event, Exception};

/// The vector of a page fault.
const PAGE_FAULT: u8 = 14;

/// What became of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Served {
    Yes,
    /// It is none that can be.
    No,
}

impl Machine {
    /// Serves the instruction that exited because of `what` it does.
    #[cold]
    pub(super) fn serve(&mut self, what: &str) -> Result<(), Stop> {
        match self.execute()? {
            Served::Yes => Ok(()),
            Served::No if self.may_have_changed() => self.run_again(),
            Served::No => refused(format!(
                "the {what} instruction at rip {:#x} changed while it ran, or has a form that isn't known",
                self.vcpu.vmcb.rip
            )),
        }
    }

    /// Tells whether another processor may have changed the instruction, or its translation, between the exit and now; it has not if the same one
    /// exits again and again.
    fn may_have_changed(&mut self) -> bool {
        const PATIENCE: u32 = 64;
        let rip = self.vcpu.vmcb.rip;
        let rounds = match self.changed {
            Some((at, rounds)) if at == rip => rounds + 1,
            _ => 0,
        };
        self.changed = Some((rip, rounds));
        self.cpus.are_several() && rounds < PATIENCE
    }

    /// Has the processor run the instruction again, by its translation as it is now.
    fn run_again(&mut self) -> Result<(), Stop> {
        let at = self.vcpu.instruction_address();
        self.memory.invalidate(at).or_else(refused)
    }

    /// Serves an access to an address where nothing is (reads give ones, writes are dropped), or a write to the local APIC.
    #[cold]
    pub(super) fn touch(&mut self, gpa: Gpa, what: &str) -> Result<(), Stop> {
        let delivers = Event::from_field(self.vcpu.vmcb.exit_int_info).is_some();
        if !delivers && self.execute()? == Served::Yes {
            return Ok(());
        }
        if !delivers && self.may_have_changed() {
            return self.run_again();
        }
        refused(format!(
            "the guest touched {gpa}, {what}, in a way that isn't emulated, at rip {:#x}",
            self.vcpu.vmcb.rip
        ))
    }

    /// Executes the instruction that exited.
    fn execute(&mut self) -> Result<Served, Stop> {
        let Some((bytes, len)) = code(&mut self.vcpu, &self.ram) else {
            return Ok(Served::No);
        };
        let segment = self.code_segment();
        let (vcpu, ram) = (&mut self.vcpu, &self.ram);
        let apic = self.cpus.apic;
        let services = Services::new(vcpu, ram, &self.shape, segment, apic, self.apic_base);
        let mut cpu = GuestCpu::new(vcpu, &self.memory, ram, Reach::Served(services));
        let before = cpu.state().clone();
        let result = match decode::<GuestCpu<'_>>(&bytes[..len], Mode::of(&before)) {
            Ok(op) => op.execute(&mut cpu),
            Err(_) => Err(Left::Unsupported),
        };
        let (state, reach) = cpu.into_parts();
        let follow = match reach {
            Reach::Served(services) => services.into_follow(),
            Reach::Used => Follow::Nothing,
        };
        if result.is_ok() && !is_served(&before, &state) {
            return Ok(Served::No);
        }
        take_registers(&mut self.vcpu, &state);
        match (result, follow) {
            (Ok(()), follow) => {
                self.memory.emulated();
                self.vcpu.step_to(state.rip());
                self.follow(follow)?;
            }
            (Err(_), Follow::End(stop)) => return Err(stop),
            (Err(Left::Exception(exception)), _) => self.raise(raised(exception, &state))?,
            (Err(Left::Exit | Left::Unsupported), _) => return Ok(Served::No),
        }
        Ok(Served::Yes)
    }

    fn follow(&mut self, follow: Follow) -> Result<(), Stop> {
        match follow {
            Follow::Nothing => Ok(()),
            Follow::Paging(state) => self.apply(state),
            Follow::Root(cr3) => self.load_cr3(cr3),
            Follow::Page(gva) => self.memory.invalidate(gva).or_else(refused),
            Follow::ApicBase(base) => {
                self.apic_base = base;
                Ok(())
            }
            Follow::Apic(register, value) => {
                self.set_apic(register, value);
                Ok(())
            }
            Follow::Wait => self.wait(),
            Follow::End(stop) => Err(stop),
        }
    }
}

/// Tells whether an instruction changed nothing but what is taken over.
fn is_served(before: &State, after: &State) -> bool {
    let tables = |state: &State| (state.ldtr, state.tr, state.gdtr, state.idtr);
    let control = |state: &State| {
        [
            state.cr0, state.cr2, state.cr3, state.cr4, state.cr8, state.efer,
        ]
    };
    let rest = |state: &State| {
        let flags = state.flags.difference(Flags::ARITHMETIC);
        (flags, state.cpl, state.interrupt_shadow, state.nmi_blocked)
    };
    before.segments == after.segments
        && tables(before) == tables(after)
        && control(before) == control(after)
        && before.dr == after.dr
        && rest(before) == rest(after)
}

/// Returns an exception as the guest gets it.
fn raised(exception: vmmu_emu::Exception, state: &State) -> Exception {
    match (exception.vector, exception.code) {
        (PAGE_FAULT, code) => Exception::Page(
            Gva::new(state.fault_address),
            PageFaultCode::from_bits_retain(u32::from(code.unwrap_or(0))),
        ),
        (vector, code) => Exception::Other(vector, code),
    }
}
