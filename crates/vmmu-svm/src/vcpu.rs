//! The guest's processor: its control block, its registers, and the paging registers as the guest sees them.
//!
//! Invariants:
//! 1. [`Vcpu::state`] is what the guest has written; the control block's CR0, CR3, CR4 and EFER are what [`crate::paging`] makes of it.
//! 2. Under nested paging the guest loads CR3 without an exit: the control block's is the guest's, and is taken over before it is used.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{Cr0, Cr3, Cr4, Efer, GuestFormat, PagingState, Pdptes, Rflags};
use vmmu::walk::{Access, AccessKind, Privilege, Walk, WalkFailure, Walker};

use crate::arch::guest_ram::GuestRam;
use crate::arch::idle::{Idle, Interrupts, Woken};
use crate::arch::world::{HostWorld, Registers, run};
use crate::config::Paging;
use crate::cpuid::Shape;
use crate::decode::{CodeSize, Gpr, Instruction, RegisterFile, recognise};
use crate::event::{Event, Exception, Merged};
use crate::fetch;
use crate::guest_tables::Tables;
use crate::load::Entry;
use crate::vmcb::{Segment, Vmcb};

const RAX: u8 = 0;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RSI: u8 = 6;

/// Present, accessed, read and execute, 64-bit.
const CODE_64: u16 = 0xa9b;
/// The same, 32-bit.
const CODE_32: u16 = 0xc9b;
/// Present, accessed, read and write, 32-bit.
const DATA_32: u16 = 0xc93;
/// A busy task-state segment.
const TASK: u16 = 0x8b;
/// The page-attribute table after reset (AMD APM vol. 2, section 7.8.2).
const PAT: u64 = 0x0007_0406_0007_0406;

/// The guest's processor.
#[derive(Debug)]
pub struct Vcpu {
    /// The control block.
    pub vmcb: Vmcb,
    registers: Registers,
    host: HostWorld,
    idle: Idle,
    walker: Walker,
    paging: Paging,
    /// The exit before the last one, by its code.
    before: u64,
}

/// A guest whose delivery of an exception failed for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TripleFault;

impl Vcpu {
    /// Makes a processor that is about to execute `entry`.
    pub fn new(entry: Entry, shape: &Shape, paging: Paging) -> Self {
        let mut vmcb = Vmcb::new();
        let mut registers = Registers::new();
        let mut state = PagingState::reset(shape.model());
        let code = |attributes| Segment::flat(0x10, attributes);
        let data = Segment::flat(0x18, DATA_32);
        (vmcb.ds, vmcb.es, vmcb.ss, vmcb.fs, vmcb.gs) = (data, data, data, data, data);
        vmcb.tr = Segment {
            selector: 0,
            attributes: TASK,
            limit: 0x67,
            base: 0,
        };
        vmcb.ldtr = Segment {
            selector: 0,
            attributes: 0x82,
            limit: 0,
            base: 0,
        };
        state.cr0 = Cr0::PE | Cr0::ET;
        match entry {
            Entry::Long { rip, rsi, cr3, gdt } => {
                vmcb.cs = code(CODE_64);
                vmcb.gdtr = Segment {
                    limit: 31,
                    base: gdt.get(),
                    ..Segment::default()
                };
                state.cr0 |= Cr0::PG;
                state.cr4 = Cr4::PAE;
                state.efer = Efer::LME | Efer::LMA;
                state.cr3 = Cr3::new(cr3.get());
                vmcb.cr3 = cr3.get();
                vmcb.rip = rip;
                registers.set(RSI, rsi);
            }
            Entry::Protected { eip, eax, ebx } => {
                vmcb.cs = code(CODE_32);
                vmcb.rip = u64::from(eip);
                vmcb.rax = u64::from(eax);
                registers.set(RBX, u64::from(ebx));
            }
        }
        (vmcb.rflags, vmcb.dr6, vmcb.dr7, vmcb.pat) = (2, 0xffff_0ff0, 0x400, PAT);
        Self {
            vmcb,
            registers,
            host: HostWorld::new(),
            idle: Idle::new(),
            walker: Walker::new(state),
            before: 0,
            paging,
        }
    }

    /// Brings the processor to where a start-up leaves it: the state of INIT, in real mode at the start of `page` (AMD APM vol. 2, table
    /// 14-1). What INIT leaves alone stays as it is.
    pub fn start_up(&mut self, page: u8, shape: &Shape) {
        const CODE_16: u16 = 0x9b;
        const DATA_16: u16 = 0x93;
        const LOCAL: u16 = 0x82;
        let segment = |selector, attributes, base| Segment {
            selector,
            attributes,
            limit: 0xffff,
            base,
        };
        let vmcb = &mut self.vmcb;
        let data = segment(0, DATA_16, 0);
        (vmcb.ds, vmcb.es, vmcb.ss, vmcb.fs, vmcb.gs) = (data, data, data, data, data);
        vmcb.cs = segment(u16::from(page) << 8, CODE_16, u64::from(page) << 12);
        (vmcb.ldtr, vmcb.tr) = (segment(0, LOCAL, 0), segment(0, TASK, 0));
        (vmcb.gdtr, vmcb.idtr) = (segment(0, 0, 0), segment(0, 0, 0));
        (vmcb.rflags, vmcb.dr6, vmcb.dr7) = (2, 0xffff_0ff0, 0x400);
        (vmcb.rip, vmcb.rsp, vmcb.rax, vmcb.cr2, vmcb.cpl) = (0, 0, 0, 0, 0);
        (vmcb.interrupt_shadow, vmcb.event, vmcb.exit_int_info) = (0, 0, 0);
        // Under nested paging it is the guest's own.
        vmcb.cr3 = 0;
        self.registers.clear_general();
        let mut state = PagingState::reset(shape.model());
        state.cr0 = Cr0::ET | Cr0::CD | Cr0::NW;
        self.walker.set_state(state);
    }

    /// Notes the host's state for the way back; to be called before the guest runs.
    pub fn save_host(&mut self) {
        self.host.save();
    }

    /// Runs the guest until it exits.
    #[inline]
    pub fn run(&mut self) {
        self.before = self.vmcb.exit_code;
        run(&mut self.vmcb, &mut self.registers, &mut self.host);
    }

    /// Waits, outside the guest, for what ends the guest's HLT.
    pub fn wait(&mut self) -> Woken {
        let flags = Rflags::from_bits_retain(self.vmcb.rflags);
        let interrupts = if flags.contains(Rflags::IF) {
            Interrupts::On
        } else {
            Interrupts::Off
        };
        self.idle.wait(&mut self.host, interrupts)
    }

    /// Returns the code of the exit before the last one.
    pub const fn exit_before(&self) -> u64 {
        self.before
    }

    /// Returns the paging registers as the guest sees them.
    #[inline]
    pub fn state(&mut self) -> &PagingState {
        self.take_over_cr3();
        self.walker.state()
    }
    /// Takes over paging registers that the guest has written.
    #[inline]
    pub fn set_state(&mut self, state: PagingState) {
        self.walker.set_state(state);
    }
    /// Takes over a CR3 that the guest has written.
    #[inline]
    pub const fn set_cr3(&mut self, cr3: Cr3) {
        self.walker.set_cr3(cr3, None);
    }
    #[inline]
    fn take_over_cr3(&mut self) {
        if self.paging == Paging::Nested {
            self.walker.set_cr3(Cr3::new(self.vmcb.cr3), None);
        }
    }

    /// Returns a general register.
    #[inline]
    pub const fn get(&self, register: Gpr) -> u64 {
        match register.0 {
            RAX => self.vmcb.rax,
            RSP => self.vmcb.rsp,
            number => self.registers.get(number),
        }
    }
    /// Sets a general register.
    #[inline]
    pub const fn set(&mut self, register: Gpr, value: u64) {
        match register.0 {
            RAX => self.vmcb.rax = value,
            RSP => self.vmcb.rsp = value,
            number => self.registers.set(number, value),
        }
    }

    /// Returns the privilege of what the guest executes.
    #[inline]
    pub const fn privilege(&self) -> Privilege {
        Privilege::new(self.vmcb.cpl, Rflags::from_bits_retain(self.vmcb.rflags))
    }
    /// Returns how many bits the guest's code has.
    #[inline]
    pub fn code_size(&self) -> CodeSize {
        if self.vmcb.cs.is_long() && self.walker.state().efer.contains(Efer::LMA) {
            CodeSize::Bits64
        } else if self.vmcb.cs.is_32bit() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }
    /// Returns the linear address of the instruction that exited.
    #[inline]
    pub fn instruction_address(&self) -> Gva {
        if self.code_size() == CodeSize::Bits64 {
            Gva::new(self.vmcb.rip)
        } else {
            Gva::new((self.vmcb.cs.base.wrapping_add(self.vmcb.rip)) & 0xffff_ffff)
        }
    }

    /// Fetches and recognises the instruction that exited; `None` if its bytes are gone, or are not among the few that are known.
    #[inline(always)]
    pub fn decode(&mut self, ram: &GuestRam) -> Option<Instruction> {
        let at = self.instruction_address();
        let size = self.code_size();
        if at.page_offset() <= 4096 - 16 {
            let gpa = self.fetch_address(ram, at)?;
            return recognise(ram.load16(gpa).ok()? as u64, size, self);
        }
        self.decode_across_pages(ram, size)
    }
    #[cold]
    #[inline(never)]
    fn decode_across_pages(&mut self, ram: &GuestRam, size: CodeSize) -> Option<Instruction> {
        let (bytes, there) = self.fetch(ram)?;
        let instruction = recognise(bytes as u64, size, self)?;
        (usize::from(instruction.length) <= there).then_some(instruction)
    }

    /// Fetches the bytes of the instruction that exited, the first one lowest; returns how many are there.
    #[cold]
    pub fn fetch(&mut self, ram: &GuestRam) -> Option<(u128, usize)> {
        let at = self.instruction_address();
        let mut bytes = [0; 16];
        let length = (4096 - at.page_offset() as usize).min(16);
        let (head, tail) = bytes.split_at_mut(length);
        ram.read(self.fetch_address(ram, at)?, head).ok()?;
        let next = if tail.is_empty() {
            None
        } else {
            self.fetch_address(ram, at.wrapping_add(length as u64))
        };
        let there = match next {
            Some(gpa) if ram.read(gpa, tail).is_ok() => 16,
            _ => length,
        };
        Some((u128::from_le_bytes(bytes), there))
    }

    /// Translates an address that the processor has fetched from.
    #[inline(always)]
    fn fetch_address(&mut self, ram: &GuestRam, at: Gva) -> Option<Gpa> {
        self.take_over_cr3();
        if self.walker.decoder().format() == GuestFormat::Level4
            && let Some(gpa) =
                fetch::walk(ram, self.walker.state().cr3.root(GuestFormat::Level4), at)
        {
            return Some(gpa);
        }
        self.translate(ram, at, Access::new(AccessKind::Fetch, self.privilege()))
    }

    /// Translates an address of the guest on the hypervisor's own behalf.
    #[cold]
    #[inline(never)]
    pub fn translate(&mut self, ram: &GuestRam, gva: Gva, access: Access) -> Option<Gpa> {
        let (walk, result) = self.probe(ram, gva, access);
        result.ok().map(|()| walk.gpa())
    }
    /// Walks the guest's tables without leaving a trace in them.
    pub fn probe(
        &mut self,
        ram: &GuestRam,
        gva: Gva,
        access: Access,
    ) -> (Walk, Result<(), WalkFailure>) {
        self.take_over_tables(ram);
        let mut walk = Walk::new();
        let result = self.walker.probe(&Tables(ram), gva, access, &mut walk);
        (walk, result)
    }
    /// Takes over the page-directory pointers as the processor uses them: under nested paging it reads them at each walk (AMD APM
    /// vol. 2, section 15.25.10), and QEMU's TCG sets the accessed bit in them, which is reserved.
    #[cold]
    fn take_over_pdptes(&mut self, ram: &GuestRam) {
        const ACCESSED: u64 = 1 << 5;
        let cr3 = self.walker.state().cr3;
        let root = cr3.root(GuestFormat::Pae);
        let entry = |slot: u64| ram.load64(root.wrapping_add(slot * 8)).unwrap_or(0) & !ACCESSED;
        self.walker.set_cr3(
            cr3,
            Some(Pdptes::new([entry(0), entry(1), entry(2), entry(3)])),
        );
    }

    /// Returns the walker of the guest's own tables, as the processor would walk them now.
    pub fn guest_walker(&mut self, ram: &GuestRam) -> Walker {
        self.take_over_tables(ram);
        self.walker.clone()
    }
    /// Takes over what the guest loads without an exit.
    fn take_over_tables(&mut self, ram: &GuestRam) {
        self.take_over_cr3();
        if self.paging == Paging::Nested && self.walker.decoder().format() == GuestFormat::Pae {
            self.take_over_pdptes(ram);
        }
    }

    /// Steps over an instruction that the hypervisor has carried out.
    #[inline(always)]
    pub fn step_over(&mut self, length: u8) {
        self.step_to(self.vmcb.rip.wrapping_add(u64::from(length)));
    }
    /// Goes on at `next` after an instruction that the hypervisor has carried out.
    #[inline(always)]
    pub fn step_to(&mut self, next: u64) {
        self.vmcb.rip = if self.code_size() == CodeSize::Bits64 {
            next
        } else {
            next & 0xffff_ffff
        };
        self.vmcb.interrupt_shadow &= !1;
        let flags = Rflags::from_bits_retain(self.vmcb.rflags);
        if flags.intersects(Rflags::TF | Rflags::RF) {
            self.end_watched(flags);
        }
    }
    /// Does what debugging wants at the end of an instruction.
    #[cold]
    fn end_watched(&mut self, flags: Rflags) {
        self.vmcb.rflags &= !Rflags::RF.bits();
        if flags.contains(Rflags::TF) {
            // The trap of single-stepping follows the instruction (AMD APM vol. 2, section 13.1.4).
            self.vmcb.dr6 |= 1 << 14;
            if let Merged::Deliver(event) = Exception::Debug.merge(None) {
                self.vmcb.event = event.field();
            }
        }
    }

    /// Gives the guest an exception, merged with the event in whose delivery the exit came.
    ///
    /// # Errors
    /// [`TripleFault`] if the guest can't take another.
    pub fn raise(&mut self, exception: Exception) -> Result<(), TripleFault> {
        match exception.merge(Event::from_field(self.vmcb.exit_int_info)) {
            Merged::Deliver(event) => {
                if let Exception::Page(gva, _) = exception {
                    self.vmcb.cr2 = gva.get();
                }
                self.vmcb.event = event.field();
                Ok(())
            }
            Merged::TripleFault => Err(TripleFault),
        }
    }

    /// Lets the guest go on where it was, the delivery of an event included.
    #[inline]
    pub fn resume(&mut self) {
        if let Some(event) = Event::from_field(self.vmcb.exit_int_info).and_then(Event::again) {
            self.vmcb.event = event.field();
        }
    }
}

impl RegisterFile for Vcpu {
    #[inline]
    fn general(&self, register: Gpr) -> u64 {
        self.get(register)
    }
}

#[cfg(test)]
mod the_guest_goes_on {
    use super::*;
    use crate::arch::register::CpuidResult;
    use crate::config::{Configuration, Hidden};
    use crate::decode::{ControlRegister, Operation};
    use core::num::NonZeroU8;

    fn vcpu(entry: Entry) -> Vcpu {
        let configuration = Configuration {
            paging: Paging::Shadow,
            memory: 0,
            cpus: NonZeroU8::MIN,
            phys_bits: None,
            hidden: Hidden::empty(),
            max_pages: None,
            audit: None,
        };
        let cpuid = |_, _| CpuidResult {
            eax: 40,
            ..CpuidResult::default()
        };
        Vcpu::new(entry, &Shape::new(&configuration, cpuid), Paging::Shadow)
    }
    const PROTECTED: Entry = Entry::Protected {
        eip: 0x1ffe,
        eax: 1,
        ebx: 2,
    };

    #[test]
    fn behind_an_instruction_with_its_shadow_gone_and_its_trap_taken() {
        let mut vcpu = vcpu(PROTECTED);
        vcpu.vmcb.interrupt_shadow = 1;
        vcpu.vmcb.rip = 0xffff_ffff;
        vcpu.step_over(2);
        assert_eq!((vcpu.vmcb.rip, vcpu.vmcb.interrupt_shadow), (1, 0));
        assert_eq!(vcpu.vmcb.event, 0);
        vcpu.vmcb.rflags |= (Rflags::TF | Rflags::RF).bits();
        vcpu.step_over(2);
        assert_eq!(vcpu.vmcb.event, 0x8000_0301);
        assert_eq!(vcpu.vmcb.dr6 & 1 << 14, 1 << 14);
        assert_eq!(vcpu.vmcb.rflags & Rflags::RF.bits(), 0);
    }

    #[test]
    fn with_its_page_fault_and_its_address() {
        let mut vcpu = vcpu(PROTECTED);
        let fault = Exception::Page(Gva::new(0x5000), vmmu::walk::PageFaultCode::WRITE);
        assert_eq!(vcpu.raise(fault), Ok(()));
        assert_eq!((vcpu.vmcb.cr2, vcpu.vmcb.event), (0x5000, 0x2_8000_0b0e));
        vcpu.vmcb.exit_int_info = 0x8000_0b08;
        assert_eq!(vcpu.raise(fault), Err(TripleFault));
    }

    #[test]
    fn with_the_interrupt_whose_delivery_exited() {
        let mut vcpu = vcpu(PROTECTED);
        vcpu.vmcb.exit_int_info = 0x8000_0330;
        vcpu.resume();
        assert_eq!(vcpu.vmcb.event, 0x8000_0030);
    }

    #[test]
    fn from_where_its_loader_says() {
        let vcpu = vcpu(PROTECTED);
        assert_eq!((vcpu.get(Gpr(RAX)), vcpu.get(Gpr(RBX))), (1, 2));
        assert_eq!(vcpu.code_size(), CodeSize::Bits32);
    }

    #[test]
    fn after_an_instruction_that_lies_on_two_pages() {
        let ram = GuestRam::on_heap(1);
        ram.write(Gpa::new(0x1ffe), &[0x0f, 0x20, 0xc3]).unwrap();
        let mut vcpu = vcpu(PROTECTED);
        let instruction = vcpu.decode(&ram).unwrap();
        let expected = Operation::MovFromControl(ControlRegister(0), Gpr(3));
        assert_eq!((instruction.operation, instruction.length), (expected, 3));
        let end = 2 << 20;
        ram.write(Gpa::new(end - 2), &[0x0f, 0x20]).unwrap();
        vcpu.vmcb.rip = end - 2;
        assert_eq!(vcpu.decode(&ram), None);
    }
}
