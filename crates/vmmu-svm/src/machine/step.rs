//! One instruction with CR0.WP off: a kernel's write to a read-only user page that no shadow entry may grant.
//!
//! The emulator has been asked before ([`super::emulate`]); this is for what it can't do.
//!
//! With CR0.WP = 0 and SMAP on, such a write is allowed while EFLAGS.AC is set, but an entry that grants it would grant more. So the page is
//! mapped read-only as the guest's own entry says, and the instruction runs alone: WP off, the trap flag on, interrupts off.
//!
//! Invariants:
//! 1. Whatever exit comes next ends the step before it is answered: no second instruction runs with WP off.
//! 2. While WP is off, write tracking doesn't hold the instruction back: its pages are reported as written when it is done.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{Cr0, Rflags};

use super::{Machine, Stop, refused};
use crate::event::{Event, Exception};
use crate::exit::ExitCode;

/// The intercept of #DB.
const DEBUG: u32 = 1 << 1;
/// PUSHF, which would show the guest the trap flag.
const PUSHF: u8 = 0x9c;
const OPERAND_SIZE: u8 = 0x66;

/// A step under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    rip: u64,
    /// The pages that the instruction is known to write: two if it crosses from one to the next.
    pages: [Gpa; 2],
    flags: Rflags,
    dr6: u64,
}

/// The flags that a step changes.
const CHANGED: Rflags = Rflags::TF.union(Rflags::IF);

impl Machine {
    /// Begins a step over the instruction that wrote to `gpa`.
    #[cold]
    pub(super) fn begin_step(&mut self, gva: Gva, gpa: Gpa) -> Result<(), Stop> {
        let vmcb = &self.vcpu.vmcb;
        let (rip, flags, dr6) = (vmcb.rip, Rflags::from_bits_retain(vmcb.rflags), vmcb.dr6);
        let is_pushf = |(bytes, _): (u128, usize)| {
            bytes as u8 == PUSHF || bytes as u8 == OPERAND_SIZE && (bytes >> 8) as u8 == PUSHF
        };
        let delivering = vmcb.exit_int_info;
        if Event::from_field(delivering).is_some()
            || self.vcpu.fetch(&self.ram).is_none_or(is_pushf)
        {
            let text = alloc::format!(
                "no emulator for the write to {gpa} at rip {rip:#x} with CR0.WP off and SMAP on (delivering {delivering:x})"
            );
            return refused(text);
        }
        if let Err(text) = self.memory.map_readable(gva, self.vcpu.privilege()) {
            return refused(text);
        }
        let before = self
            .last_step
            .filter(|last| last.rip == rip)
            .map_or(gpa, |last| last.pages[1]);
        let step = Step {
            rip,
            pages: [before, gpa],
            flags,
            dr6,
        };
        (self.step, self.last_step) = (Some(step), Some(step));
        let vmcb = &mut self.vcpu.vmcb;
        vmcb.cr0 &= !Cr0::WP.bits();
        vmcb.exceptions |= DEBUG;
        vmcb.rflags = ((flags | Rflags::TF) - Rflags::IF).bits();
        Ok(())
    }

    /// Ends a step, and tells whether the exit is answered by that.
    #[cold]
    pub(super) fn end_step(&mut self, step: Step, code: ExitCode) -> Option<Result<(), Stop>> {
        self.step = None;
        let vmcb = &mut self.vcpu.vmcb;
        vmcb.cr0 |= Cr0::WP.bits();
        vmcb.exceptions &= !DEBUG;
        let flags = Rflags::from_bits_retain(vmcb.rflags) - CHANGED;
        vmcb.rflags = (flags | step.flags & CHANGED).bits();
        for page in step.pages {
            self.memory.wrote(page);
        }
        if code != ExitCode::DEBUG {
            return None;
        }
        self.vcpu.vmcb.dr6 = step.dr6;
        if step.flags.contains(Rflags::TF) {
            self.vcpu.vmcb.dr6 |= 1 << 14;
            return Some(self.raise(Exception::Debug));
        }
        Some(Ok(()))
    }
}
