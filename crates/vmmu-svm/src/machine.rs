//! One processor of the guest's machine: runs it, and answers its exits.
//!
//! Neighbours: [`crate::vcpu`] switches worlds and decodes, [`crate::paging`] knows the tables, [`crate::control`] judges writes to
//! control registers, [`crate::channel`] tells the command.
//!
//! Invariants:
//! 1. An exit either steps over its instruction, or raises an exception, or resumes: each exactly once.
//! 2. What isn't known ends the run with a reason; nothing is guessed.

mod control_exits;
mod emulate;
mod guest_cpu;
mod halt;
mod io;
mod local_apic;
mod nmi;
#[cfg(test)]
mod on_host;
mod serve;
mod services;
mod start;
mod step;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::num::NonZeroU64;

use vmmu::addr::{Gpa, Gva};
use vmmu::host::VcpuId;
use vmmu::walk::PageFaultCode;

use crate::arch::guest_ram::GuestRam;
use crate::arch::register;
use crate::arch::world::physical;
use crate::channel::End;
use crate::config::{Configuration, Paging};
use crate::cpuid::Shape;
use crate::cpus::Cpus;
use crate::decode::{Gpr, Instruction, Operation};
use crate::event::Exception;
use crate::exit::{Counters, EXITS, ExitCode};
use crate::load::Entry;
use crate::paging::{Answer, Memory, Unit};
use crate::permission::{MsrMap, PortMap};
use crate::report;
use crate::vcpu::{TripleFault, Vcpu};
use crate::vmcb::{ControlRegisters, Intercepts1, Intercepts2};

use nmi::Nmi;
use step::Step;

const RAX: Gpr = Gpr(0);
const RCX: Gpr = Gpr(1);
const RDX: Gpr = Gpr(2);
const RBX: Gpr = Gpr(3);

/// A processor of the guest's machine, to be run by the host's processor of the same number.
#[derive(Debug)]
pub struct Machine {
    number: VcpuId,
    vcpu: Box<Vcpu>,
    memory: Memory,
    ram: Arc<GuestRam>,
    shape: Shape,
    cpus: Arc<Cpus>,
    exits: &'static Counters,
    apic_base: u64,
    audit_every: Option<NonZeroU64>,
    nmi: Nmi,
    step: Option<Step>,
    last_step: Option<Step>,
    /// Where an instruction was run again because it had changed, and how often in a row.
    changed: Option<(u64, u32)>,
    // The processor reads them as long as the guest runs.
    _maps: Arc<(PortMap, MsrMap)>,
}

/// What the processors have in common.
#[derive(Clone, Debug)]
pub struct Board {
    /// The memory-management unit.
    pub unit: &'static Unit,
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The processors as they see each other.
    pub cpus: Arc<Cpus>,
    /// What each is shown of the host's processor.
    pub shape: Shape,
    /// Which ports and model-specific registers exit.
    pub maps: Arc<(PortMap, MsrMap)>,
}

/// Why the run ends.
#[derive(Debug)]
enum Stop {
    End(End),
    TripleFault,
}

impl From<TripleFault> for Stop {
    fn from(_: TripleFault) -> Self {
        Self::TripleFault
    }
}

fn refused<T>(text: String) -> Result<T, Stop> {
    Err(Stop::End(End::Refused(text)))
}

impl Machine {
    /// Makes the processor with this number. The first is about to execute `entry`; the others wait for their start-up.
    pub fn new(configuration: &Configuration, board: Board, number: VcpuId, entry: Entry) -> Self {
        let Board {
            unit,
            ram,
            cpus,
            shape,
            maps,
        } = board;
        let paging = configuration.paging;
        let mut vcpu = Box::new(Vcpu::new(entry, &shape, paging));
        let vmcb = &mut vcpu.vmcb;
        (vmcb.iopm, vmcb.msrpm) = (physical(&maps.0).get(), physical(&maps.1).get());
        vmcb.asid = 1;
        vmcb.cr_writes = ControlRegisters::CR0 | ControlRegisters::CR4;
        vmcb.intercepts1 = Intercepts1::NMI
            | Intercepts1::CPUID
            | Intercepts1::INVLPGA
            | Intercepts1::IOIO
            | Intercepts1::MSR;
        vmcb.intercepts1 |= Intercepts1::SHUTDOWN;
        if cpus.are_several() {
            vmcb.intercepts1 |= Intercepts1::HLT;
        }
        vmcb.intercepts2 = Intercepts2::all();
        if paging == Paging::Shadow {
            vmcb.cr_writes |= ControlRegisters::CR3;
            vmcb.cr_reads = ControlRegisters::CR0 | ControlRegisters::CR3 | ControlRegisters::CR4;
            vmcb.intercepts1 |= Intercepts1::INVLPG;
            vmcb.exceptions = 1 << 14;
        }
        Self {
            number,
            vcpu,
            memory: Memory::new(unit, number),
            ram,
            shape,
            cpus,
            exits: EXITS.of(number),
            apic_base: 0,
            audit_every: configuration.audit,
            nmi: Nmi::Open,
            step: None,
            last_step: None,
            changed: None,
            _maps: maps,
        }
    }

    /// Runs the guest until it ends, on the host's processor of this number.
    pub fn run(&mut self) -> End {
        self.vcpu.save_host();
        self.find_apic();
        let mut going = self.begin();
        loop {
            match going {
                Ok(()) => {}
                Err(Stop::End(end)) => return end,
                Err(Stop::TripleFault) => {
                    return End::Crash(self.crash("the guest ran into a triple fault"));
                }
            }
            if let Some(every) = self.audit_every
                && self.exits.total().is_multiple_of(every.get())
            {
                let unit = self.memory.unit();
                self.cpus.while_others_hold(self.number, || unit.audit());
            }
            if let Err(text) = self.memory.enter(&mut self.vcpu.vmcb) {
                return End::Refused(text);
            }
            self.vcpu.run();
            self.memory.exited();
            self.vcpu.vmcb.event = 0;
            let code = ExitCode::new(self.vcpu.vmcb.exit_code);
            self.exits.count(code);
            going = match self.step {
                None => self.answer(code),
                Some(step) => self
                    .end_step(step, code)
                    .unwrap_or_else(|| self.answer(code)),
            };
        }
    }

    /// Returns the memory-management unit.
    pub const fn unit(&self) -> &'static Unit {
        self.memory.unit()
    }

    /// Answers an exit.
    #[inline]
    fn answer(&mut self, code: ExitCode) -> Result<(), Stop> {
        match code {
            ExitCode::PAGE_FAULT => self.page_fault(),
            ExitCode::NESTED_FAULT => self.nested_fault(),
            ExitCode::CR3_WRITE => self.write_cr3(),
            ExitCode::CPUID => self.cpuid(),
            ExitCode::INVLPG => self.invlpg(),
            ExitCode::IOIO => self.io(),
            ExitCode::MSR => self.msr(),
            _ => self.answer_rare(code),
        }
    }

    fn answer_rare(&mut self, code: ExitCode) -> Result<(), Stop> {
        if let Some(register) = code.offset_from(ExitCode::CR_WRITE, 16) {
            return self.write_control(register);
        }
        if let Some(register) = code.offset_from(ExitCode::CR_READ, 16) {
            return self.read_control(register);
        }
        if code.offset_from(ExitCode::VMRUN, 7).is_some() || code == ExitCode::INVLPGA {
            // SVM isn't offered to the guest (AMD APM vol. 2, section 15.4).
            return self.raise(Exception::Undefined);
        }
        match code {
            ExitCode::NMI => self.take_nmi(),
            ExitCode::HLT => self.serve("hlt"),
            ExitCode::IRET => {
                self.end_nmi();
                Ok(())
            }
            ExitCode::SHUTDOWN => Err(Stop::TripleFault),
            ExitCode::INVALID => self.refused_by_processor(),
            code => panic!(
                "the guest exited with code {:#x}, which nothing asked for",
                code.get()
            ),
        }
    }

    fn page_fault(&mut self) -> Result<(), Stop> {
        let vmcb = &self.vcpu.vmcb;
        let (gva, code) = (
            Gva::new(vmcb.exit_info2),
            PageFaultCode::from_bits_retain(vmcb.exit_info1 as u32),
        );
        let answer = self.memory.page_fault(gva, code, self.vcpu.privilege());
        self.carry_out(answer)
    }

    fn nested_fault(&mut self) -> Result<(), Stop> {
        let vmcb = &self.vcpu.vmcb;
        let (gpa, code) = (
            Gpa::new(vmcb.exit_info2),
            PageFaultCode::from_bits_retain(vmcb.exit_info1 as u32),
        );
        let answer = self.memory.nested_fault(gpa, code);
        self.carry_out(answer)
    }

    #[inline]
    fn carry_out(&mut self, answer: Answer) -> Result<(), Stop> {
        match answer {
            Answer::Resume => {
                self.vcpu.resume();
                Ok(())
            }
            Answer::Raise(exception) => self.raise(exception),
            Answer::WriteTable(gva, gpa) => self.write_table(gva, gpa),
            Answer::WriteAlone(gva, gpa) => self.write_alone(gva, gpa),
            Answer::WriteApic(gpa) => self.write_apic(gpa),
            Answer::Absent(gpa) => self.touch(gpa, "where nothing is"),
            Answer::Refused(text) => refused(format!("{text}, at rip {:#x}", self.vcpu.vmcb.rip)),
        }
    }

    fn cpuid(&mut self) -> Result<(), Stop> {
        let Some(Instruction {
            operation: Operation::Cpuid,
            length,
        }) = self.vcpu.decode(&self.ram)
        else {
            return self.serve("cpuid");
        };
        let (leaf, subleaf) = (self.vcpu.get(RAX) as u32, self.vcpu.get(RCX) as u32);
        let cr4 = self.vcpu.state().cr4;
        let answer = self
            .shape
            .filter(leaf, subleaf, cr4, register::cpuid(leaf, subleaf));
        for (register, value) in [
            (RAX, answer.eax),
            (RBX, answer.ebx),
            (RCX, answer.ecx),
            (RDX, answer.edx),
        ] {
            self.vcpu.set(register, u64::from(value));
        }
        self.vcpu.step_over(length);
        Ok(())
    }

    fn invlpg(&mut self) -> Result<(), Stop> {
        let Some(Instruction {
            operation: Operation::Invlpg(gva),
            length,
        }) = self.vcpu.decode(&self.ram)
        else {
            return self.serve("invlpg");
        };
        if let Err(text) = self.memory.invalidate(gva) {
            return refused(text);
        }
        self.vcpu.step_over(length);
        Ok(())
    }

    fn raise(&mut self, exception: Exception) -> Result<(), Stop> {
        Ok(self.vcpu.raise(exception)?)
    }

    #[cold]
    fn crash(&mut self, why: &str) -> String {
        let why = format!("{why} on processor {}", self.number.0);
        report::crash(&why, &mut self.vcpu, &self.ram, &self.memory)
    }
}
