//! Exits of control registers and of the model-specific registers that are guarded.

use alloc::format;

use vmmu::paging::{Cr3, PagingState};

use super::{Machine, RAX, RCX, RDX, Stop, refused};
use crate::channel::End;
use crate::control::{
    CodeSegment, Refused, check_cr3, write_apic_base, write_cr0, write_cr4, write_efer,
};
use crate::decode::{ControlRegister, Gpr, Instruction, Operation};
use crate::event::Exception;
use crate::permission::MsrNumber;

impl Machine {
    /// Takes over new paging registers.
    pub(super) fn apply(&mut self, state: PagingState) -> Result<(), Stop> {
        self.vcpu.set_state(state);
        match self.memory.apply(&state, &mut self.vcpu.vmcb) {
            Ok(()) => Ok(()),
            Err(text) => refused(format!("{text}, at rip {:#x}", self.vcpu.vmcb.rip)),
        }
    }

    /// Steps over an instruction that wrote new paging registers, or raises #GP.
    fn finish(&mut self, new: Result<PagingState, Refused>, length: u8) -> Result<(), Stop> {
        match new {
            Ok(state) => {
                self.vcpu.step_over(length);
                self.apply(state)
            }
            Err(Refused) => self.raise(Exception::Protection),
        }
    }

    pub(super) fn code_segment(&self) -> CodeSegment {
        if self.vcpu.vmcb.cs.is_long() {
            CodeSegment::Long
        } else {
            CodeSegment::Legacy
        }
    }

    /// Answers a write to a control register.
    pub(super) fn write_control(&mut self, register: u8) -> Result<(), Stop> {
        let (value, length) = match self.vcpu.decode(&self.ram) {
            Some(Instruction {
                operation: Operation::MovToControl(ControlRegister(written), source),
                length,
            }) if written == register => (self.operand(source), length),
            _ => return self.serve("control register"),
        };
        let state = *self.vcpu.state();
        let new = match register {
            0 => write_cr0(state, value, self.code_segment()),
            4 => write_cr4(state, value, &self.shape),
            _ => Err(Refused),
        };
        self.finish(new, length)
    }

    /// Answers a write to CR3, which changes the root and nothing else.
    #[inline]
    pub(super) fn write_cr3(&mut self) -> Result<(), Stop> {
        let Some(Instruction {
            operation: Operation::MovToControl(ControlRegister(3), source),
            length,
        }) = self.vcpu.decode(&self.ram)
        else {
            return self.serve("control register");
        };
        let value = self.operand(source);
        match check_cr3(self.vcpu.state(), value) {
            Ok(cr3) => {
                self.vcpu.step_over(length);
                self.load_cr3(cr3)
            }
            Err(Refused) => self.raise(Exception::Protection),
        }
    }

    /// Takes over a new CR3.
    #[inline]
    pub(super) fn load_cr3(&mut self, cr3: Cr3) -> Result<(), Stop> {
        self.vcpu.set_cr3(cr3);
        self.memory.load_cr3(cr3).or_else(refused)
    }

    /// Answers a read of a control register, which shows the guest what it wrote.
    pub(super) fn read_control(&mut self, register: u8) -> Result<(), Stop> {
        let (target, length) = match self.vcpu.decode(&self.ram) {
            Some(Instruction {
                operation: Operation::MovFromControl(ControlRegister(read), target),
                length,
            }) if read == register => (target, length),
            _ => return self.serve("control register"),
        };
        let state = self.vcpu.state();
        let value = match register {
            0 => state.cr0.bits(),
            3 => state.cr3.get(),
            _ => state.cr4.bits(),
        };
        self.vcpu.set(target, value);
        self.vcpu.step_over(length);
        Ok(())
    }

    /// Returns a MOV's source as wide as the code makes it.
    #[inline]
    fn operand(&self, source: Gpr) -> u64 {
        let value = self.vcpu.get(source);
        if self.vcpu.code_size() == crate::decode::CodeSize::Bits64 {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// Answers the processor's refusal to run.
    ///
    /// A MOV to CR3 with bits that the processor doesn't have can exit this way though it isn't intercepted. Any other refusal ends
    /// the run with a report.
    pub(super) fn refused_by_processor(&mut self) -> Result<(), Stop> {
        let state = *self.vcpu.state();
        if let Some(Instruction {
            operation: Operation::MovToControl(ControlRegister(3), source),
            ..
        }) = self.vcpu.decode(&self.ram)
            && check_cr3(&state, self.operand(source)) == Err(Refused)
        {
            return self.raise(Exception::Protection);
        }
        Err(Stop::End(End::Crash(
            self.crash("the processor refused the control block"),
        )))
    }

    /// Answers RDMSR and WRMSR of a guarded register.
    pub(super) fn msr(&mut self) -> Result<(), Stop> {
        let write = self.vcpu.vmcb.exit_info1 & 1 != 0;
        let length = match self.vcpu.decode(&self.ram) {
            Some(Instruction {
                operation: Operation::Wrmsr,
                length,
            }) if write => length,
            Some(Instruction {
                operation: Operation::Rdmsr,
                length,
            }) if !write => length,
            _ => return self.serve("model-specific register"),
        };
        let number = MsrNumber(self.vcpu.get(RCX) as u32);
        if write {
            let value = self.vcpu.get(RDX) << 32 | self.vcpu.get(RAX) & 0xffff_ffff;
            return self.write_msr(number, value, length);
        }
        let value = match number {
            MsrNumber::APIC_BASE => self.apic_base,
            MsrNumber::EFER => self.vcpu.state().efer.bits(),
            _ => return self.raise(Exception::Protection),
        };
        self.vcpu.set(RAX, value & 0xffff_ffff);
        self.vcpu.set(RDX, value >> 32);
        self.vcpu.step_over(length);
        Ok(())
    }

    fn write_msr(&mut self, number: MsrNumber, value: u64, length: u8) -> Result<(), Stop> {
        match number {
            MsrNumber::EFER => {
                let state = *self.vcpu.state();
                let new = write_efer(state, value, &self.shape);
                self.finish(new, length)
            }
            // The register itself stays as it is: a local APIC that was switched off might not come back on.
            MsrNumber::APIC_BASE => match write_apic_base(self.apic_base, value) {
                Ok(new) => {
                    self.apic_base = new;
                    self.vcpu.step_over(length);
                    Ok(())
                }
                Err(Refused) => self.raise(Exception::Protection),
            },
            _ => self.raise(Exception::Protection),
        }
    }
}
