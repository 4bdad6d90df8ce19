//! Faults that made the guest leave: asks the library, carries out its answer.
//!
//! Invariants:
//! 1. A write to a guest table that can't be emulated unprotects the frame and runs again; an instruction that writes the table of its own
//!    translation is told by coming back (scenario L3), and ends after a bounded number of rounds.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::Rflags;
use vmmu::walk::{Access as GuestAccess, AccessKind, PageFaultCode, Privilege};
use vmmu::{EmulateReason, Error, FaultOutcome, Unprotected};
use vmmu_cpu::{Access as MmuAccess, Kind, NpfCode, PfCode, Privilege as Rank, Va};
use vmmu_emu::system::event::{Delivery, Event, raise};
use vmmu_emu::{Access, Exception, Flags, Stop};

use crate::check::{Emulated, GuestFault, Observer, Refused, Time};
use crate::vmm::emulate::Emulator;
use crate::vmm::end::End;
use crate::vmm::report;
use crate::vmm::runner::Runner;

/// How often in a row one instruction may come back because its own translation needs the table that it writes.
const PATIENCE: u32 = 16;

/// An access that the guest tried, as the observer is told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) va: Va,
    pub(super) access: MmuAccess,
    pub(super) start: Time,
}

impl<O: Observer> Runner<'_, O> {
    /// Answers #PF of the shadow tables.
    pub(super) fn page_fault(
        &mut self,
        va: Va,
        code: PfCode,
        access: Option<Access>,
        event: Option<Event>,
    ) {
        let attempt = self.attempt(va, code, access);
        let state = self.processor.state();
        let privilege = match access {
            Some(Access::SystemRead | Access::SystemWrite) => Privilege::KERNEL,
            _ => Privilege::new(state.cpl, Rflags::from_bits_retain(state.flags.bits())),
        };
        let code = PageFaultCode::from_bits_retain(code.bits());
        let access = GuestAccess::from_page_fault(code, privilege);
        let gva = Gva::new(va.get());
        match self.vcpu.handle_fault(gva, access) {
            Ok(FaultOutcome::Resume) => {
                self.again = 0;
                self.resume(event);
            }
            outcome => self.carry_out_fault(outcome, gva, event, Some(attempt)),
        }
    }

    /// Returns what the observer is told of an access that faulted.
    fn attempt(&self, va: Va, code: PfCode, access: Option<Access>) -> Attempt {
        let kind = if code.contains(PfCode::FETCH) {
            Kind::Execute
        } else if code.contains(PfCode::WRITE) {
            Kind::Write
        } else {
            Kind::Read
        };
        let kind = if access.is_none() {
            Kind::Execute
        } else {
            kind
        };
        let state = self.processor.state();
        let privilege = match access {
            Some(Access::SystemRead | Access::SystemWrite) => Rank::Implicit,
            _ if state.cpl == 3 => Rank::User,
            Some(_) if state.flags.contains(Flags::AC) => Rank::SupervisorAc,
            _ => Rank::Supervisor,
        };
        Attempt {
            va,
            access: MmuAccess::new(kind, privilege),
            start: self.vm.observer.now(),
        }
    }

    /// Tells the observer that the guest is to see a fault; tells whether it may.
    pub(super) fn may_see(&mut self, attempt: &Attempt, fault: GuestFault) -> bool {
        let refused = Refused {
            va: attempt.va,
            access: attempt.access,
            fault,
            start: attempt.start,
            rip: self.processor.state().rip(),
        };
        self.vm.observer.refused(self.vcpu.id(), &refused).is_ok()
    }

    /// Tells the observer that an access is emulated; tells whether it may be.
    pub(super) fn may_emulate(
        &mut self,
        attempt: &Attempt,
        gpa: Gpa,
        reason: Option<EmulateReason>,
    ) -> bool {
        let emulated = Emulated {
            va: Gva::new(attempt.va.get()),
            access: attempt.access,
            gpa,
            reason,
            start: attempt.start,
            rip: self.processor.state().rip(),
        };
        self.vm.observer.emulated(self.vcpu.id(), &emulated).is_ok()
    }

    /// Answers a nested page fault.
    pub(super) fn nested_fault(&mut self, gpa: vmmu_cpu::Gpa, code: NpfCode, event: Option<Event>) {
        let kind = if code.contains(NpfCode::FETCH) {
            AccessKind::Fetch
        } else if code.contains(NpfCode::WRITE) {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let gpa = Gpa::new(gpa.get());
        let outcome = self.vcpu.handle_nested_fault(gpa, kind);
        if code.contains(NpfCode::TABLE)
            && let Ok(FaultOutcome::EmulateMmio { gpa, .. }) = outcome
        {
            self.table_missing(gpa);
            return;
        }
        self.carry_out_fault(outcome, Gva::new(0), event, None);
    }

    fn resume(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            self.processor.inject(event);
        }
    }

    fn carry_out_fault(
        &mut self,
        outcome: Result<FaultOutcome, Error>,
        gva: Gva,
        event: Option<Event>,
        attempt: Option<Attempt>,
    ) {
        if let (Some(attempt), Ok(outcome)) = (attempt, &outcome)
            && !self.may_carry_out(&attempt, *outcome)
        {
            self.caught();
            return;
        }
        match outcome {
            Ok(FaultOutcome::Resume) => self.resume(event),
            Ok(FaultOutcome::Retry) => {
                std::thread::yield_now();
                self.resume(event);
            }
            Ok(FaultOutcome::InjectPageFault { gva, code }) => {
                self.processor.state_mut().fault_address = gva.get();
                self.raise(Exception::with_code(14, code.bits() as u16), event);
            }
            Ok(FaultOutcome::InjectGeneralProtection) => {
                self.raise(Exception::GENERAL_PROTECTION, event)
            }
            Ok(
                FaultOutcome::EmulateMmio { gpa, reason }
                | FaultOutcome::EmulateWrite { gpa, reason },
            ) => match event {
                None => self.emulate_access(gpa, gva, reason),
                Some(event) => self.emulate_delivery(event),
            },
            Ok(FaultOutcome::TableMissing { gpa }) => self.table_missing(gpa),
            Ok(outcome) => self.refuse(&format!("no answer to {outcome:?}")),
            Err(error) => self.library_failed(error),
        }
    }

    fn may_carry_out(&mut self, attempt: &Attempt, outcome: FaultOutcome) -> bool {
        match outcome {
            FaultOutcome::InjectPageFault { code, .. } => {
                self.may_see(attempt, GuestFault::Page(code))
            }
            FaultOutcome::InjectGeneralProtection => {
                self.may_see(attempt, GuestFault::NotCanonical)
            }
            FaultOutcome::EmulateMmio { gpa, reason }
            | FaultOutcome::EmulateWrite { gpa, reason } => {
                self.may_emulate(attempt, gpa, Some(reason))
            }
            _ => true,
        }
    }

    /// Emulates the instruction that accessed `gpa`, or lets it run if that can't be done.
    fn emulate_access(&mut self, gpa: Gpa, gva: Gva, reason: EmulateReason) {
        let mut emulator = Emulator::new(self);
        let result = emulator.execute();
        let (follow, trouble) = (emulator.follow, emulator.trouble.take());
        match (result, trouble) {
            (Ok(trap), _) => {
                self.again = 0;
                self.emulated(follow, trap);
            }
            (Err(Stop::Unsupported), None) if reason == EmulateReason::GuestTable => {
                self.unprotect(gpa, gva)
            }
            (Err(stop), trouble) => self.emulation_stopped(stop, trouble),
        }
    }

    /// Delivers an event whose delivery touches what only the hypervisor can access: a device, or a guest table.
    pub(super) fn emulate_delivery(&mut self, event: Event) {
        let mut emulator = Emulator::new(self);
        let delivery = raise(&mut emulator, event);
        let (follow, trouble) = (emulator.follow, emulator.trouble.take());
        match delivery {
            Delivery::Done => self.follow(follow),
            Delivery::Stopped(event, stop) if trouble.is_none() && stop == Stop::Exit => {
                self.processor.inject(event)
            }
            Delivery::Stopped(_, stop) => self.emulation_stopped(stop, trouble),
            Delivery::Shutdown => {
                let report = report::crash(self, "the guest ran into a triple fault");
                self.vm.finish(End::TripleFault(report));
            }
        }
    }

    /// Takes the protection from a guest table, where a write to it can't be emulated, and lets the instruction run again.
    fn unprotect(&mut self, gpa: Gpa, gva: Gva) {
        let rip = self.processor.state().rip();
        let unprotected = if self.vm.mmu.may_be_protected() {
            self.vcpu.unprotect(gpa, rip, gva)
        } else {
            Ok(Unprotected::NotProtected)
        };
        match unprotected {
            Ok(Unprotected::Retry) => self.again = 0,
            // Not protected: another processor took the protection since the fault.
            Ok(Unprotected::Again | Unprotected::NotProtected) => self.again += 1,
            Err(error) => self.library_failed(error),
        }
        if self.again > PATIENCE {
            self.refuse(&format!(
                "an instruction that can't be emulated writes the table at {gpa}, perhaps of its own translation"
            ));
        }
    }
}
