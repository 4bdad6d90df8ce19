//! The guest's processor as the emulator sees it: the control block's registers, and memory through the guest's own tables.
//!
//! Key types: [`GuestCpu`], [`Reach`].
//!
//! Invariants:
//! 1. Whatever it can't do ends in [`Stop::Exit`] with nothing done. Under [`Reach::Used`] the processor then runs the instruction itself, which is so
//!    for device memory, accesses across pages, ports, control registers; also pages whose accessed or dirty bit is yet to be set.
//! 2. Each store is reported to the library before the guest goes on.
//! 3. The floating-point and vector registers stay in the processor, which runs whatever uses them.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::Rflags;
use vmmu::walk::{self, AccessKind, Privilege};
use vmmu_emu::{
    Access, Control, Cpu, Exception, Features, Flags, Gpr, Invalidation, Segment, State, Stop,
    Table, Word,
};

use super::services::{NotFound, Services};
use crate::arch::apic::{self, ApicRegister};
use crate::arch::guest_ram::GuestRam;
use crate::paging::Memory;
use crate::vcpu::Vcpu;
use crate::vmcb;

/// How far an instruction reaches.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time lives, on the stack, for one instruction"
)]
pub(super) enum Reach<'a> {
    /// To memory that the processor has used the same way before.
    Used,
    /// To all that the hypervisor serves.
    Served(Services<'a>),
}

/// The one implementation of the emulator's [`Cpu`] in the image.
#[derive(Debug)]
pub(super) struct GuestCpu<'a> {
    state: State,
    memory: &'a Memory,
    ram: &'a GuestRam,
    reach: Reach<'a>,
}

/// Where the bytes of an access lie: an address, and how many from there on.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    here: Option<(Gpa, usize)>,
    there: Option<(Gpa, usize)>,
}

impl Iterator for Pieces {
    type Item = (Gpa, usize);

    fn next(&mut self) -> Option<Self::Item> {
        self.here.take().or_else(|| self.there.take())
    }
}

impl<'a> GuestCpu<'a> {
    /// Makes one of the registers as they are.
    pub(super) fn new(
        vcpu: &mut Vcpu,
        memory: &'a Memory,
        ram: &'a GuestRam,
        reach: Reach<'a>,
    ) -> Self {
        let mut state = State::reset();
        for number in 0..16 {
            let value = vcpu.get(crate::decode::Gpr(number));
            state.set(Gpr::new(number), value);
        }
        let paging = *vcpu.state();
        state.cr0 = paging.cr0.bits();
        (state.cr3, state.cr4, state.efer) =
            (paging.cr3.get(), paging.cr4.bits(), paging.efer.bits());
        let vmcb = &vcpu.vmcb;
        state.set_rip(vmcb.rip);
        // RF holds for this instruction, which is no breakpoint any more.
        state.flags = Flags::from_bits_retain(vmcb.rflags).difference(Flags::RF);
        state.interrupt_shadow = vmcb.interrupt_shadow & 1 != 0;
        state.cpl = vmcb.cpl;
        (state.dr[6], state.dr[7]) = (vmcb.dr6, vmcb.dr7);
        // In the order of `SegmentName`.
        state.segments = [vmcb.es, vmcb.cs, vmcb.ss, vmcb.ds, vmcb.fs, vmcb.gs].map(segment);
        (state.ldtr, state.tr) = (segment(vmcb.ldtr), segment(vmcb.tr));
        (state.gdtr, state.idtr) = (table(vmcb.gdtr), table(vmcb.idtr));
        Self {
            state,
            memory,
            ram,
            reach,
        }
    }

    /// Returns the registers, and what was reached.
    pub(super) fn into_parts(self) -> (State, Reach<'a>) {
        (self.state, self.reach)
    }

    /// Translates the address of `len` bytes in one page.
    fn find(&mut self, at: u64, len: usize, access: Access) -> Result<Gpa, Stop> {
        if (at & 0xfff) + len as u64 > 4096 {
            return Err(Stop::Exit);
        }
        let kind = match access {
            Access::Read | Access::SystemRead => AccessKind::Read,
            Access::Update | Access::Write | Access::SystemWrite => AccessKind::Write,
        };
        let privilege = match access {
            Access::SystemRead | Access::SystemWrite => Privilege::KERNEL,
            _ => {
                let flags = Rflags::from_bits_retain(self.state.flags.bits());
                Privilege::new(self.state.cpl, flags)
            }
        };
        let gva = Gva::new(at);
        let Reach::Served(services) = &self.reach else {
            let found = self.memory.translate_used(gva, kind, privilege);
            return found.ok_or(Stop::Exit);
        };
        let access = walk::Access::new(kind, privilege);
        match services.find(self.memory, self.ram, gva, access) {
            Ok(gpa) => Ok(gpa),
            Err(NotFound::Stop(stop)) => Err(stop),
            Err(NotFound::Fault(code)) => {
                self.state.fault_address = at;
                Err(Exception::with_code(14, code).into())
            }
        }
    }

    /// Translates `len` bytes, at most a page's, that may lie on two pages.
    fn pieces(&mut self, at: u64, len: usize, access: Access) -> Result<Pieces, Stop> {
        let first = len.min(4096 - (at & 0xfff) as usize);
        if first < len && matches!(self.reach, Reach::Used) {
            return Err(Stop::Exit);
        }
        let here = self.find(at, first, access)?;
        let there = if first < len {
            Some(self.find(at.wrapping_add(first as u64), len - first, access)?)
        } else {
            None
        };
        Ok(Pieces {
            here: Some((here, first)),
            there: there.map(|gpa| (gpa, len - first)),
        })
    }

    /// Returns the register of the local APIC that an access means.
    fn apic(&self, gpa: Gpa, len: usize) -> Option<ApicRegister> {
        let is_apic = gpa.get() & !0xfff == apic::BASE.get() && len == 4;
        match self.reach {
            Reach::Served(_) if is_apic => ApicRegister::at(gpa),
            _ => None,
        }
    }

    /// Checks that a write of `len` bytes can be done.
    fn check(&self, gpa: Gpa, len: usize) -> Result<(), Stop> {
        if self.ram.host(gpa, len as u64).is_some() || self.apic(gpa, len).is_some() {
            return Ok(());
        }
        self.absent(gpa)
    }

    /// Answers an access to what guest RAM hasn't. Those to the local APIC that get here are none of an aligned register's 32 bits: what they
    /// do is undefined (AMD APM vol. 2, section 16.3.2), and so they do nothing.
    fn absent(&self, gpa: Gpa) -> Result<(), Stop> {
        let is_apic = gpa.get() & !0xfff == apic::BASE.get();
        match self.reach {
            Reach::Served(_) if is_apic || !self.memory.is_device(gpa) => Ok(()),
            _ => Err(Stop::Exit),
        }
    }

    /// Returns what the hypervisor serves.
    fn services(&mut self) -> Result<&mut Services<'a>, Stop> {
        match &mut self.reach {
            Reach::Served(services) => Ok(services),
            Reach::Used => Err(Stop::Exit),
        }
    }
}

fn segment(from: vmcb::Segment) -> Segment {
    Segment {
        selector: from.selector,
        attributes: from.attributes,
        limit: from.limit,
        base: from.base,
    }
}

const fn table(from: vmcb::Segment) -> Table {
    Table {
        base: from.base,
        limit: from.limit as u16,
    }
}

impl Cpu for GuestCpu<'_> {
    const HAS_VECTORS: bool = false;

    fn state(&self) -> &State {
        &self.state
    }
    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn features(&self) -> Features {
        match &self.reach {
            Reach::Served(services) => services.features(),
            Reach::Used => Features::BASELINE,
        }
    }

    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let mut bytes = [0; 8];
        let mut from = 0;
        for (gpa, len) in self.pieces(at, W::BYTES, access)? {
            let here = &mut bytes[from..from + len];
            if let Some(register) = self.apic(gpa, len) {
                here.copy_from_slice(&self.services()?.read_apic(register).to_le_bytes());
            } else if self.ram.load(gpa, here).is_err() {
                self.absent(gpa)?;
                here.fill(0xff);
            }
            from += len;
        }
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }

    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop> {
        let bytes = value.zero_extend().to_le_bytes();
        let pieces = self.pieces(at, W::BYTES, access)?;
        // Nothing is done before it is known that all can be.
        for (gpa, len) in pieces {
            self.check(gpa, len)?;
        }
        let mut from = 0;
        for (gpa, len) in pieces {
            if let Some(register) = self.apic(gpa, len) {
                let value = value.zero_extend() as u32;
                self.services()?.write_apic(register, value)?;
            } else {
                let announced = self.memory.announce(gpa, len as u64);
                // Where no memory is the store is dropped.
                let _ = self.ram.store(gpa, &bytes[from..from + len]);
                announced.report();
            }
            from += len;
        }
        Ok(())
    }

    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        let gpa = self.find(at, W::BYTES, Access::Write)?;
        let (old, new) = (current.zero_extend(), new.zero_extend());
        if let Some(register) = self.apic(gpa, W::BYTES) {
            let services = self.services()?;
            let found = u64::from(services.read_apic(register));
            if found == old {
                services.write_apic(register, new as u32)?;
            }
            return Ok(W::truncate(found));
        }
        if self.ram.host(gpa, W::BYTES as u64).is_none() {
            self.absent(gpa)?;
            return Ok(W::truncate(u64::MAX));
        }
        let announced = self.memory.announce(gpa, W::BYTES as u64);
        // Atomic among devices too; what is shorter or not aligned is left to the processor.
        let found = match W::BYTES {
            8 => self
                .ram
                .compare_exchange64(gpa, old, new)
                .map(|result| result.unwrap_or_else(|found| found)),
            4 => self
                .ram
                .compare_exchange32(gpa, old as u32, new as u32)
                .map(|result| u64::from(result.unwrap_or_else(|found| found))),
            _ => return Err(Stop::Exit),
        };
        let found = found.map_err(|_| Stop::Exit)?;
        announced.report();
        Ok(W::truncate(found))
    }

    fn compare_exchange_pair(&mut self, _: u64, _: u128, _: u128) -> Result<u128, Stop> {
        Err(Stop::Exit)
    }

    fn check_write(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop> {
        let access = match access {
            Access::Read => Access::Write,
            Access::SystemRead => Access::SystemWrite,
            other => other,
        };
        for (gpa, len) in self.pieces(at, len, access)? {
            self.check(gpa, len)?;
        }
        Ok(())
    }

    fn port_in(&mut self, port: u16, bytes: usize) -> Result<u32, Stop> {
        Ok(self.services()?.port_in(port, bytes))
    }
    fn port_out(&mut self, port: u16, bytes: usize, value: u32) -> Result<(), Stop> {
        self.services()?.port_out(port, bytes, value)
    }
    fn read_msr(&mut self, number: u32) -> Result<u64, Stop> {
        self.services()?.read_msr(number)
    }
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop> {
        self.services()?.write_msr(number, value)
    }
    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        self.services()?.write_control(register, value)
    }
    fn invalidate(&mut self, what: Invalidation) -> Result<(), Stop> {
        match what {
            Invalidation::Page(at) => {
                self.services()?.invalidate(at);
                Ok(())
            }
            _ => Err(Stop::Exit),
        }
    }
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop> {
        Ok(self.services()?.cpuid(leaf, subleaf))
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        Err(Stop::Exit)
    }
    fn halt(&mut self) -> Result<(), Stop> {
        self.services()?.halt();
        Ok(())
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
}
