//! System instructions.

use crate::common::Flat;
use vmmu_emu::{Exception, Gpr, Stop, step};

/// A 64-bit kernel on flat memory with a descriptor table at [`Flat::BASE`] and code behind it.
fn kernel() -> Flat {
    let mut cpu = Flat::new(0x2000);
    cpu.state.cpl = 0;
    cpu.state.gdtr.base = Flat::BASE;
    cpu.state.gdtr.limit = 0x2f;
    // Data for level 0, not yet accessed; a 64-bit task state of 0x68 bytes at 0x105000.
    cpu.memory[0x10..0x18].copy_from_slice(&0x00cf_9200_0000_ffffu64.to_le_bytes());
    cpu.memory[0x20..0x28].copy_from_slice(&0x0000_8910_5000_0067u64.to_le_bytes());
    cpu.state.tr.limit = 0x60;
    cpu.state.set_rip(Flat::BASE + 0x1000);
    cpu
}

#[test]
fn a_segment_load_marks_its_descriptor() {
    let mut cpu = kernel();
    cpu.state.set(Gpr::RAX, 0x10);
    // mov ss, eax
    assert!(step(&mut cpu, &[0x8e, 0xd0]).is_ok());
    assert_eq!(cpu.state.segments[2].selector, 0x10);
    assert_eq!(cpu.memory[0x15], 0x93);
    assert!(cpu.state.interrupt_shadow);
}

#[test]
fn a_segment_load_from_an_outer_level_is_refused() {
    let mut cpu = kernel();
    cpu.state.cpl = 3;
    cpu.state.set(Gpr::RAX, 0x13);
    // mov ds, eax
    let stopped = step(&mut cpu, &[0x8e, 0xd8]);
    assert_eq!(
        stopped,
        Err(Stop::Exception(Exception::with_code(13, 0x10)))
    );
    assert_eq!(cpu.memory[0x15], 0x92);
}

#[test]
fn a_task_register_load_makes_the_task_busy() {
    let mut cpu = kernel();
    cpu.state.set(Gpr::RAX, 0x20);
    // ltr ax
    assert!(step(&mut cpu, &[0x0f, 0x00, 0xd8]).is_ok());
    assert_eq!(cpu.state.tr.base, 0x10_5000);
    assert_eq!(cpu.memory[0x25], 0x8b);
    // Again: it is busy now.
    let stopped = step(&mut cpu, &[0x0f, 0x00, 0xd8]);
    assert_eq!(
        stopped,
        Err(Stop::Exception(Exception::with_code(13, 0x20)))
    );
}

#[test]
fn privileged_instructions_are_refused_outside() {
    let mut cpu = kernel();
    cpu.state.cpl = 3;
    let refused = Err(Stop::Exception(Exception::GENERAL_PROTECTION));
    for bytes in [
        // mov cr0, rax; mov rax, cr3; rdmsr; hlt; invlpg [rax]; swapgs; sidt [rax] under UMIP; in al, dx
        &[0x0f, 0x22, 0xc0][..],
        &[0x0f, 0x20, 0xd8],
        &[0x0f, 0x32],
        &[0xf4],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x01, 0x08],
        &[0xec],
    ] {
        cpu.state.cr4 |= 1 << 11;
        assert_eq!(step(&mut cpu, bytes), refused, "{bytes:x?}");
    }
}
