//! Vector instructions: moves, rules of alignment and availability, lanes, and the state in memory.

use crate::common::Flat;
use vmmu_emu::{Exception, Gpr, Stop, step};

const A: u128 = 0x0f1e_2d3c_4b5a_6978_8796_a5b4_c3d2_e1f0;
const B: u128 = 0x8001_7fff_0000_ffff_1234_5678_9abc_def0;

fn machine() -> Flat {
    let mut cpu = Flat::new(1024);
    cpu.state.fpu.xmm[0] = A;
    cpu.state.fpu.xmm[1] = B;
    cpu.state.set(Gpr::RBX, Flat::BASE + 256);
    cpu
}

fn run(cpu: &mut Flat, bytes: &[u8]) -> Result<(), Stop> {
    step(cpu, bytes).map(drop)
}

/// Executes an instruction on XMM0 and XMM1; returns XMM0.
fn on_xmm(bytes: &[u8]) -> u128 {
    let mut cpu = machine();
    assert_eq!(run(&mut cpu, bytes), Ok(()), "{bytes:02x?}");
    cpu.state.fpu.xmm[0]
}

#[test]
fn sixteen_bytes_go_to_memory_and_back() {
    let mut cpu = machine();
    // movdqu [rbx + 1], xmm0; movups xmm2, [rbx + 1]
    run(&mut cpu, &[0xf3, 0x0f, 0x7f, 0x43, 0x01]).unwrap();
    run(&mut cpu, &[0x0f, 0x10, 0x53, 0x01]).unwrap();
    assert_eq!(cpu.state.fpu.xmm[2], A);
    assert_eq!(cpu.memory[257..273], A.to_le_bytes());
}

#[test]
fn aligned_operands_must_be() {
    let mut cpu = machine();
    let fault = Err(Stop::Exception(Exception::GENERAL_PROTECTION));
    // movdqa [rbx + 8], xmm0; pxor xmm0, [rbx + 8]
    assert_eq!(run(&mut cpu, &[0x66, 0x0f, 0x7f, 0x43, 0x08]), fault);
    assert_eq!(run(&mut cpu, &[0x66, 0x0f, 0xef, 0x43, 0x08]), fault);
    assert_eq!(run(&mut cpu, &[0x66, 0x0f, 0x7f, 0x43, 0x10]), Ok(()));
}

#[test]
fn a_store_that_faults_at_its_end_writes_nothing() {
    let mut cpu = machine();
    cpu.state.set(Gpr::RBX, Flat::BASE + 1024 - 8);
    // movdqu [rbx], xmm0
    let stopped = run(&mut cpu, &[0xf3, 0x0f, 0x7f, 0x03]);
    assert_eq!(stopped, Err(Stop::Exception(Exception::with_code(14, 6))));
    assert_eq!(cpu.memory[1016..], [0; 8]);
}

#[test]
fn control_registers_take_the_unit_away() {
    let sse = [0x66, 0x0f, 0xef, 0xc1];
    let mmx = [0x0f, 0xef, 0xc1];
    let fninit = [0xdb, 0xe3];
    let wait = [0x9b];
    let no_fpu = Err(Stop::Exception(Exception::NO_FPU));
    let undefined = Err(Stop::Exception(Exception::UNDEFINED));
    let cases = [
        (1 << 3, 0x200, [no_fpu, no_fpu, no_fpu, Ok(())]),
        (5 << 1, 0x200, [no_fpu, no_fpu, no_fpu, no_fpu]),
        (1 << 2, 0x200, [undefined, undefined, no_fpu, Ok(())]),
        (0, 0, [undefined, Ok(()), Ok(()), Ok(())]),
    ];
    for (cr0, cr4, results) in cases {
        let instructions: [&[u8]; 4] = [&sse, &mmx, &fninit, &wait];
        for (bytes, result) in instructions.iter().zip(results) {
            let mut cpu = machine();
            cpu.state.fpu.control = 0x37f;
            cpu.state.cr0 = 0x8000_0031 | cr0;
            cpu.state.cr4 = 0x20 | cr4;
            // FWAIT needs both TS and MP; 5 << 1 is MP and TS.
            assert_eq!(run(&mut cpu, bytes), result, "{cr0:x} {cr4:x} {bytes:02x?}");
        }
    }
}

#[test]
fn lanes_do_not_touch_each_other() {
    // paddb, paddsw, pmaddwd, pcmpgtd, pavgb, psadbw
    let adds = A.to_le_bytes().into_iter().zip(B.to_le_bytes());
    let sums: Vec<u8> = adds.map(|(a, b)| a.wrapping_add(b)).collect();
    assert_eq!(on_xmm(&[0x66, 0x0f, 0xfc, 0xc1]).to_le_bytes()[..], sums);
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0xed, 0xc1]),
        0x8f1f_7fff_4b5a_6977_99ca_fc2c_8000_c0e0
    );
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0x66, 0xc1]),
        0xffff_ffff_ffff_ffff_0000_0000_ffff_ffff
    );
    let apart = |range: core::ops::Range<usize>| -> u128 {
        let pairs = A.to_le_bytes().into_iter().zip(B.to_le_bytes());
        let apart = pairs.map(|(a, b)| u128::from(a.abs_diff(b)));
        apart.skip(range.start).take(range.len()).sum()
    };
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0xf6, 0xc1]),
        apart(8..16) << 64 | apart(0..8)
    );
}

#[test]
fn shuffles_pick_and_packs_saturate() {
    // pshufd xmm0, xmm1, 0x1b; packsswb xmm0, xmm1; punpckhwd xmm0, xmm1; psraw xmm0, 20; pslldq xmm0, 3
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0x70, 0xc1, 0x1b]),
        0x9abc_def0_1234_5678_0000_ffff_8001_7fff
    );
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0x63, 0xc1]),
        0x807f_00ff_7f7f_8080_7f7f_7f7f_8080_8080
    );
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0x69, 0xc1]),
        0x8001_0f1e_7fff_2d3c_0000_4b5a_ffff_6978
    );
    assert_eq!(
        on_xmm(&[0x66, 0x0f, 0x71, 0xe0, 20]),
        0x0000_0000_0000_0000_ffff_ffff_ffff_ffff
    );
    assert_eq!(on_xmm(&[0x66, 0x0f, 0x73, 0xf8, 3]), A << 24);
}

#[test]
fn a_string_function_finds_its_zero() {
    let mut cpu = machine();
    cpu.memory[256..261].copy_from_slice(b"vmmu\0");
    cpu.memory[261..272].fill(b'x');
    // pxor xmm0, xmm0; pcmpeqb xmm0, [rbx]; pmovmskb eax, xmm0
    run(&mut cpu, &[0x66, 0x0f, 0xef, 0xc0]).unwrap();
    run(&mut cpu, &[0x66, 0x0f, 0x74, 0x03]).unwrap();
    run(&mut cpu, &[0x66, 0x0f, 0xd7, 0xc0]).unwrap();
    assert_eq!(cpu.state.get(Gpr::RAX), 1 << 4);
}

#[test]
fn masked_stores_leave_the_other_bytes() {
    let mut cpu = machine();
    cpu.state.set(Gpr::RDI, Flat::BASE + 512);
    cpu.state.fpu.xmm[1] = 0x80 | 0xff << 24;
    // maskmovdqu xmm0, xmm1
    run(&mut cpu, &[0x66, 0x0f, 0xf7, 0xc1]).unwrap();
    assert_eq!(cpu.memory[512..517], [0xf0, 0, 0, 0xc3, 0]);
}

#[test]
fn mmx_registers_are_the_significands() {
    let mut cpu = machine();
    cpu.state.set(Gpr::RAX, 0x1122_3344_5566_7788);
    cpu.state.fpu.status = 0x1800;
    // movq mm3, rax; paddw mm3, mm3; emms
    run(&mut cpu, &[0x48, 0x0f, 0x6e, 0xd8]).unwrap();
    run(&mut cpu, &[0x0f, 0xfd, 0xdb]).unwrap();
    let fpu = &cpu.state.fpu;
    assert_eq!(fpu.registers[3].significand, 0x2244_6688_aacc_ef10);
    assert_eq!(fpu.registers[3].sign_exponent, 0xffff);
    assert_eq!((fpu.in_use, fpu.top()), (0xff, 0));
    run(&mut cpu, &[0x0f, 0x77]).unwrap();
    assert_eq!(cpu.state.fpu.in_use, 0);
}

#[test]
fn the_image_brings_everything_back() {
    for rex in [false, true] {
        let mut cpu = machine();
        let fpu = &mut cpu.state.fpu;
        fpu.control = 0x37f;
        fpu.status = 0x3000;
        fpu.in_use = 0b1010_0110;
        fpu.mxcsr = 0x9fc0;
        fpu.opcode = 0x123;
        fpu.data.1 = 0x1234_5678;
        fpu.instruction.1 = 0x9abc_def0;
        for (i, register) in fpu.registers.iter_mut().enumerate() {
            register.significand = A as u64 >> i;
            register.sign_exponent = i as u16;
        }
        fpu.xmm[15] = B;
        let before = fpu.clone();
        let prefix: &[u8] = if rex { &[0x48] } else { &[] };
        // fxsave [rbx]; fninit; fxrstor [rbx]
        run(&mut cpu, &[prefix, &[0x0f, 0xae, 0x03]].concat()).unwrap();
        assert_eq!(
            cpu.memory[256 + 32..256 + 40],
            before.registers[6].significand.to_le_bytes()
        );
        cpu.state.fpu = vmmu_emu::Fpu::reset();
        run(&mut cpu, &[prefix, &[0x0f, 0xae, 0x0b]].concat()).unwrap();
        assert_eq!(cpu.state.fpu, before);
    }
}

#[test]
fn a_bad_mxcsr_is_refused_whole() {
    let mut cpu = machine();
    cpu.memory[256 + 26] = 1;
    let before = cpu.state.fpu.clone();
    let fault = Err(Stop::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x0b]), fault);
    assert_eq!(cpu.state.fpu, before);
    // ldmxcsr [rbx + 24]
    assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x53, 0x18]), fault);
    cpu.memory[256 + 26] = 0;
    assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x53, 0x18]), Ok(()));
    assert_eq!(cpu.state.fpu.mxcsr, 0);
}

#[test]
fn fnsave_stores_the_stack_and_initializes() {
    let mut cpu = machine();
    cpu.state.fpu.control = 0x27f;
    cpu.state.fpu.in_use = 0x80;
    cpu.state.fpu.status = 0x3800;
    cpu.state.fpu.registers[7].significand = 1 << 63;
    cpu.state.fpu.registers[7].sign_exponent = 0x3fff;
    let before = cpu.state.fpu.clone();
    // fnsave [rbx]; frstor [rbx]
    run(&mut cpu, &[0xdd, 0x33]).unwrap();
    assert_eq!(cpu.memory[256..260], [0x7f, 0x02, 0xff, 0xff]);
    assert_eq!(cpu.memory[264..268], [0xff, 0x3f, 0xff, 0xff]);
    assert_eq!(cpu.memory[256 + 28 + 7], 0x80);
    assert_eq!(cpu.state.fpu.control, 0x37f);
    run(&mut cpu, &[0xdd, 0x23]).unwrap();
    assert_eq!(cpu.state.fpu, before);
}

#[test]
fn a_pending_exception_waits_for_the_next_instruction() {
    let mut cpu = machine();
    cpu.state.fpu.control = 0x37f;
    cpu.state.fpu.status = 0x0004;
    cpu.memory[256..258].copy_from_slice(&[0x7b, 0x03]);
    // fldcw [rbx]; fwait; fnstsw ax; fnclex; fwait
    run(&mut cpu, &[0xd9, 0x2b]).unwrap();
    let pending = Err(Stop::Exception(Exception::X87));
    assert_eq!(run(&mut cpu, &[0x9b]), pending);
    run(&mut cpu, &[0xdf, 0xe0]).unwrap();
    assert_eq!(cpu.state.get(Gpr::RAX) & 0xffff, 0x8084);
    run(&mut cpu, &[0xdb, 0xe2]).unwrap();
    assert_eq!(run(&mut cpu, &[0x9b]), Ok(()));
}
