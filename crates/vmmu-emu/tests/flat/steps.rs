//! Single instructions.

use crate::common::Flat;
use vmmu_emu::{Exception, Flags, Gpr, Stop, step};

#[test]
fn an_instruction_adds_and_moves_on() {
    let mut cpu = Flat::new(64);
    cpu.state.set(Gpr::RAX, u64::MAX);
    // add rax, 1
    assert!(step(&mut cpu, &[0x48, 0x83, 0xc0, 0x01]).is_ok());
    assert_eq!(cpu.state.get(Gpr::RAX), 0);
    assert_eq!(cpu.state.rip(), Flat::BASE + 4);
    assert!(cpu.state.flags.contains(Flags::CF | Flags::ZF));
}

#[test]
fn a_fault_leaves_everything_as_it_was() {
    let mut cpu = Flat::new(64);
    cpu.state.set(Gpr::RBX, 0x1000);
    let before = cpu.state.clone();
    // add [rbx], rax
    let stopped = step(&mut cpu, &[0x48, 0x01, 0x03]);
    assert_eq!(stopped, Err(Stop::Exception(Exception::with_code(14, 6))));
    assert_eq!(cpu.state.fault_address, 0x1000);
    cpu.state.fault_address = before.fault_address;
    assert_eq!(cpu.state.get(Gpr::RBX), before.get(Gpr::RBX));
    assert_eq!(cpu.state.rip(), before.rip());
    assert_eq!(cpu.state.flags, before.flags);
}
