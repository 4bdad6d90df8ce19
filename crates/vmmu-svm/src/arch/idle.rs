//! Waiting for an interrupt that is the guest's, without taking it.
//!
//! Key types: [`Idle`], [`Woken`]. The host itself can't wait for one: to end its HLT it would have to take the interrupt. So the processor
//! waits as a guest that has nothing: the host's own tables, one HLT, and an exit by every interrupt, which stays pending (AMD APM vol. 2,
//! section 15.13.1) and is taken by the next guest that lets it in.
//!
//! Invariants:
//! 1. The guest that waits executes nothing but the two instructions below, and touches no memory but theirs.
//! 2. Its address-space identifier is its own: it leaves nothing in the TLB that another guest could use, and uses nothing of theirs.

use vmmu::paging::Rflags;

use super::register;
use super::world::{HostWorld, Registers, run};
use crate::exit::ExitCode;
use crate::vmcb::{Intercepts1, Intercepts2, Segment, Vmcb};

#[cfg(feature = "image")]
core::arch::global_asm!(
    ".text",
    ".globl vmmu_idle",
    "vmmu_idle: hlt",
    "jmp vmmu_idle",
);

#[cfg(feature = "image")]
unsafe extern "C" {
    static vmmu_idle: u8;
}

/// The identifier of all waiting guests; the others have 1.
const ASID: u32 = 2;
/// Code and data of the host: present, accessed, 64-bit.
const CODE: Segment = Segment::flat(8, 0xa9b);
const DATA: Segment = Segment::flat(16, 0xc93);

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Woken {
    /// An interrupt, which is pending.
    Interrupt,
    /// An NMI, which is pending.
    Nmi,
}

/// Whether a wait ends by an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupts {
    /// It does.
    On,
    /// Only by an NMI.
    Off,
}

/// The guest that waits.
#[derive(Debug)]
pub struct Idle {
    vmcb: Vmcb,
    registers: Registers,
}

impl Idle {
    /// Makes one.
    pub const fn new() -> Self {
        let mut vmcb = Vmcb::new();
        vmcb.intercepts1 = Intercepts1::INTERRUPT
            .union(Intercepts1::NMI)
            .union(Intercepts1::SHUTDOWN);
        vmcb.intercepts2 = Intercepts2::all();
        vmcb.asid = ASID;
        (vmcb.cs, vmcb.ds, vmcb.es, vmcb.ss) = (CODE, DATA, DATA, DATA);
        (vmcb.dr6, vmcb.dr7) = (0xffff_0ff0, 0x400);
        Self {
            vmcb,
            registers: Registers::new(),
        }
    }

    /// Waits until an interrupt or an NMI comes, or one waits already. Neither is taken.
    ///
    /// # Panics
    /// If the wait ends by anything else: that is a bug of the hypervisor.
    pub fn wait(&mut self, host: &mut HostWorld, interrupts: Interrupts) -> Woken {
        let vmcb = &mut self.vmcb;
        (vmcb.rip, vmcb.rflags) = (start(), 2);
        if interrupts == Interrupts::On {
            vmcb.rflags |= Rflags::IF.bits();
        }
        (vmcb.cr0, vmcb.cr3) = (register::cr0(), register::cr3().get());
        (vmcb.cr4, vmcb.efer) = (register::cr4(), register::read_msr(register::Msr::Efer));
        vmcb.pat = register::read_msr(register::Msr::Pat);
        vmcb.interrupt_shadow = 0;
        run(vmcb, &mut self.registers, host);
        match ExitCode::new(vmcb.exit_code) {
            ExitCode::INTERRUPT => Woken::Interrupt,
            ExitCode::NMI => Woken::Nmi,
            code => panic!("a processor's wait ended by {code}"),
        }
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "image")]
fn start() -> u64 {
    (&raw const vmmu_idle) as u64
}

/// Stands in where there is no image: tests don't get here.
#[cfg(not(feature = "image"))]
const fn start() -> u64 {
    0
}
