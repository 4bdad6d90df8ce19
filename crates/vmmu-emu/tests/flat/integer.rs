//! Integer instructions whose promise is more than a result: order, addresses, stops.

use crate::common::Flat;
use vmmu_emu::{After, Exception, Flags, Gpr, Stop, step};

const DATA: u64 = Flat::BASE + 0x1000;

fn word(cpu: &Flat, at: u64) -> u64 {
    let start = (at - Flat::BASE) as usize;
    let bytes = cpu.memory[start..start + 8].try_into();
    u64::from_le_bytes(bytes.expect("eight bytes"))
}

#[test]
fn a_call_returns_behind_itself() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RSP, DATA);
    // call +0x10
    assert!(step(&mut cpu, &[0xe8, 0x10, 0, 0, 0]).is_ok());
    assert_eq!(cpu.state.rip(), Flat::BASE + 0x15);
    assert_eq!(word(&cpu, DATA - 8), Flat::BASE + 5);
    // ret 8
    assert!(step(&mut cpu, &[0xc2, 8, 0]).is_ok());
    assert_eq!(cpu.state.rip(), Flat::BASE + 5);
    assert_eq!(cpu.state.get(Gpr::RSP), DATA + 8);
}

#[test]
fn a_branch_to_where_no_code_can_be_faults_before_it_pushes() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RSP, DATA);
    cpu.state.set(Gpr::RAX, 1 << 60);
    // call rax
    let stopped = step(&mut cpu, &[0xff, 0xd0]);
    assert_eq!(stopped, Err(Exception::GENERAL_PROTECTION.into()));
    assert_eq!(cpu.state.get(Gpr::RSP), DATA);
    assert_eq!(word(&cpu, DATA - 8), 0);
}

#[test]
fn a_bit_offset_reaches_beyond_its_operand_in_both_directions() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RBX, DATA);
    cpu.state.set(Gpr::RCX, 65);
    // bts [rbx], rcx
    assert!(step(&mut cpu, &[0x48, 0x0f, 0xab, 0x0b]).is_ok());
    assert_eq!(word(&cpu, DATA + 8), 2);
    cpu.state.set(Gpr::RCX, (-1i64) as u64);
    assert!(step(&mut cpu, &[0x48, 0x0f, 0xab, 0x0b]).is_ok());
    assert_eq!(word(&cpu, DATA - 8), 1 << 63);
    assert!(!cpu.state.flags.contains(Flags::CF));
}

#[test]
fn a_repeated_move_that_faults_keeps_what_it_did() {
    let mut cpu = Flat::new(0x1010);
    cpu.memory[0..64].fill(7);
    cpu.state.set(Gpr::RSI, Flat::BASE);
    cpu.state.set(Gpr::RDI, DATA);
    cpu.state.set(Gpr::RCX, 32);
    // rep movsb: memory ends after 16 bytes
    let stopped = step(&mut cpu, &[0xf3, 0xa4]);
    assert_eq!(stopped, Err(Stop::Exception(Exception::with_code(14, 6))));
    assert_eq!(cpu.state.get(Gpr::RCX), 16);
    assert_eq!(cpu.state.get(Gpr::RDI), DATA + 16);
    assert_eq!(cpu.state.get(Gpr::RSI), Flat::BASE + 16);
    assert_eq!(cpu.state.rip(), Flat::BASE);
    assert_eq!(cpu.memory[0x1000..], [7; 16]);
}

#[test]
fn a_pop_that_cannot_store_leaves_the_stack() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RSP, DATA);
    cpu.state.set(Gpr::RAX, 0x10);
    // pop [rax]
    assert!(step(&mut cpu, &[0x8f, 0x00]).is_err());
    assert_eq!(cpu.state.get(Gpr::RSP), DATA);
}

#[test]
fn a_quotient_too_large_is_a_divide_error() {
    let mut cpu = Flat::new(0x10);
    cpu.state.set(Gpr::RDX, 1);
    cpu.state.set(Gpr::RCX, 1);
    // div rcx
    let stopped = step(&mut cpu, &[0x48, 0xf7, 0xf1]);
    assert_eq!(stopped, Err(Exception::DIVIDE.into()));
    // idiv rcx, of i64::MIN by -1
    cpu.state.set(Gpr::RAX, 1 << 63);
    cpu.state.set(Gpr::RDX, u64::MAX);
    cpu.state.set(Gpr::RCX, u64::MAX);
    let stopped = step(&mut cpu, &[0x48, 0xf7, 0xf9]);
    assert_eq!(stopped, Err(Exception::DIVIDE.into()));
    cpu.state.set(Gpr::RCX, 2);
    assert!(step(&mut cpu, &[0x48, 0xf7, 0xf9]).is_ok());
    assert_eq!(cpu.state.get(Gpr::RAX), (-(1i64 << 62)) as u64);
}

#[test]
fn a_locked_update_keeps_what_another_processor_stores_meanwhile() {
    // lock add [rbx], rax; lock inc qword [rbx]; lock bts qword [rbx], 6; lock xadd [rbx], rax
    let codes: [(&[u8], u64); 4] = [
        (&[0xf0, 0x48, 0x01, 0x03], 13 + 5),
        (&[0xf0, 0x48, 0xff, 0x03], 13 + 1),
        (&[0xf0, 0x48, 0x0f, 0xba, 0x2b, 6], 13 + 64),
        (&[0xf0, 0x48, 0x0f, 0xc1, 0x03], 13 + 5),
    ];
    for (code, expected) in codes {
        let mut cpu = Flat::new(0x2000);
        cpu.state.set(Gpr::RBX, DATA);
        cpu.state.set(Gpr::RAX, 5);
        cpu.memory[0x1000] = 10;
        cpu.rivals = 3;
        assert!(step(&mut cpu, code).is_ok());
        assert_eq!(word(&cpu, DATA), expected, "{code:02x?}");
    }
}

#[test]
fn an_exchange_with_memory_is_atomic_without_a_prefix() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RBX, DATA);
    cpu.state.set(Gpr::RAX, 5);
    cpu.memory[0x1000] = 10;
    cpu.rivals = 1;
    // xchg [rbx], rax
    assert!(step(&mut cpu, &[0x48, 0x87, 0x03]).is_ok());
    assert_eq!(cpu.state.get(Gpr::RAX), 11);
    assert_eq!(word(&cpu, DATA), 5);
}

#[test]
fn a_locked_comparison_that_another_processor_spoils_fails() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RBX, DATA);
    cpu.state.set(Gpr::RAX, 10);
    cpu.memory[0x1000] = 10;
    cpu.rivals = 1;
    // lock cmpxchg [rbx], rcx
    assert!(step(&mut cpu, &[0xf0, 0x48, 0x0f, 0xb1, 0x0b]).is_ok());
    assert_eq!(cpu.state.get(Gpr::RAX), 11);
    assert!(!cpu.state.flags.contains(Flags::ZF));
}

#[test]
fn a_long_repetition_pauses_where_it_is_and_goes_on() {
    let mut cpu = Flat::new(0x4000);
    cpu.state.set(Gpr::RDI, DATA);
    cpu.state.set(Gpr::RCX, 0x2000);
    cpu.state.set(Gpr::RAX, 7);
    let mut steps = 0;
    // rep stosb
    while cpu.state.rip() == Flat::BASE {
        assert_eq!(step(&mut cpu, &[0xf3, 0xaa]), Ok(After::Branch));
        let done = 0x2000 - cpu.state.get(Gpr::RCX);
        assert_eq!(cpu.state.get(Gpr::RDI), DATA + done);
        steps += 1;
    }
    assert!(steps > 1);
    assert!(cpu.memory[0x1000..0x3000].iter().all(|byte| *byte == 7));
    assert_eq!(cpu.memory[0x3000], 0);
}

#[test]
fn a_repetition_under_the_trap_flag_does_one_element() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RDI, DATA);
    cpu.state.set(Gpr::RCX, 3);
    cpu.state.flags.insert(Flags::TF);
    // rep stosb
    assert!(step(&mut cpu, &[0xf3, 0xaa]).is_ok());
    assert_eq!(cpu.state.get(Gpr::RCX), 2);
    assert_eq!(cpu.state.rip(), Flat::BASE);
}

#[test]
fn a_port_is_read_only_if_its_value_can_be_stored() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.cpl = 0;
    cpu.state.set(Gpr::RDI, DATA);
    // insb: the port is the embedder's business
    assert_eq!(step(&mut cpu, &[0x6c]), Err(Stop::Exit));
    cpu.state.set(Gpr::RDI, 0x1000);
    let stopped = step(&mut cpu, &[0x6c]);
    assert_eq!(stopped, Err(Exception::with_code(14, 6).into()));
    // Without privilege, and without a task that has some, neither is touched.
    cpu.state.tr.limit = 0;
    cpu.state.cpl = 3;
    let stopped = step(&mut cpu, &[0x6c]);
    assert_eq!(stopped, Err(Exception::GENERAL_PROTECTION.into()));
}
