//! Who may change the interrupt flag and its like: POPF, PUSHF, CLI, STI (AMD APM vol. 2, section 8.10; vol. 3, "POPF").

use crate::common::Flat;
use vmmu_emu::{Exception, Flags, Gpr, Stop, step};

const POPF: &[u8] = &[0x9d];
const PUSHF: &[u8] = &[0x9c];
const CLI: &[u8] = &[0xfa];
const STI: &[u8] = &[0xfb];
const VME: u64 = 1 << 0;
const PVI: u64 = 1 << 1;
const REFUSED: Result<(), Stop> = Err(Stop::Exception(Exception::GENERAL_PROTECTION));

/// Returns a processor of 64-bit code at a privilege level, with an I/O privilege level.
fn at_level(cpl: u8, iopl: u64) -> Flat {
    let mut cpu = Flat::new(0x100);
    cpu.state.cpl = cpl;
    cpu.state.flags = Flags::ONE | Flags::from_bits_retain(iopl << 12);
    cpu.state.set(Gpr::RSP, Flat::BASE + 0x80);
    cpu
}

/// Returns a processor of virtual-8086 code.
fn virtual_8086(iopl: u64, cr4: u64) -> Flat {
    let mut cpu = at_level(3, iopl);
    cpu.state.efer = 0;
    cpu.state.cr0 = 0x8000_0011;
    cpu.state.cr4 = cr4;
    cpu.state.flags.insert(Flags::VM);
    for segment in &mut cpu.state.segments {
        segment.base = Flat::BASE;
        segment.limit = 0xffff;
        segment.attributes = 0xf3;
    }
    cpu.state.set(Gpr::RSP, 0x80);
    cpu
}

fn run(cpu: &mut Flat, code: &[u8]) -> Result<(), Stop> {
    step(cpu, code).map(drop)
}

/// Pops flags, and returns what RFLAGS are then.
fn pop(cpu: &mut Flat, flags: u64) -> Result<u64, Stop> {
    cpu.memory[0x80..0x88].copy_from_slice(&flags.to_le_bytes());
    run(cpu, POPF)?;
    Ok(cpu.state.flags.bits())
}

#[test]
fn the_kernel_pops_everything_but_what_no_pop_changes() {
    let mut cpu = at_level(0, 0);
    // All but VM, RF, VIF, VIP and what is reserved.
    assert_eq!(pop(&mut cpu, u64::MAX), Ok(0x0024_7fd7));
    assert_eq!(pop(&mut at_level(0, 3), 0), Ok(2));
}

#[test]
fn a_user_pops_neither_the_interrupt_flag_nor_the_io_privilege_level() {
    assert_eq!(pop(&mut at_level(3, 0), u64::MAX), Ok(0x0024_4dd7));
    let mut cpu = at_level(3, 0);
    cpu.state.flags.insert(Flags::IF);
    assert_eq!(pop(&mut cpu, 0), Ok(0x202));
}

#[test]
fn a_user_with_io_privilege_pops_the_interrupt_flag() {
    assert_eq!(pop(&mut at_level(3, 3), u64::MAX), Ok(0x0024_7fd7));
    assert_eq!(pop(&mut at_level(1, 3), 0), Ok(0x3002));
}

#[test]
fn interrupts_are_switched_by_who_has_io_privilege() {
    let mut cpu = at_level(2, 2);
    assert_eq!(run(&mut cpu, STI), Ok(()));
    assert!(cpu.state.flags.contains(Flags::IF));
    assert_eq!(run(&mut cpu, CLI), Ok(()));
    assert!(!cpu.state.flags.contains(Flags::IF));
    assert_eq!(run(&mut at_level(3, 2), STI), REFUSED);
    assert_eq!(run(&mut at_level(3, 2), CLI), REFUSED);
}

#[test]
fn enabling_interrupts_holds_them_off_for_one_instruction() {
    let mut cpu = at_level(0, 0);
    assert_eq!(run(&mut cpu, STI), Ok(()));
    assert!(cpu.state.interrupt_shadow);
    let mut cpu = at_level(0, 0);
    cpu.state.flags.insert(Flags::IF);
    assert_eq!(run(&mut cpu, STI), Ok(()));
    assert!(!cpu.state.interrupt_shadow, "they were enabled");
}

#[test]
fn a_user_with_virtual_interrupts_switches_those() {
    let mut cpu = at_level(3, 0);
    cpu.state.cr4 |= PVI;
    assert_eq!(run(&mut cpu, STI), Ok(()));
    assert!(cpu.state.flags.contains(Flags::VIF));
    assert!(!cpu.state.flags.contains(Flags::IF));
    assert_eq!(run(&mut cpu, CLI), Ok(()));
    assert!(!cpu.state.flags.contains(Flags::VIF));
    // One that waits is the kernel's business.
    cpu.state.flags.insert(Flags::VIP);
    assert_eq!(run(&mut cpu, STI), REFUSED);
}

#[test]
fn virtual_8086_code_without_io_privilege_is_emulated_by_its_monitor() {
    for code in [POPF, PUSHF, CLI, STI] {
        let mut cpu = virtual_8086(0, 0);
        assert_eq!(run(&mut cpu, code), REFUSED);
        assert_eq!(cpu.state.get(Gpr::RSP), 0x80);
    }
    let mut cpu = virtual_8086(3, 0);
    assert_eq!(run(&mut cpu, STI), Ok(()));
    assert!(cpu.state.flags.contains(Flags::IF));
}

#[test]
fn virtual_8086_code_with_the_extensions_sees_its_own_interrupt_flag() {
    let mut cpu = virtual_8086(0, VME);
    assert_eq!(run(&mut cpu, STI), Ok(()));
    assert!(cpu.state.flags.contains(Flags::VIF));
    assert_eq!(run(&mut cpu, PUSHF), Ok(()));
    // IF is VIF, IOPL reads as 3.
    assert_eq!(cpu.memory[0x7e..0x80], [0x02, 0x32]);
    cpu.memory[0x7e..0x80].fill(0);
    assert_eq!(run(&mut cpu, POPF), Ok(()));
    assert!(!cpu.state.flags.contains(Flags::VIF));
    // A trap, or an interrupt that waits for the flag, is the monitor's.
    let mut cpu = virtual_8086(0, VME);
    assert_eq!(pop(&mut cpu, 0x100).map(drop), REFUSED);
    cpu.state.flags.insert(Flags::VIP);
    assert_eq!(pop(&mut cpu, 0x200).map(drop), REFUSED);
    assert!(pop(&mut cpu, 0).is_ok());
    // 32-bit forms are not part of the extensions.
    assert_eq!(run(&mut cpu, &[0x66, 0x9d]), REFUSED);
}

#[test]
fn pushed_flags_do_not_show_that_code_is_virtual_or_resumed() {
    let mut cpu = at_level(0, 0);
    cpu.state.flags.insert(Flags::RF | Flags::ID);
    assert_eq!(run(&mut cpu, PUSHF), Ok(()));
    assert_eq!(cpu.memory[0x78..0x80], 0x20_0002_u64.to_le_bytes());
}
