//! Entries, accesses and faults.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{GuestFormat, PagingState};
use vmmu::{EmulateReason, Engine, Error, FaultOutcome, Unprotected};
use vmmu_cpu::{self as cpu, Asid, Fault, Flush, Hpa, Registers, Va, World};
use vmmu_spec::{Access, ErrorCode, Kind};

use super::{Machine, ROUNDS, Seen, Writes};
use crate::convert;

impl Machine {
    /// Returns what a processor runs with, on a root.
    fn world(&self, cpu: usize, root: vmmu::addr::Hpa) -> World {
        let state = &self.cpus[cpu].state;
        let root = Hpa::new(root.get());
        let guest = cpu::Cr4::from_bits_truncate(state.cr4.bits());
        let (regs, nested) = match self.engine {
            Engine::Npt => (guest_registers(state), Some(cpu::Nested::npt4(root))),
            Engine::Ept => (guest_registers(state), Some(cpu::Nested::ept4(root))),
            _ => {
                let strict = guest & (cpu::Cr4::SMEP | cpu::Cr4::SMAP);
                let mut regs = match state.format() {
                    GuestFormat::Level4 => Registers::long4(root),
                    GuestFormat::Level5 => Registers::long5(root),
                    _ => Registers::pae(root),
                };
                regs.cr4.remove(cpu::Cr4::PGE);
                if state.format() != GuestFormat::Off {
                    regs.cr4 |= strict;
                }
                (regs, None)
            }
        };
        World {
            regs,
            asid: Asid::new(1),
            nested,
        }
    }

    /// Makes sure that a vCPU is in its guest.
    ///
    /// # Errors
    /// What the library refuses.
    ///
    /// # Panics
    /// If the processor refuses the root.
    pub fn enter(&mut self, cpu: usize) -> Result<(), Error> {
        if self.host.is_inside(cpu) {
            return Ok(());
        }
        let entry = self.vcpu(cpu).enter()?;
        self.host.entered(cpu);
        let world = self.world(cpu, entry.root);
        let flush = if entry.flush {
            Flush::All
        } else {
            Flush::Nothing
        };
        self.cpus[cpu]
            .cpu
            .enter(&world, flush)
            .expect("a root that the processor takes");
        Ok(())
    }

    /// Lets the guest make an access, and judges what it shows.
    pub fn access(&mut self, cpu: usize, va: u64, access: Access) -> Seen {
        self.access_storing(cpu, va, access, None)
    }

    /// Lets the guest write a word.
    pub fn write(&mut self, cpu: usize, va: u64, value: u64, access: Access) -> Seen {
        assert_eq!(access.kind(), Kind::Write);
        self.access_storing(cpu, va, access, Some(value))
    }

    fn access_storing(&mut self, cpu: usize, va: u64, access: Access, value: Option<u64>) -> Seen {
        let start = self.log.now();
        let seen = self.drive(cpu, va, access);
        self.drain();
        if self.engine != Engine::Shadow {
            self.absorb(cpu, va, access, start);
        }
        self.judge(cpu, va, access, start, seen);
        match (seen, value) {
            (Seen::Memory(hpa), Some(value)) => {
                self.host.memory.store(hpa, value);
                self.note(hpa, value);
            }
            (Seen::Emulated(gpa), Some(value)) => self.emulated_write(gpa.get(), value),
            (Seen::PageFault(_), _) => self.flushed_page(cpu, va),
            _ => {}
        }
        self.after();
        seen
    }

    /// Runs the access until it is done or refused.
    fn drive(&mut self, cpu: usize, va: u64, access: Access) -> Seen {
        let mut unprotected = 0;
        let hardware = convert::cpu_access(access);
        for _ in 0..ROUNDS {
            if let Err(error) = self.enter(cpu) {
                return Seen::Failed(error);
            }
            let fault = match self.cpus[cpu].cpu.translate(Va::new(va), hardware) {
                Ok(translation) => return Seen::Memory(translation.hpa),
                Err(fault) => fault,
            };
            match self.serve(cpu, va, access, fault, &mut unprotected) {
                Some(seen) => return seen,
                None => self.check(),
            }
        }
        panic!("cpu {cpu}: {access:?} at {va:#x} faults for ever");
    }

    fn serve(
        &mut self,
        cpu: usize,
        va: u64,
        access: Access,
        fault: Fault,
        unprotected: &mut u32,
    ) -> Option<Seen> {
        let outcome = match fault {
            Fault::Page { .. } if self.engine == Engine::Shadow => {
                self.host.exit(cpu);
                let expected = self.expect_updates(cpu, va, access);
                let call = convert::access(access);
                let outcome = self.vcpu(cpu).handle_fault(Gva::new(va), call);
                let stored = self.drain();
                self.judge_updates(expected, &stored, va, access);
                outcome
            }
            Fault::Page { code, .. } => {
                return Some(Seen::PageFault(ErrorCode::from_bits_truncate(code.bits())));
            }
            Fault::Nested { gpa, code } => {
                self.host.exit(cpu);
                let kind = nested_kind(
                    code.contains(cpu::NpfCode::WRITE),
                    code.contains(cpu::NpfCode::FETCH),
                );
                self.vcpu(cpu)
                    .handle_nested_fault(Gpa::new(gpa.get()), kind)
            }
            Fault::EptViolation {
                gpa, qualification, ..
            } => {
                self.host.exit(cpu);
                let kind = nested_kind(
                    qualification.contains(cpu::EptQualification::WRITE),
                    qualification.contains(cpu::EptQualification::FETCH),
                );
                self.vcpu(cpu)
                    .handle_nested_fault(Gpa::new(gpa.get()), kind)
            }
            Fault::NotCanonical(_) => return Some(Seen::GeneralProtection),
            other => panic!("cpu {cpu}: {access:?} at {va:#x}: {other}"),
        };
        match outcome {
            Ok(outcome) => self.obey(cpu, va, outcome, unprotected),
            Err(error) => Some(Seen::Failed(error)),
        }
    }

    fn obey(
        &mut self,
        cpu: usize,
        va: u64,
        outcome: FaultOutcome,
        unprotected: &mut u32,
    ) -> Option<Seen> {
        match outcome {
            FaultOutcome::Resume | FaultOutcome::Retry => None,
            FaultOutcome::InjectPageFault { gva, code } => {
                assert_eq!(gva.get(), va, "CR2");
                let code = ErrorCode::from_bits_truncate(code.bits());
                Some(Seen::PageFault(code))
            }
            FaultOutcome::InjectGeneralProtection => Some(Seen::GeneralProtection),
            FaultOutcome::EmulateMmio { gpa, reason } => Some(Seen::Device(gpa, reason)),
            FaultOutcome::EmulateWrite { gpa, reason } => {
                let table = reason == EmulateReason::GuestTable;
                if table && self.writes == Writes::Unprotect && *unprotected < 2 {
                    let done = self.vcpu(cpu).unprotect(gpa, va, Gva::new(va));
                    let done = done.expect("the vCPU is free");
                    *unprotected += u32::from(done == Unprotected::Again);
                    return None;
                }
                Some(Seen::Emulated(gpa))
            }
            FaultOutcome::TableMissing { gpa } => Some(Seen::TableMissing(gpa)),
            other => panic!("{other:?}"),
        }
    }
}

fn nested_kind(write: bool, fetch: bool) -> vmmu::walk::AccessKind {
    if write {
        vmmu::walk::AccessKind::Write
    } else if fetch {
        vmmu::walk::AccessKind::Fetch
    } else {
        vmmu::walk::AccessKind::Read
    }
}

/// Returns the registers of a guest that runs on them itself.
fn guest_registers(state: &PagingState) -> Registers {
    Registers {
        cr0: cpu::Cr0::from_bits_truncate(state.cr0.bits()),
        cr3: cpu::Cr3::new(state.cr3.get()),
        cr4: cpu::Cr4::from_bits_truncate(state.cr4.bits()),
        efer: cpu::Efer::from_bits_truncate(state.efer.bits()),
        pkru: cpu::Pkru::new(state.pkru.get()),
    }
}
