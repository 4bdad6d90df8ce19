//! A processor of the guest's whose exits are answered on the host: what an exit that isn't recognised by its bytes comes to.

use alloc::sync::Arc;
use core::num::NonZeroU8;

use vmmu::addr::Gpa;
use vmmu::host::VcpuId;
use vmmu::paging::Cr0;

use super::{Board, Machine, Stop};
use crate::arch::apic::{self, ApicRegister, LocalApic};
use crate::arch::guest_ram::GuestRam;
use crate::arch::physical::Frames;
use crate::arch::register::CpuidResult;
use crate::channel::End;
use crate::config::{Configuration, Hidden, Paging};
use crate::cpuid::Shape;
use crate::cpus::Cpus;
use crate::decode::Gpr;
use crate::load::Entry;
use crate::paging::Unit;
use crate::permission::{MsrMap, PortMap};
use crate::tables::TableFrames;

const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
/// Present, writable.
const PRESENT: u64 = 3;
/// Accessed and dirty.
const MARKED: u64 = 0x60;
/// Where nothing is.
const NOTHING: u64 = 0x4000_0000;

const RAX: Gpr = Gpr(0);
const RCX: Gpr = Gpr(1);
const RDI: Gpr = Gpr(7);

/// Makes the first of `cpus` processors, with 16 pages mapped to themselves by tables from 0x1000 on, about to execute `code` with RDI at the
/// data.
fn machine(cpus: u8, code: &[u8]) -> Machine {
    let cpus = NonZeroU8::new(cpus).unwrap();
    let configuration = Configuration {
        paging: Paging::Shadow,
        memory: 0,
        cpus,
        phys_bits: None,
        hidden: Hidden::empty(),
        max_pages: None,
        audit: None,
    };
    let shape = Shape::new(&configuration, |_, _| CpuidResult {
        eax: 48,
        ..CpuidResult::default()
    });
    let ram = Arc::new(GuestRam::on_heap(1));
    let write = |at: u64, entry: u64| ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
    for level in 1..4 {
        write(level << 12, (level + 1) << 12 | PRESENT);
    }
    for page in 0..16 {
        write(entry_of(page << 12), page << 12 | PRESENT);
    }
    ram.write(Gpa::new(CODE), code).unwrap();
    let cpus = Arc::new(Cpus::new(cpus, LocalApic::on_heap()));
    let frames = TableFrames::new(Frames::on_heap(64));
    let unit = Unit::new(&configuration, &shape, &ram, frames, Arc::clone(&cpus)).unwrap();
    let board = Board {
        unit,
        ram,
        cpus,
        shape,
        maps: Arc::new((PortMap::new(), MsrMap::new())),
    };
    let entry = Entry::Long {
        rip: CODE,
        rsi: 0,
        cr3: Gpa::new(0x1000),
        gdt: Gpa::new(0),
    };
    let mut machine = Machine::new(&configuration, board, VcpuId(0), entry);
    machine.begin().unwrap();
    machine.vcpu.set(RDI, DATA);
    machine
}

/// Where the entry of a page lies.
const fn entry_of(page: u64) -> u64 {
    0x4000 + (page >> 12) * 8
}

impl Machine {
    fn word(&self, at: u64) -> u64 {
        self.ram.load64(Gpa::new(at)).unwrap()
    }
    fn set_word(&self, at: u64, value: u64) {
        self.ram.write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }
    fn is_at(&self, rip: u64) -> bool {
        self.vcpu.vmcb.rip == rip && self.vcpu.vmcb.event == 0
    }
}

fn is_refused(going: &Result<(), Stop>) -> bool {
    matches!(going, Err(Stop::End(End::Refused(_))))
}

mod a_control_block_that_the_processor_refuses {
    use super::*;

    #[test]
    fn ends_the_run_with_a_report() {
        let mut machine = machine(1, &[0x0f, 0xa2]);
        let Err(Stop::End(End::Crash(report))) = machine.refused_by_processor() else {
            panic!("the run goes on");
        };
        assert!(report.contains("refused the control block"), "{report}");
    }
}

mod an_instruction_that_another_processor_takes_away {
    use super::*;

    /// CPUID with a prefix, whose page another processor has taken away between the exit and now.
    fn taken_away(cpus: u8) -> Machine {
        let machine = machine(cpus, &[0x66, 0x0f, 0xa2]);
        machine.set_word(entry_of(CODE), 0);
        machine
    }

    #[test]
    fn runs_again_and_is_served_if_it_comes_back() {
        let mut machine = taken_away(2);
        assert!(machine.serve("cpuid").is_ok());
        assert!(machine.is_at(CODE));
        machine.set_word(entry_of(CODE), CODE | PRESENT);
        assert!(machine.serve("cpuid").is_ok());
        assert!(machine.is_at(CODE + 3));
    }

    #[test]
    fn runs_again_where_it_touched_memory() {
        // RDTSC, which is never served.
        let mut machine = machine(2, &[0x0f, 0x31]);
        let going = machine.touch(Gpa::new(NOTHING), "where nothing is");
        assert!(going.is_ok());
        assert!(machine.is_at(CODE));
    }

    #[test]
    fn ends_the_run_if_it_never_comes_to_something_that_is_known() {
        let mut machine = taken_away(2);
        let rounds = (0..1_000).take_while(|_| machine.serve("cpuid").is_ok());
        assert_eq!(rounds.count(), 64);
        // Nobody else could have changed it.
        assert!(is_refused(&taken_away(1).serve("cpuid")));
    }
}

mod an_instruction_is_served {
    use super::*;

    #[test]
    fn that_stores_the_status_word_with_the_marks_that_the_processor_sets() {
        // SMSW word [RDI]
        let mut machine = machine(1, &[0x0f, 0x01, 0x27]);
        machine.serve("control register").unwrap();
        assert!(machine.is_at(CODE + 3));
        let low = machine.vcpu.state().cr0.bits() & 0xffff;
        assert_eq!(machine.word(DATA), low);
        assert_eq!(machine.word(entry_of(DATA)), DATA | PRESENT | MARKED);
    }

    #[test]
    fn that_loads_it_which_is_in_force_afterwards() {
        // LMSW word [RDI]
        let mut machine = machine(1, &[0x0f, 0x01, 0x37]);
        machine.set_word(DATA, (Cr0::PE | Cr0::TS).bits());
        machine.serve("control register").unwrap();
        assert!(machine.is_at(CODE + 3));
        assert!(machine.vcpu.state().cr0.contains(Cr0::TS));
        assert_ne!(machine.vcpu.vmcb.cr0 & Cr0::TS.bits(), 0);
    }

    #[test]
    fn and_its_page_fault_is_the_guests() {
        let mut machine = machine(1, &[0x0f, 0x01, 0x37]);
        machine.set_word(entry_of(DATA), 0);
        machine.serve("control register").unwrap();
        let vmcb = &machine.vcpu.vmcb;
        assert_eq!((vmcb.rip, vmcb.cr2), (CODE, DATA));
        assert_eq!(vmcb.event, 0x8000_0b0e);
    }

    #[test]
    fn only_if_it_changes_nothing_but_what_is_taken_over() {
        // STI
        let mut machine = machine(1, &[0xfb]);
        assert!(is_refused(&machine.serve("cpuid")));
        assert!(machine.is_at(CODE));
    }

    #[test]
    fn that_loads_the_same_root_by_a_form_that_is_not_recognised() {
        // MOV CR3, RAX with a prefix
        let mut machine = machine(1, &[0x66, 0x0f, 0x22, 0xd8]);
        machine.vcpu.set(RAX, 0x2000);
        machine.serve("control register").unwrap();
        assert_eq!(machine.vcpu.state().cr3.get(), 0x2000);
    }
}

mod a_halt {
    use super::*;

    #[test]
    fn is_over_with_its_trap_if_it_is_single_stepped() {
        let mut machine = machine(2, &[0xf4]);
        machine.vcpu.vmcb.interrupt_shadow = 1;
        machine.vcpu.vmcb.rflags |= 1 << 8;
        machine.serve("hlt").unwrap();
        let vmcb = &machine.vcpu.vmcb;
        assert_eq!((vmcb.rip, vmcb.interrupt_shadow), (CODE + 1, 0));
        assert_eq!(vmcb.event, 0x8000_0301);
    }
}

mod memory_where_nothing_is {
    use super::*;

    fn touch(code: &[u8], at: u64) -> Machine {
        let mut machine = machine(2, code);
        machine.set_word(entry_of(DATA), at | PRESENT);
        machine.vcpu.set(RCX, 7);
        machine.touch(Gpa::new(at), "where nothing is").unwrap();
        assert!(machine.is_at(CODE + code.len() as u64), "{code:x?}");
        machine
    }

    #[test]
    fn is_ones_and_keeps_nothing() {
        // MOV EAX, [RDI]; MOV [RDI], ECX
        let machine = touch(&[0x8b, 0x07], NOTHING);
        assert_eq!(machine.vcpu.get(RAX), 0xffff_ffff);
        touch(&[0x89, 0x0f], NOTHING);
    }

    #[test]
    fn is_ones_for_locked_instructions_too() {
        // LOCK XADD [RDI], RCX; LOCK OR byte [RDI], 1; XCHG [RDI], CX
        let machine = touch(&[0xf0, 0x48, 0x0f, 0xc1, 0x0f], NOTHING);
        assert_eq!(machine.vcpu.get(RCX), u64::MAX);
        touch(&[0xf0, 0x80, 0x0f, 0x01], NOTHING);
        let machine = touch(&[0x66, 0x87, 0x0f], NOTHING);
        assert_eq!(machine.vcpu.get(RCX), 0xffff);
    }

    #[test]
    fn is_so_in_the_local_apic_but_for_registers_of_32_bits() {
        const PRIORITY: u64 = apic::BASE.get();
        // OR dword [RDI+80h], 42h writes the register; OR word and byte [RDI+80h], and OR dword [RDI+84h] nothing.
        let written = |code: &[u8]| {
            let machine = touch(code, PRIORITY);
            machine.cpus.apic.read(ApicRegister::TASK_PRIORITY)
        };
        assert_eq!(written(&[0x83, 0x8f, 0x80, 0, 0, 0, 0x42]), 0x42);
        assert_eq!(written(&[0x66, 0x83, 0x8f, 0x80, 0, 0, 0, 0x42]), 0);
        assert_eq!(written(&[0x80, 0x8f, 0x80, 0, 0, 0, 0x42]), 0);
        assert_eq!(written(&[0x83, 0x8f, 0x84, 0, 0, 0, 0x42]), 0);
    }
}
