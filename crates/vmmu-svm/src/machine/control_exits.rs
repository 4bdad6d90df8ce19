//! Exits of control registers and of the model-specific registers that are guarded.

use alloc::format;

use vmmu::paging::{Cr0, PagingState};

use super::{Machine, RAX, RCX, RDX, Stop, refused};
use crate::control::{CodeSegment, Refused, check_cr3, write_cr0, write_cr4, write_efer};
use crate::decode::{ControlRegister, Gpr, Instruction, Operation};
use crate::event::Exception;
use crate::permission::MsrNumber;

/// The bits of CR0 that LMSW writes; it can set PE but not clear it (AMD APM vol. 3, LMSW).
const LMSW: u64 = 0xf;
/// The enable bit of the local APIC, and the bits that say which processor it is.
const APIC_ENABLED: u64 = 1 << 11;
/// x2APIC mode.
const X2APIC: u64 = 1 << 10;

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

    fn code_segment(&self) -> CodeSegment {
        if self.vcpu.vmcb.cs.is_long() {
            CodeSegment::Long
        } else {
            CodeSegment::Legacy
        }
    }

    /// Answers a write to a control register.
    pub(super) fn write_control(&mut self, register: u8) -> Result<(), Stop> {
        let Some(Instruction { operation, length }) = self.vcpu.decode(&self.ram) else {
            return self.changed_instruction("control register");
        };
        let state = *self.vcpu.state();
        let cr0 = state.cr0.bits();
        let new = match operation {
            Operation::MovToControl(ControlRegister(written), source) if written == register => {
                let value = self.operand(source);
                match register {
                    0 => write_cr0(state, value, self.code_segment()),
                    4 => write_cr4(state, value, &self.shape),
                    _ => Err(Refused),
                }
            }
            Operation::Clts if register == 0 => {
                write_cr0(state, cr0 & !Cr0::TS.bits(), self.code_segment())
            }
            Operation::Lmsw(source) if register == 0 => {
                let value = cr0 & (!LMSW | Cr0::PE.bits()) | self.vcpu.get(source) & LMSW;
                write_cr0(state, value, self.code_segment())
            }
            _ => return self.changed_instruction("control register"),
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
            return self.changed_instruction("control register");
        };
        let value = self.operand(source);
        match check_cr3(self.vcpu.state(), value) {
            Ok(cr3) => {
                self.vcpu.set_cr3(cr3);
                if let Err(text) = self.memory.load_cr3(cr3) {
                    return refused(text);
                }
                self.vcpu.step_over(length);
                Ok(())
            }
            Err(Refused) => self.raise(Exception::Protection),
        }
    }

    /// Answers a read of a control register, which shows the guest what it wrote.
    pub(super) fn read_control(&mut self, register: u8) -> Result<(), Stop> {
        let Some(Instruction { operation, length }) = self.vcpu.decode(&self.ram) else {
            return self.changed_instruction("control register");
        };
        let state = self.vcpu.state();
        let value = match register {
            0 => state.cr0.bits(),
            3 => state.cr3.get(),
            _ => state.cr4.bits(),
        };
        match operation {
            Operation::MovFromControl(ControlRegister(read), target) if read == register => {
                self.vcpu.set(target, value)
            }
            Operation::Smsw(target, width) if register == 0 => {
                let old = self.vcpu.get(target);
                let value = if width == 2 {
                    old & !0xffff | value & 0xffff
                } else {
                    value & 0xffff_ffff
                };
                self.vcpu.set(target, value);
            }
            _ => return self.changed_instruction("control register"),
        }
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
    /// A MOV to CR3 with bits that the processor doesn't have can exit this way though it isn't intercepted. Any other refusal is a
    /// bug.
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
        let report = self.crash("the processor refused the control block");
        panic!("{report}")
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
            _ => return self.changed_instruction("model-specific register"),
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
            // The register itself stays as it is: a local APIC that was switched off might not come back on. Its page can't be moved
            // either, since it passes through.
            MsrNumber::APIC_BASE
                if value & X2APIC == 0 && (value ^ self.apic_base) & !APIC_ENABLED == 0 =>
            {
                self.apic_base = value;
                self.vcpu.step_over(length);
                Ok(())
            }
            _ => self.raise(Exception::Protection),
        }
    }
}
