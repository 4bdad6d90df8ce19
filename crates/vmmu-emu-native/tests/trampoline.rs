//! The way into native code and back changes what it should and nothing else.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use vmmu_emu_native::{CODE, CodeMode, DATA, DATA_LEN, End, Registers, Sandbox};

const START: u64 = CODE + 0x8000;

fn run(code: &[u8], data: &mut [u8; DATA_LEN], registers: &mut Registers) -> End {
    registers.rip = START;
    let mut sandbox = Sandbox::open().expect("a process may map pages and handle signals");
    sandbox.run(code, data, registers)
}

#[test]
fn an_instruction_sees_all_registers_and_memory() {
    let mut registers = Registers::new(CodeMode::Bits64);
    for (number, value) in registers.gpr.iter_mut().enumerate() {
        *value = number as u64 * 0x1111;
    }
    registers.gpr[15] = DATA + 8;
    registers.flags = 1;
    let mut expected = registers.clone();
    let mut data = [0; DATA_LEN];
    // adc [r15], rsp
    let end = run(&[0x49, 0x11, 0x27], &mut data, &mut registers);
    assert_eq!(end, End::Completed);
    assert_eq!(data[8..16], 0x4445u64.to_le_bytes());
    expected.rip = START + 3;
    expected.flags = registers.flags;
    assert_eq!(registers.flags & 1, 0);
    assert_eq!(registers.gpr, expected.gpr);
    assert_eq!(registers.rip, expected.rip);
}

#[test]
fn xmm_and_x87_registers_go_in_and_out() {
    let mut registers = Registers::new(CodeMode::Bits64);
    registers.fx.0[160 + 15 * 16] = 5;
    let mut data = [0; DATA_LEN];
    // paddb xmm15, xmm15
    let end = run(&[0x66, 0x45, 0x0f, 0xfc, 0xff], &mut data, &mut registers);
    assert_eq!(end, End::Completed);
    assert_eq!(registers.fx.0[160 + 15 * 16], 10);
    // fld1
    run(&[0xd9, 0xe8], &mut data, &mut registers);
    assert_eq!(
        registers.fx.0[32..42],
        [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]
    );
}

#[test]
fn an_exception_is_reported_with_its_address() {
    let mut registers = Registers::new(CodeMode::Bits64);
    registers.gpr[0] = DATA + DATA_LEN as u64;
    // mov [rax], rax
    let end = run(&[0x48, 0x89, 0x00], &mut [0; DATA_LEN], &mut registers);
    let address = DATA + DATA_LEN as u64;
    let expected = End::Exception {
        vector: 14,
        code: 6,
        address,
    };
    assert_eq!(end, expected);
    assert_eq!(registers.rip, START);
}

#[test]
fn compatibility_mode_reads_its_own_encodings() {
    let mut registers = Registers::new(CodeMode::Bits32);
    registers.gpr[0] = 0xf;
    // aaa; 64-bit code has no such instruction
    let end = run(&[0x37], &mut [0; DATA_LEN], &mut registers);
    assert_eq!(end, End::Completed);
    assert_eq!(registers.gpr[0], 0x105);
    let mut data = [0; DATA_LEN];
    registers.gpr[7] = DATA;
    registers.flags = 0;
    // stosw, through ES
    let end = run(&[0x66, 0xab], &mut data, &mut registers);
    assert_eq!(end, End::Completed);
    assert_eq!(data[..2], [5, 1]);
}
