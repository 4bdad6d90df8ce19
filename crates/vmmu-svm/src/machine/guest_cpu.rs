//! The guest's processor as the emulator sees it: the control block's registers, and memory through the guest's own tables.
//!
//! Key type: [`GuestCpu`].
//!
//! Invariants:
//! 1. Whatever it can't do ends in [`Stop::Exit`] with nothing done, and the processor runs the instruction itself: device memory, accesses across
//!    pages, ports, control registers; also pages whose accessed or dirty bit is yet to be set.
//! 2. Each store is reported to the library before the guest goes on. No other processor runs meanwhile.
//! 3. The floating-point and vector registers stay in the processor, which runs whatever uses them.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::Rflags;
use vmmu::walk::{AccessKind, Privilege};
use vmmu_emu::{Access, Control, Cpu, Flags, Gpr, Invalidation, Segment, State, Stop, Table, Word};

use crate::arch::guest_ram::GuestRam;
use crate::paging::Memory;
use crate::vcpu::Vcpu;
use crate::vmcb;

/// The one implementation of the emulator's [`Cpu`] in the image.
#[derive(Debug)]
pub(super) struct GuestCpu<'a> {
    state: State,
    memory: &'a Memory,
    ram: &'a GuestRam,
}

impl<'a> GuestCpu<'a> {
    /// Makes one of the registers as they are.
    pub(super) fn new(vcpu: &mut Vcpu, memory: &'a Memory, ram: &'a GuestRam) -> Self {
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
        Self { state, memory, ram }
    }

    /// Returns the registers.
    pub(super) fn into_state(self) -> State {
        self.state
    }

    /// Translates the address of `len` bytes in one page.
    fn find(&self, at: u64, len: usize, access: Access) -> Result<Gpa, Stop> {
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
        self.memory
            .translate_used(Gva::new(at), kind, privilege)
            .ok_or(Stop::Exit)
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

    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let gpa = self.find(at, W::BYTES, access)?;
        let mut bytes = [0; 8];
        self.ram
            .read(gpa, &mut bytes[..W::BYTES])
            .map_err(|_| Stop::Exit)?;
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }

    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop> {
        let gpa = self.find(at, W::BYTES, access)?;
        let bytes = value.zero_extend().to_le_bytes();
        self.ram
            .write(gpa, &bytes[..W::BYTES])
            .map_err(|_| Stop::Exit)?;
        self.memory.stored(gpa, W::BYTES as u64);
        Ok(())
    }

    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        let gpa = self.find(at, W::BYTES, Access::Write)?;
        let (old, new) = (current.zero_extend(), new.zero_extend());
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
        self.memory.stored(gpa, W::BYTES as u64);
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
        let gpa = self.find(at, len, access)?;
        if self.ram.host(gpa, len as u64).is_some() {
            Ok(())
        } else {
            Err(Stop::Exit)
        }
    }

    fn port_in(&mut self, _: u16, _: usize) -> Result<u32, Stop> {
        Err(Stop::Exit)
    }
    fn port_out(&mut self, _: u16, _: usize, _: u32) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn read_msr(&mut self, _: u32) -> Result<u64, Stop> {
        Err(Stop::Exit)
    }
    fn write_msr(&mut self, _: u32, _: u64) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn write_control(&mut self, _: Control, _: u64) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn invalidate(&mut self, _: Invalidation) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn cpuid(&mut self, _: u32, _: u32) -> Result<[u32; 4], Stop> {
        Err(Stop::Exit)
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        Err(Stop::Exit)
    }
    fn halt(&mut self) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        Err(Stop::Exit)
    }
}
