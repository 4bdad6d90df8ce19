//! Tests: an event is delivered once, whoever delivers it, and what its delivery calls for is done.

use std::sync::Arc;

use vmmu::addr::Gpa;
use vmmu_emu::system::event::Event;
use vmmu_emu::{Gpr, Segment, SegmentName};

use crate::cpu::exit::{Exit, Intercept};
use crate::load::GuestRam;
use crate::machine::run::Assembled;
use crate::machine::{Machine, Paging};
use crate::vmm::guest::GuestFrames;
use crate::vmm::runner::Runner;

/// The first task's page directory, and the second's: both map 4 MiB one to one.
const ROOTS: [u32; 2] = [0x1000, 0x2000];
const GDT: u32 = 0x3000;
const IDT: u32 = 0x4000;
/// Task states.
const TASKS: [u32; 2] = [0x5000, 0x6000];
/// The vector whose gate leads to the second task.
const VECTOR: u8 = 0x21;
/// Where the second task begins.
const START: u32 = 0x7000;

fn assemble(paging: Paging) -> Assembled<()> {
    Machine::new(crate::guests::multiboot(&[0xf4]))
        .memory(4 << 20)
        .paging(paging)
        .assemble(|_: &Arc<GuestFrames>| ())
        .expect("a machine")
}

fn put(mut guest: &GuestFrames, at: u32, words: &[u32]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    guest.write(Gpa::new(at.into()), &bytes).expect("RAM");
}

/// Writes tables, descriptors and task states of a 32-bit guest with an interrupt that is a task.
fn prepare(guest: &GuestFrames) {
    for root in ROOTS {
        put(guest, root, &[0x83]);
    }
    // Flat code, flat data, the first task (busy), the second.
    put(guest, GDT + 8, &[0x0000_ffff, 0x00cf_9b00]);
    put(guest, GDT + 16, &[0x0000_ffff, 0x00cf_9300]);
    put(guest, GDT + 24, &[TASKS[0] << 16 | 0x67, 0x0000_8b00]);
    put(guest, GDT + 32, &[TASKS[1] << 16 | 0x67, 0x0000_8900]);
    put(guest, IDT + 8 * u32::from(VECTOR), &[32 << 16, 0x8500]);
    // From CR3 on: EIP, EFLAGS, EAX to EBX, ESP, EBP to EDI, ES to GS.
    let state = [
        ROOTS[1], START, 2, 0, 0, 0, 0, 0x8000, 0, 0, 0, 16, 8, 16, 16, 16, 16,
    ];
    put(guest, TASKS[1] + 28, &state);
}

/// Puts the first processor into the first task.
fn enter(runner: &mut Runner<'_, ()>) {
    const PE_PG: u64 = 1 | 1 << 31;
    const PSE: u64 = 1 << 4;
    let state = runner.processor.state_mut();
    let flat = |selector, attributes| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    state.segments = [flat(16, 0xc93); 6];
    state.segments[SegmentName::Cs as usize] = flat(8, 0xc9b);
    state.tr = Segment {
        selector: 24,
        attributes: 0x8b,
        limit: 0x67,
        base: TASKS[0].into(),
    };
    (state.gdtr.base, state.gdtr.limit) = (GDT.into(), 39);
    (state.idtr.base, state.idtr.limit) = (IDT.into(), 0x7ff);
    (state.cr0, state.cr4, state.cr3) = (PE_PG, PSE, ROOTS[0].into());
    state.set_rip(0x9000);
    state.set(Gpr::RSP, 0xa000);
}

#[test]
fn an_instruction_that_is_intercepted_is_not_executed_instead_of_a_delivery() {
    let Assembled { vm, processors, .. } = assemble(Paging::Nested);
    prepare(&vm.guest);
    let processor = processors.into_iter().next().expect("a processor");
    let mut runner = Runner::new(&vm, 0, processor).expect("it has one");
    enter(&mut runner);
    runner.flush = false;
    let exit = Exit::Intercept(Intercept::Control);
    runner.answer_during(exit, Some(Event::Interrupt(VECTOR)));
    assert_eq!(vm.take_end(), None);
    let state = runner.processor.state();
    assert_eq!(state.rip(), u64::from(START));
    assert_eq!(
        (state.tr.selector, state.tr.base),
        (32, u64::from(TASKS[1]))
    );
    assert!(!runner.processor.injects(), "once");
    // The task's tables are in force, and those of the other one forgotten.
    assert_eq!(state.cr3, u64::from(ROOTS[1]));
    assert!(runner.flush, "a load of CR3 drops what the TLB holds");
    let mut link = [0; 4];
    assert!(vm.guest.read(Gpa::new(TASKS[1].into()), &mut link));
    assert_eq!(u32::from_le_bytes(link), 24);
}
