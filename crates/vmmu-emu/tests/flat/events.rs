//! Interrupts, exceptions, and the way back.

use crate::common::Flat;
use vmmu_emu::{
    Delivery, Event, Exception, Flags, Gpr, Mode, Op, Segment, SegmentName, State, Stop, decode,
    deliver, raise, step,
};

const GDT: u64 = Flat::BASE;
const IDT: u64 = Flat::BASE + 0x1000;
const TASK: u64 = Flat::BASE + 0x2000;
const CODE: u64 = Flat::BASE + 0x3000;
const HANDLER: u64 = Flat::BASE + 0x4000;
/// The top of level 0's stack.
const INNER: u64 = Flat::BASE + 0x6000;
/// The top of the program's stack.
const OUTER: u64 = Flat::BASE + 0x7000;
/// The top of the first stack of the interrupt stack table.
const FIRST: u64 = Flat::BASE + 0x8000;

trait Bytes {
    fn put(&mut self, at: u64, value: u64);
    fn read(&self, at: u64) -> u64;
    fn read_32(&self, at: u64) -> u32;
}

impl Bytes for Flat {
    fn put(&mut self, at: u64, value: u64) {
        let at = (at - Flat::BASE) as usize;
        self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    fn read(&self, at: u64) -> u64 {
        u64::from(self.read_32(at)) | u64::from(self.read_32(at + 4)) << 32
    }
    fn read_32(&self, at: u64) -> u32 {
        let at = (at - Flat::BASE) as usize;
        let bytes = self.memory[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes)
    }
}

/// Makes a processor with flat segments: 8 code and 0x10 data of level 0, 0x1b code and 0x23 data of level 3; `long` as in a 64-bit kernel.
fn machine(long: bool) -> Flat {
    let mut cpu = Flat::new(0x9000);
    let code = if long { 0xaf } else { 0xcf };
    for (n, high) in [(1, code << 16 | 0x9b00), (2, 0xcf_9300)] {
        cpu.put(GDT + 8 * n, high << 32 | 0xffff);
        cpu.put(GDT + 8 * (n + 2), (high | 0x6000) << 32 | 0xffff);
    }
    cpu.state.gdtr.base = GDT;
    cpu.state.gdtr.limit = 0x5f;
    cpu.state.idtr.base = IDT;
    cpu.state.idtr.limit = 0x3ff;
    cpu.state.tr = Segment {
        selector: 0x28,
        attributes: 0x8b,
        limit: 0x67,
        base: TASK,
    };
    if long {
        cpu.put(TASK + 4, INNER);
        cpu.put(TASK + 0x24, FIRST);
    } else {
        cpu.state.efer = 0;
        cpu.put(TASK + 4, 0x10 << 32 | INNER);
    }
    level(&mut cpu, 0);
    cpu.state.set_rip(CODE);
    cpu.state.set(Gpr::RSP, OUTER);
    cpu
}

/// Puts the processor to a level.
fn level(cpu: &mut Flat, level: u8) {
    let (cs, ss) = if level == 0 { (8, 0x10) } else { (0x1b, 0x23) };
    let dpl = u16::from(level) << 5;
    let cs_attributes = if cpu.state.is_long() { 0xa9b } else { 0xc9b };
    cpu.state.segments[1].selector = cs;
    cpu.state.segments[1].attributes = cs_attributes | dpl;
    for name in [0, 2, 3] {
        cpu.state.segments[name].selector = ss;
        cpu.state.segments[name].attributes = 0xc93 | dpl;
    }
    cpu.state.cpl = level;
}

/// Puts a gate to [`HANDLER`] into the interrupt table; `kind` has the type and the privilege level.
fn gate(cpu: &mut Flat, vector: u64, kind: u64, stack: u64) {
    let low = HANDLER & 0xffff | 8 << 16 | (HANDLER >> 16 & 0xffff) << 48;
    let low = low | (0x80 | kind) << 40 | stack << 32;
    if cpu.state.is_long() {
        cpu.put(IDT + 16 * vector, low);
        cpu.put(IDT + 16 * vector + 8, 0);
    } else {
        cpu.put(IDT + 8 * vector, low);
    }
}

fn code_at(cpu: &Flat) -> Op<Flat> {
    let at = (cpu.state.rip() - Flat::BASE) as usize;
    decode(&cpu.memory[at..at + 15], Mode::of(&cpu.state)).expect("an instruction")
}

#[test]
fn an_interrupt_in_64_bit_code_goes_to_the_inner_stack_and_back() {
    let mut cpu = machine(true);
    level(&mut cpu, 3);
    gate(&mut cpu, 0x30, 0xe, 0);
    cpu.state.flags = Flags::ONE | Flags::IF | Flags::CF | Flags::TF;
    let before = cpu.state.clone();
    assert_eq!(raise(&mut cpu, Event::Interrupt(0x30)), Delivery::Done);
    assert_eq!(cpu.state.rip(), HANDLER);
    assert_eq!(cpu.state.cpl, 0);
    assert_eq!(cpu.state.flags, Flags::ONE | Flags::CF);
    assert_eq!(cpu.state.segments[2].selector, 0);
    assert_eq!(cpu.state.get(Gpr::RSP), INNER - 40);
    let frame: Vec<u64> = (0..5).map(|n| cpu.read(INNER - 40 + 8 * n)).collect();
    assert_eq!(frame, [CODE, 0x1b, 0x303, OUTER, 0x23]);
    // iretq
    assert!(step(&mut cpu, &[0x48, 0xcf]).is_ok());
    assert_eq!(cpu.state.rip(), CODE);
    assert_eq!(cpu.state.flags, before.flags);
    assert_eq!(cpu.state.segments, before.segments);
    assert_eq!(cpu.state.cpl, 3);
    assert_eq!(cpu.state.get(Gpr::RSP), OUTER);
}

#[test]
fn the_interrupt_stack_table_serves_the_same_level_too() {
    let mut cpu = machine(true);
    gate(&mut cpu, 14, 0xf, 1);
    cpu.state.flags |= Flags::IF;
    let exception = Exception::with_code(14, 2);
    let address = 0x1234;
    let event = Event::Exception { exception, address };
    assert_eq!(deliver(&mut cpu, &event), Ok(()));
    assert_eq!(cpu.state.cr2, 0x1234);
    assert_eq!(cpu.state.get(Gpr::RSP), FIRST - 48);
    assert_eq!(cpu.read(FIRST - 48), 2);
    assert_eq!(cpu.state.segments[2].selector, 0x10);
    // A trap gate leaves IF; a fault saves RF.
    assert!(cpu.state.flags.contains(Flags::IF));
    assert_ne!(cpu.read(FIRST - 24) & Flags::RF.bits(), 0);
}

#[test]
fn a_delivery_that_faults_changes_nothing() {
    let mut cpu = machine(true);
    level(&mut cpu, 3);
    gate(&mut cpu, 0x30, 0xe, 0);
    // The last eight bytes of the frame lie below memory.
    cpu.put(TASK + 4, Flat::BASE + 32);
    let (state, memory) = (cpu.state.clone(), cpu.memory.clone());
    let stopped = deliver(&mut cpu, &Event::Interrupt(0x30));
    assert_eq!(stopped, Err(Stop::Exception(Exception::with_code(14, 6))));
    cpu.state.fault_address = state.fault_address;
    assert_eq!(cpu.state, state);
    assert_eq!(cpu.memory, memory);
}

#[test]
fn faults_of_a_delivery_become_double_faults_and_a_shutdown() {
    let mut cpu = machine(true);
    gate(&mut cpu, 8, 0xe, 1);
    // No gate for #GP: its delivery raises #GP.
    let protection = Event::raised(&cpu.state, Exception::GENERAL_PROTECTION);
    assert_eq!(raise(&mut cpu, protection), Delivery::Done);
    assert_eq!(cpu.state.rip(), HANDLER);
    assert_eq!(cpu.read(FIRST - 48), 0);
    cpu.put(IDT + 16 * 8, 0);
    assert_eq!(raise(&mut cpu, protection), Delivery::Shutdown);
    // An interrupt without a gate becomes #GP alone.
    gate(&mut cpu, 13, 0xe, 1);
    assert_eq!(raise(&mut cpu, Event::Interrupt(0x20)), Delivery::Done);
    assert_eq!(cpu.read(FIRST - 48), 0x20 << 3 | 3);
}

#[test]
fn a_software_interrupt_needs_the_gates_level() {
    let mut cpu = machine(true);
    level(&mut cpu, 3);
    gate(&mut cpu, 0x30, 0xe, 0);
    // int 0x30
    let stopped = step(&mut cpu, &[0xcd, 0x30]);
    let code = 0x30 << 3 | 2;
    assert_eq!(
        stopped,
        Err(Stop::Exception(Exception::with_code(13, code)))
    );
    gate(&mut cpu, 0x30, 0x6e, 0);
    assert!(step(&mut cpu, &[0xcd, 0x30]).is_ok());
    assert_eq!(cpu.state.rip(), HANDLER);
    assert_eq!(cpu.read(INNER - 40), CODE + 2);
}

#[test]
fn real_mode_goes_through_the_vector_table_and_back() {
    let mut cpu = Flat::new(0x9000);
    let mut state = State::reset();
    // Real mode's addresses are below 1 MiB; a base above shows that the hidden parts count.
    for segment in &mut state.segments {
        *segment = Segment {
            selector: 0,
            attributes: 0x93,
            limit: 0xffff,
            base: Flat::BASE,
        };
    }
    state.idtr.base = IDT;
    state.set(Gpr::RSP, 0x7000);
    state.set_rip(0x3000);
    state.flags = Flags::ONE | Flags::IF | Flags::TF;
    cpu.state = state;
    cpu.put(IDT + 4 * 0x21, 0x1234_4000);
    // int 0x21
    assert!(step(&mut cpu, &[0xcd, 0x21]).is_ok());
    assert_eq!(cpu.state.rip(), 0x4000);
    assert_eq!(cpu.state.segments[1].base, 0x12340);
    assert_eq!(cpu.state.get(Gpr::RSP), 0x6ffa);
    assert_eq!(cpu.state.flags, Flags::ONE);
    assert_eq!(cpu.read_32(OUTER - 6), 0x3002);
    // iret
    assert!(step(&mut cpu, &[0xcf]).is_ok());
    assert_eq!(cpu.state.rip(), 0x3002);
    assert_eq!(cpu.state.flags, Flags::ONE | Flags::IF | Flags::TF);
}

#[test]
fn a_system_call_goes_in_and_comes_back() {
    let mut cpu = machine(true);
    level(&mut cpu, 3);
    cpu.state.efer |= 1;
    cpu.state.msrs.star = 0x0013_0008 << 32;
    cpu.state.msrs.lstar = HANDLER;
    cpu.state.msrs.sfmask = Flags::IF.bits();
    cpu.state.flags = Flags::ONE | Flags::IF;
    assert!(step(&mut cpu, &[0x0f, 0x05]).is_ok());
    assert_eq!((cpu.state.rip(), cpu.state.cpl), (HANDLER, 0));
    assert_eq!(cpu.state.get(Gpr::RCX), CODE + 2);
    assert_eq!(cpu.state.get(Gpr::R11), 0x202);
    assert_eq!(cpu.state.flags, Flags::ONE);
    assert_eq!(cpu.state.segments[1].selector, 8);
    assert!(step(&mut cpu, &[0x48, 0x0f, 0x07]).is_ok());
    assert_eq!((cpu.state.rip(), cpu.state.cpl), (CODE + 2, 3));
    assert_eq!(cpu.state.segments[1].selector, 0x23);
    assert_eq!(cpu.state.segments[2].selector, 0x1b);
    assert_eq!(cpu.state.flags, Flags::ONE | Flags::IF);
}

#[test]
fn a_call_gate_takes_parameters_to_the_inner_stack() {
    let mut cpu = machine(false);
    level(&mut cpu, 3);
    // A 32-bit call gate of level 3 with two parameters.
    let low = HANDLER & 0xffff | 8 << 16 | 2 << 32 | 0xec << 40;
    cpu.put(GDT + 0x30, low | (HANDLER >> 16) << 48);
    cpu.put(OUTER, 0x2222_2222_1111_1111);
    // call 0x33:0
    assert!(step(&mut cpu, &[0x9a, 0, 0, 0, 0, 0x33, 0]).is_ok());
    assert_eq!((cpu.state.rip(), cpu.state.cpl), (HANDLER, 0));
    assert_eq!(cpu.state.get(Gpr::RSP), INNER - 24);
    let frame: Vec<u32> = (0..6).map(|n| cpu.read_32(INNER - 24 + 4 * n)).collect();
    let return_to = CODE as u32 + 7;
    assert_eq!(
        frame,
        [
            return_to,
            0x1b,
            0x1111_1111,
            0x2222_2222,
            OUTER as u32,
            0x23
        ]
    );
    // retf 8
    assert!(step(&mut cpu, &[0xca, 8, 0]).is_ok());
    assert_eq!((cpu.state.rip(), cpu.state.cpl), (CODE + 7, 3));
    assert_eq!(cpu.state.get(Gpr::RSP), OUTER + 8);
}

#[test]
fn a_task_is_called_and_returns() {
    const OTHER: u64 = Flat::BASE + 0x2800;
    let mut cpu = machine(false);
    // Two 32-bit task states, the current one busy.
    for (selector, base, kind) in [(0x28, TASK, 0x8b), (0x30, OTHER, 0x89)] {
        let descriptor = 0x67 | (base & 0xff_ffff) << 16 | kind << 40;
        cpu.put(GDT + selector, descriptor);
    }
    cpu.put(OTHER + 0x20, HANDLER | 2 << 32);
    cpu.put(OTHER + 0x38, INNER);
    cpu.put(OTHER + 0x48, 0x10 | 8 << 32);
    cpu.put(OTHER + 0x50, 0x10 | 0x10 << 32);
    cpu.state.set(Gpr::RBX, 0x1234);
    // call 0x30:0
    assert!(step(&mut cpu, &[0x9a, 0, 0, 0, 0, 0x30, 0]).is_ok());
    assert_eq!(cpu.state.rip(), HANDLER);
    assert_eq!(cpu.state.get(Gpr::RSP), INNER);
    assert_eq!(cpu.state.get(Gpr::RBX), 0);
    assert_eq!(cpu.state.tr.selector, 0x30);
    assert!(cpu.state.flags.contains(Flags::NT));
    assert_ne!(cpu.state.cr0 & 8, 0, "TS");
    assert_eq!(cpu.read_32(OTHER), 0x28);
    assert_eq!(cpu.read(GDT + 0x30) >> 40 & 0xff, 0x8b);
    // iretd
    assert!(step(&mut cpu, &[0xcf]).is_ok());
    assert_eq!(cpu.state.rip(), CODE + 7);
    assert_eq!(cpu.state.get(Gpr::RBX), 0x1234);
    assert_eq!(cpu.state.segment(SegmentName::Cs).selector, 8);
    assert!(!cpu.state.flags.contains(Flags::NT));
    assert_eq!(cpu.read(GDT + 0x30) >> 40 & 0xff, 0x89);
    assert_eq!(cpu.read_32(OTHER + 0x20), HANDLER as u32 + 1);
}

#[test]
fn a_single_step_traps_after_the_instruction() {
    let mut cpu = machine(true);
    cpu.state.flags |= Flags::TF;
    // add eax, 1; mov ss, ecx; add eax, 1
    let code = 0xd1_8e01_c083u64 | 0x01_c083 << 40;
    cpu.put(CODE, code);
    cpu.state.set(Gpr::RCX, 0x10);
    assert!(cpu.state.is_watched());
    let op = code_at(&cpu);
    assert_eq!(op.execute_watched(&mut cpu), Ok(Some(Exception::DEBUG)));
    assert_eq!(cpu.state.rip(), CODE + 3);
    assert_ne!(cpu.state.dr[6] & 1 << 14, 0);
    // Loading SS holds the trap off for this instruction and interrupts for the next.
    let op = code_at(&cpu);
    assert_eq!(op.execute_watched(&mut cpu), Ok(None));
    assert!(cpu.state.interrupt_shadow);
    let op = code_at(&cpu);
    assert_eq!(op.execute_watched(&mut cpu), Ok(Some(Exception::DEBUG)));
    assert!(!cpu.state.interrupt_shadow);
}

#[test]
fn a_breakpoint_stops_before_the_instruction_once() {
    let mut cpu = machine(true);
    cpu.put(CODE, 0x01_c083);
    cpu.state.dr[1] = CODE;
    cpu.state.dr[7] |= 4;
    assert!(cpu.state.is_watched());
    assert_eq!(cpu.state.take_debug(), Some(Exception::DEBUG));
    assert_eq!(cpu.state.dr[6] & 15, 2);
    assert_eq!(cpu.state.rip(), CODE);
    cpu.state.flags |= Flags::RF;
    assert_eq!(cpu.state.take_debug(), None);
    let op = code_at(&cpu);
    assert_eq!(op.execute_watched(&mut cpu), Ok(None));
    assert!(!cpu.state.flags.contains(Flags::RF));
}

/// Puts the processor into virtual-8086 mode, its segments at the start of memory.
fn virtual_8086(cpu: &mut Flat, io_level: u64) {
    cpu.state.flags = Flags::from_bits_retain(Flags::ONE.bits() | 1 << 17 | io_level << 12);
    for (n, segment) in (0x10u16..).zip(&mut cpu.state.segments) {
        *segment = Segment {
            selector: n,
            attributes: 0xf3,
            limit: 0xffff,
            base: Flat::BASE,
        };
    }
    cpu.state.cpl = 3;
    cpu.state.set_rip(0x3000);
    cpu.state.set(Gpr::RSP, 0x7000);
}

#[test]
fn virtual_8086_code_is_left_with_all_segments_and_entered_again() {
    let mut cpu = machine(false);
    gate(&mut cpu, 0x21, 0x6e, 0);
    virtual_8086(&mut cpu, 3);
    // int 0x21
    assert!(step(&mut cpu, &[0xcd, 0x21]).is_ok());
    assert_eq!((cpu.state.rip(), cpu.state.cpl), (HANDLER, 0));
    assert!(!cpu.state.flags.contains(Flags::VM));
    for name in [0, 3, 4, 5] {
        assert_eq!(cpu.state.segments[name], Segment::default());
    }
    let frame: Vec<u32> = (0..9).map(|n| cpu.read_32(INNER - 36 + 4 * n)).collect();
    let flags = 0x2_3002;
    assert_eq!(
        frame,
        [0x3002, 0x11, flags, 0x7000, 0x12, 0x10, 0x13, 0x14, 0x15]
    );
    // iretd
    assert!(step(&mut cpu, &[0xcf]).is_ok());
    assert_eq!((cpu.state.rip(), cpu.state.cpl), (0x3002, 3));
    assert_eq!(cpu.state.flags.bits(), flags.into());
    let selectors = cpu.state.segments.map(|segment| segment.selector);
    assert_eq!(selectors, [0x10, 0x11, 0x12, 0x13, 0x14, 0x15]);
    assert_eq!(cpu.state.segments[3].base, 0x130);
}

#[test]
fn virtual_8086_code_needs_the_io_level_for_int_but_not_for_int3() {
    let mut cpu = machine(false);
    gate(&mut cpu, 3, 0x6e, 0);
    gate(&mut cpu, 0x21, 0x6e, 0);
    virtual_8086(&mut cpu, 0);
    let refused = Err(Stop::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(step(&mut cpu, &[0xcd, 0x21]), refused);
    // iret
    assert_eq!(step(&mut cpu, &[0xcf]), refused);
    assert!(step(&mut cpu, &[0xcc]).is_ok());
    assert_eq!(cpu.state.cpl, 0);
}

#[test]
fn a_gate_of_16_bits_pushes_16_bits() {
    let mut cpu = machine(false);
    gate(&mut cpu, 0x30, 6, 0);
    cpu.state.flags |= Flags::IF;
    assert_eq!(raise(&mut cpu, Event::Interrupt(0x30)), Delivery::Done);
    assert_eq!(cpu.state.rip(), HANDLER & 0xffff);
    assert_eq!(cpu.state.get(Gpr::RSP), OUTER - 6);
    assert_eq!(cpu.read(OUTER - 6), 0x0202_0008_3000);
}

#[test]
fn a_task_gate_takes_the_error_code_to_the_new_tasks_stack() {
    const OTHER: u64 = Flat::BASE + 0x2800;
    let mut cpu = machine(false);
    for (selector, base, kind) in [(0x28, TASK, 0x8b), (0x30, OTHER, 0x89)] {
        cpu.put(GDT + selector, 0x67 | (base & 0xff_ffff) << 16 | kind << 40);
    }
    cpu.put(OTHER + 0x20, HANDLER | 2 << 32);
    cpu.put(OTHER + 0x38, INNER);
    cpu.put(OTHER + 0x48, 0x10 | 8 << 32);
    cpu.put(OTHER + 0x50, 0x10 | 0x10 << 32);
    cpu.put(IDT + 8 * 13, 0x30 << 16 | 0x85 << 40);
    let event = Event::raised(&cpu.state, Exception::with_code(13, 0x48));
    assert_eq!(raise(&mut cpu, event), Delivery::Done);
    assert_eq!(cpu.state.rip(), HANDLER);
    assert_eq!(cpu.state.get(Gpr::RSP), INNER - 4);
    assert_eq!(cpu.read_32(INNER - 4), 0x48);
    // The old task's place: the instruction that faulted, with RF.
    assert_eq!(cpu.read(TASK + 0x20), CODE | 0x1_0002 << 32);
}

#[test]
fn a_task_switch_that_faults_changes_nothing() {
    let mut cpu = machine(false);
    cpu.put(GDT + 0x28, 0x67 | (TASK & 0xff_ffff) << 16 | 0x8b << 40);
    // The other task's state ends beyond memory.
    let other = Flat::BASE + 0x8fc0;
    cpu.put(GDT + 0x30, 0x67 | (other & 0xff_ffff) << 16 | 0x89 << 40);
    let (state, memory) = (cpu.state.clone(), cpu.memory.clone());
    let stopped = step(&mut cpu, &[0x9a, 0, 0, 0, 0, 0x30, 0]);
    assert!(matches!(stopped, Err(Stop::Exception(e)) if e.vector == 14));
    assert_eq!(cpu.memory, memory);
    assert_eq!(cpu.state.tr, state.tr);
    assert_eq!(cpu.state.flags, state.flags);
    assert_eq!(cpu.state.segments, state.segments);
}

#[test]
fn a_return_to_an_outer_level_takes_inner_segments_away() {
    let mut cpu = machine(true);
    cpu.state.segments[4].selector = 3;
    cpu.state.segments[4].attributes = 0;
    cpu.state.segments[4].base = 0x1234;
    for (n, value) in (0..).zip([CODE, 0x1b, 0x202, OUTER, 0x23]) {
        cpu.put(INNER - 40 + 8 * n, value);
    }
    cpu.state.set(Gpr::RSP, INNER - 40);
    // iretq
    assert!(step(&mut cpu, &[0x48, 0xcf]).is_ok());
    assert_eq!(cpu.state.segments[3].selector, 0, "DS was level 0's");
    assert_eq!(cpu.state.segments[4].selector, 0);
    assert_eq!(cpu.state.segments[4].base, 0x1234, "FS keeps its base");
}

#[test]
fn a_non_maskable_interrupt_holds_others_off_until_iret() {
    let mut cpu = machine(true);
    gate(&mut cpu, 2, 0xe, 0);
    assert_eq!(raise(&mut cpu, Event::Nmi), Delivery::Done);
    assert!(cpu.state.nmi_blocked);
    assert!(step(&mut cpu, &[0x48, 0xcf]).is_ok());
    assert!(!cpu.state.nmi_blocked);
    // A nested task does not exist in long mode.
    cpu.state.flags |= Flags::NT;
    let refused = Err(Stop::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(step(&mut cpu, &[0x48, 0xcf]), refused);
}

#[test]
fn the_io_bitmap_opens_ports_to_outer_levels() {
    let mut cpu = machine(true);
    level(&mut cpu, 3);
    cpu.state.tr.limit = 0x77;
    cpu.put(TASK + 0x60, 0x68 << 48);
    // Ports 0 to 7 are open, 8 is not.
    cpu.put(TASK + 0x68, 0xffff_ffff_ffff_ff00);
    let refused = Err(Stop::Exception(Exception::GENERAL_PROTECTION));
    // in al, 7: it reaches the port, where this processor stops.
    assert_eq!(step(&mut cpu, &[0xe4, 7]), Err(Stop::Exit));
    // in ax, 7 would read port 8 too.
    assert_eq!(step(&mut cpu, &[0x66, 0xe5, 7]), refused);
    // Beyond the limit nothing is open.
    assert_eq!(step(&mut cpu, &[0xe4, 0xf0]), refused);
}
