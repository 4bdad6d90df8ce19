//! One instruction executed by the emulator: a write to a guest table that stays protected, or one that no shadow entry may grant.
//!
//! Invariants:
//! 1. Nothing is emulated that the processor does better: an instruction that raises an exception, leaves the guest, is watched by a debugger, or
//!    delivers an event runs again with the table's protection gone, or alone ([`super::step`]).
//! 2. An instruction that writes the table of its own translation comes back a bounded number of times (scenario L3).

use vmmu::addr::{Gpa, Gva};
use vmmu_emu::{After, Cpu as _, Flags, LONGEST, Mode, State, decode};

use super::guest_cpu::{GuestCpu, Reach};
use super::{Machine, Stop};
use crate::arch::guest_ram::GuestRam;
use crate::decode::Gpr;
use crate::event::Event;
use crate::paging::Memory;
use crate::vcpu::Vcpu;

/// The bit of the control block that says so: interrupts are held off for one instruction.
const INTERRUPT_SHADOW: u64 = 1;

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Emulated {
    /// The instruction is over, or a repeated one got on.
    Done,
    /// The processor has to run it.
    No,
}

impl Machine {
    /// Answers the write of the guest's instruction to a guest table at these addresses.
    #[cold]
    pub(super) fn write_table(&mut self, gva: Gva, gpa: Gpa) -> Result<(), Stop> {
        // With several processors the protection goes, unless the instruction has come back: others write the same tables at full speed then.
        let may = !self.cpus.are_several() || self.memory.comes_back();
        if may && self.emulate() == Emulated::Done {
            return Ok(());
        }
        let answer = self.memory.unprotect(gpa, self.vcpu.vmcb.rip, gva);
        self.carry_out(answer)
    }

    /// Answers a write with CR0.WP off and SMAP on to a read-only user page at these addresses.
    #[cold]
    pub(super) fn write_alone(&mut self, gva: Gva, gpa: Gpa) -> Result<(), Stop> {
        match self.emulate() {
            Emulated::Done => Ok(()),
            Emulated::No => self.begin_step(gva, gpa),
        }
    }

    fn emulate(&mut self) -> Emulated {
        let emulated = emulate(&mut self.vcpu, &self.memory, &self.ram);
        if emulated == Emulated::Done {
            self.memory.emulated();
        }
        emulated
    }
}

/// Executes the instruction that exited, if that can be done here.
fn emulate(vcpu: &mut Vcpu, memory: &Memory, ram: &GuestRam) -> Emulated {
    if Event::from_field(vcpu.vmcb.exit_int_info).is_some() {
        return Emulated::No;
    }
    let Some((bytes, len)) = code(vcpu, ram) else {
        return Emulated::No;
    };
    let mut cpu = GuestCpu::new(vcpu, memory, ram, Reach::Used);
    if cpu.state().is_watched() {
        return Emulated::No;
    }
    let result = match decode::<GuestCpu<'_>>(&bytes[..len], Mode::of(cpu.state())) {
        Ok(op) if op.after() != After::Anything => op.execute(&mut cpu),
        _ => return Emulated::No,
    };
    let (state, _) = cpu.into_parts();
    take_registers(vcpu, &state);
    if result.is_err() {
        return Emulated::No;
    }
    let vmcb = &mut vcpu.vmcb;
    vmcb.rip = state.rip();
    vmcb.rflags &= !Flags::RF.bits();
    vmcb.interrupt_shadow &= !INTERRUPT_SHADOW;
    Emulated::Done
}

/// Takes over general registers and arithmetic flags. A repeated instruction that stopped has done some of its elements, and its registers say which.
pub(super) fn take_registers(vcpu: &mut Vcpu, state: &State) {
    for number in 0..16 {
        vcpu.set(Gpr(number), state.get(vmmu_emu::Gpr::new(number)));
    }
    let flags = Flags::ARITHMETIC.bits();
    vcpu.vmcb.rflags = vcpu.vmcb.rflags & !flags | state.flags.bits() & flags;
}

/// Fetches the instruction's bytes; returns how many are there.
pub(super) fn code(vcpu: &mut Vcpu, ram: &GuestRam) -> Option<([u8; LONGEST], usize)> {
    let (bytes, there) = vcpu.fetch(ram)?;
    let bytes = *bytes.to_le_bytes().first_chunk()?;
    Some((bytes, there.min(LONGEST)))
}

#[cfg(test)]
mod one_instruction {
    use super::super::services::{Follow, Services};
    use super::*;
    use crate::arch::apic::{self, ApicRegister, LocalApic};
    use crate::arch::physical::Frames;
    use crate::arch::register::CpuidResult;
    use crate::config::{Configuration, Hidden, Paging};
    use crate::control::CodeSegment;
    use crate::cpuid::Shape;
    use crate::cpus::Cpus;
    use crate::load::Entry;
    use crate::paging::Unit;
    use crate::tables::TableFrames;
    use alloc::sync::Arc;
    use core::num::NonZeroU8;
    use vmmu::host::VcpuId;

    const CODE: u64 = 0x8000;
    const DATA: u64 = 0x9000;
    const ACCESSED: u64 = 0x23;
    const DIRTY: u64 = 0x63;

    struct Guest {
        vcpu: Vcpu,
        memory: Memory,
        ram: Arc<GuestRam>,
    }

    fn configuration() -> Configuration {
        Configuration {
            paging: Paging::Shadow,
            memory: 0,
            cpus: NonZeroU8::MIN,
            phys_bits: None,
            hidden: Hidden::empty(),
            max_pages: None,
            audit: None,
        }
    }

    fn shape() -> Shape {
        Shape::new(&configuration(), |_, _| CpuidResult {
            eax: 48,
            ..CpuidResult::default()
        })
    }

    /// A guest with 16 pages mapped to themselves by tables from 0x1000 on, about to execute `code` with RDI at the data.
    fn guest(code: &[u8], data: u64) -> Guest {
        let ram = Arc::new(GuestRam::on_heap(1));
        let write = |at: u64, entry: u64| ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        for level in 1..4 {
            write(level << 12, (level + 1) << 12 | ACCESSED);
        }
        for page in 0..16 {
            write(0x4000 + page * 8, page << 12 | DIRTY);
        }
        write(0x4000 + (DATA >> 12) * 8, DATA | data);
        ram.write(Gpa::new(CODE), code).unwrap();
        let (configuration, shape) = (configuration(), shape());
        let entry = Entry::Long {
            rip: CODE,
            rsi: 0,
            cr3: Gpa::new(0x1000),
            gdt: Gpa::new(0),
        };
        let mut vcpu = Vcpu::new(entry, &shape, Paging::Shadow);
        let frames = TableFrames::new(Frames::on_heap(64));
        let cpus = Arc::new(Cpus::new(NonZeroU8::MIN, LocalApic::on_heap()));
        let unit = Unit::new(&configuration, &shape, &ram, frames, cpus).unwrap();
        let mut memory = Memory::new(unit, VcpuId(0));
        let state = *vcpu.state();
        memory.apply(&state, &mut vcpu.vmcb).unwrap();
        vcpu.set(Gpr(7), DATA);
        vcpu.set(Gpr(0), 0x1122_3344_5566_7788);
        Guest { vcpu, memory, ram }
    }

    impl Guest {
        fn emulate(&mut self) -> Emulated {
            emulate(&mut self.vcpu, &self.memory, &self.ram)
        }
        fn word(&self, at: u64) -> u64 {
            self.ram.load64(Gpa::new(at)).unwrap()
        }
    }

    #[test]
    fn that_stores_is_executed_and_stepped_over() {
        let mut guest = guest(&[0x48, 0x89, 0x47, 0x08], DIRTY);
        guest.vcpu.vmcb.rflags |= Flags::RF.bits();
        assert_eq!(guest.emulate(), Emulated::Done);
        assert_eq!(guest.word(DATA + 8), 0x1122_3344_5566_7788);
        assert_eq!((guest.vcpu.vmcb.rip, guest.vcpu.vmcb.rflags), (CODE + 4, 2));
    }

    #[test]
    fn that_exchanges_says_what_it_found() {
        // LOCK CMPXCHG [RDI], RCX with RAX other than what is there, then XCHG [RDI], RAX.
        let mut guest = guest(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f, 0x48, 0x87, 0x07], DIRTY);
        guest.ram.write(Gpa::new(DATA), &[7]).unwrap();
        assert_eq!(guest.emulate(), Emulated::Done);
        assert_eq!((guest.vcpu.get(Gpr(0)), guest.word(DATA)), (7, 7));
        assert_eq!(guest.vcpu.vmcb.rflags & Flags::ZF.bits(), 0);
        guest.vcpu.set(Gpr(0), 9);
        assert_eq!(guest.emulate(), Emulated::Done);
        assert_eq!((guest.vcpu.get(Gpr(0)), guest.word(DATA)), (7, 9));
    }

    #[test]
    fn that_repeats_leaves_registers_that_say_how_far_it_got() {
        // REP STOSQ into a page that ends, with nothing behind the mapped ones.
        let mut guest = guest(&[0xf3, 0x48, 0xab], DIRTY);
        guest.vcpu.set(Gpr(7), 0xfff0);
        guest.vcpu.set(Gpr(1), 5);
        assert_eq!(guest.emulate(), Emulated::No);
        let registers = [Gpr(1), Gpr(7)].map(|register| guest.vcpu.get(register));
        assert_eq!((registers, guest.vcpu.vmcb.rip), ([3, 0x1_0000], CODE));
        assert_eq!(guest.word(0xfff8), 0x1122_3344_5566_7788);
    }

    #[test]
    fn that_changes_the_local_apic_reads_it_and_has_it_written_once_it_is_over() {
        // XOR [RDI+80h], EAX
        let code = [0x31, 0x87, 0x80, 0, 0, 0];
        let Guest {
            mut vcpu,
            memory,
            ram,
        } = guest(&code, DIRTY);
        let entry = apic::BASE.get() | DIRTY;
        let at = Gpa::new(0x4000 + (DATA >> 12) * 8);
        ram.write(at, &entry.to_le_bytes()).unwrap();
        let apic = LocalApic::on_heap();
        apic.write(ApicRegister::TASK_PRIORITY, 0xf0);
        let shape = shape();
        let services = Services::new(&mut vcpu, &ram, &shape, CodeSegment::Long, apic, 0);
        let mut cpu = GuestCpu::new(&mut vcpu, &memory, &ram, Reach::Served(services));
        let op = decode::<GuestCpu<'_>>(&code, Mode::of(cpu.state())).unwrap();
        op.execute(&mut cpu).unwrap();
        let (_, Reach::Served(services)) = cpu.into_parts() else {
            panic!("it was served");
        };
        let Follow::Apic(register, value) = services.into_follow() else {
            panic!("it is to be written");
        };
        let expected = (ApicRegister::TASK_PRIORITY, 0x5566_7788 ^ 0xf0);
        assert_eq!((register, value), expected);
        assert_eq!(apic.read(ApicRegister::TASK_PRIORITY), 0xf0);
    }

    fn is_left_alone(code: &[u8], data: u64, change: fn(&mut Vcpu)) {
        let mut guest = guest(code, data);
        change(&mut guest.vcpu);
        let before = [guest.vcpu.vmcb.rip, guest.vcpu.vmcb.rflags];
        assert_eq!(guest.emulate(), Emulated::No, "{code:x?}");
        let after = [guest.vcpu.vmcb.rip, guest.vcpu.vmcb.rflags];
        assert_eq!((after, guest.word(DATA)), (before, 0), "{code:x?}");
    }

    #[test]
    fn that_the_processor_does_better_is_left_to_it() {
        const STORE: &[u8] = &[0x48, 0x89, 0x07];
        // A page whose dirty bit, or accessed bit, is yet to be set; one that isn't there.
        for data in [ACCESSED, 0x43, 0x62] {
            is_left_alone(STORE, data, |_| ());
        }
        for change in [
            (|vcpu| vcpu.vmcb.rflags |= Flags::TF.bits()) as fn(&mut Vcpu),
            |vcpu| vcpu.vmcb.dr7 |= 1,
            |vcpu| vcpu.vmcb.interrupt_shadow = 1,
            |vcpu| vcpu.vmcb.exit_int_info = 0x8000_0330,
            |vcpu| vcpu.set(Gpr(7), 0xaffd),
        ] {
            is_left_alone(STORE, DIRTY, change);
        }
        // MOVAPS and FNSTSW, whose registers the processor holds; an invalid one; OUTSB; STI; VSCATTERDPS.
        for code in [
            &[0x0f, 0x29, 0x07][..],
            &[0xdd, 0x3f],
            &[0x0f, 0x0b],
            &[0x6e],
            &[0xfb],
            &[0x62, 0xf2, 0x7d, 0x49, 0xa2, 0x04, 0x0f],
        ] {
            is_left_alone(code, DIRTY, |_| ());
        }
    }
}
