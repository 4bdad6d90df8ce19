//! Floating-point instructions of SSE and x87: what the manuals promise, in a few cases each. The crate `vmmu-emu-native` compares many with a processor.

use crate::common::Flat;
use vmmu_emu::{Exception, Extended, Flags, Gpr, Stop, step};

/// MXCSR's flags, and those of FSW.
const INVALID: u16 = 1;
const DENORMAL: u16 = 2;
const DIVIDE: u16 = 4;
const OVERFLOW: u16 = 8;
const UNDERFLOW: u16 = 16;
const INEXACT: u16 = 32;

fn machine() -> Flat {
    let mut cpu = Flat::new(1024);
    cpu.state.set(Gpr::RBX, Flat::BASE + 256);
    cpu.state.fpu.control = 0x37f;
    cpu.state.fpu.in_use = 0;
    cpu
}

fn run(cpu: &mut Flat, instructions: &[&[u8]]) {
    for bytes in instructions {
        assert_eq!(step(cpu, bytes).map(drop), Ok(()), "{bytes:02x?}");
    }
}

/// Executes an SSE2 instruction on doubles in XMM0 and XMM1; returns XMM0 and the flags raised.
fn on_doubles(bytes: &[u8], a: f64, b: f64, mxcsr: u32) -> (u64, u16) {
    let mut cpu = machine();
    cpu.state.fpu.xmm[0] = a.to_bits().into();
    cpu.state.fpu.xmm[1] = b.to_bits().into();
    cpu.state.fpu.mxcsr = mxcsr;
    run(&mut cpu, &[bytes]);
    (
        cpu.state.fpu.xmm[0] as u64,
        cpu.state.fpu.mxcsr as u16 & 0x3f,
    )
}

const ADDSD: &[u8] = &[0xf2, 0x0f, 0x58, 0xc1];
const MULSD: &[u8] = &[0xf2, 0x0f, 0x59, 0xc1];
const DIVSD: &[u8] = &[0xf2, 0x0f, 0x5e, 0xc1];
const MASKED: u32 = 0x1f80;

#[test]
fn doubles_agree_with_the_languages_arithmetic() {
    let values = [
        1.0,
        0.1,
        -3.7,
        1e300,
        1e-300,
        5e-324,
        f64::MAX,
        0.0,
        -0.0,
        f64::INFINITY,
    ];
    for (a, b) in values.iter().flat_map(|a| values.map(|b| (*a, b))) {
        let cases = [(ADDSD, a + b), (MULSD, a * b), (DIVSD, a / b)];
        for (bytes, expected) in cases.into_iter().filter(|(_, e)| !e.is_nan()) {
            // With the flag of inexact results set already, the host's arithmetic may serve.
            for mxcsr in [MASKED, MASKED | u32::from(INEXACT)] {
                let (found, _) = on_doubles(bytes, a, b, mxcsr);
                assert_eq!(found, expected.to_bits(), "{bytes:02x?} {a} {b}");
            }
        }
    }
}

#[test]
fn flags_say_what_happened() {
    assert_eq!(on_doubles(ADDSD, 1.0, 2.0, MASKED).1, 0);
    assert_eq!(on_doubles(ADDSD, 1.0, 1e-30, MASKED).1, INEXACT);
    assert_eq!(on_doubles(DIVSD, 1.0, 0.0, MASKED).1, DIVIDE);
    assert_eq!(on_doubles(DIVSD, 0.0, 0.0, MASKED).1, INVALID);
    assert_eq!(
        on_doubles(MULSD, 1e300, 1e300, MASKED).1,
        OVERFLOW | INEXACT
    );
    assert_eq!(
        on_doubles(MULSD, 1e-300, 1e-300, MASKED).1,
        UNDERFLOW | INEXACT
    );
    assert_eq!(on_doubles(ADDSD, 5e-324, 1.0, MASKED).1, DENORMAL | INEXACT);
    // Exact though tiny: no underflow while that is masked.
    assert_eq!(on_doubles(MULSD, 2f64.powi(-1022), 0.5, MASKED).1, 0);
}

#[test]
fn a_result_that_was_tiny_before_it_was_rounded_underflows() {
    // Just below the least normal number, which it is rounded to; the host's arithmetic does not tell.
    let least = f64::MIN_POSITIVE;
    let below_one = 1.0 - 2f64.powi(-53);
    for mxcsr in [MASKED, MASKED | u32::from(INEXACT)] {
        let found = on_doubles(MULSD, below_one, least, mxcsr);
        assert_eq!(found, (least.to_bits(), UNDERFLOW | INEXACT));
    }
}

#[test]
fn rounding_follows_mxcsr() {
    let third = 1.0f64 / 3.0;
    let results = [0, 1, 2, 3].map(|mode| on_doubles(DIVSD, -1.0, 3.0, MASKED | mode << 13).0);
    let nearest = (-third).to_bits();
    assert_eq!(results, [nearest, nearest + 1, nearest, nearest]);
}

#[test]
fn denormal_numbers_may_be_zeros() {
    let flush = MASKED | 1 << 15;
    let (result, flags) = on_doubles(MULSD, -3e-308, 0.5, flush);
    assert_eq!((result, flags), ((-0.0f64).to_bits(), UNDERFLOW | INEXACT));
    let zeros = MASKED | 1 << 6;
    assert_eq!(on_doubles(ADDSD, 5e-324, 1.0, zeros), (1f64.to_bits(), 0));
}

#[test]
fn of_two_nans_the_first_counts_and_becomes_quiet() {
    let signaling = f64::from_bits(0x7ff0_0000_0000_0001);
    let quiet = f64::from_bits(0xfff8_0000_0000_0002);
    let (result, flags) = on_doubles(ADDSD, signaling, quiet, MASKED);
    assert_eq!((result, flags), (0x7ff8_0000_0000_0001, INVALID));
    assert_eq!(
        on_doubles(ADDSD, quiet, signaling, MASKED),
        (quiet.to_bits(), INVALID)
    );
}

#[test]
fn an_exception_that_is_not_masked_keeps_the_result_back() {
    for (cr4, exception) in [(0x620, Exception::SIMD), (0x220, Exception::UNDEFINED)] {
        let mut cpu = machine();
        cpu.state.cr4 = cr4;
        cpu.state.fpu.xmm[0] = 1f64.to_bits().into();
        cpu.state.fpu.mxcsr = MASKED & !(1 << 9);
        let before = cpu.state.fpu.xmm;
        assert_eq!(
            step(&mut cpu, DIVSD).map(drop),
            Err(Stop::Exception(exception))
        );
        assert_eq!(cpu.state.fpu.xmm, before);
        assert_eq!(cpu.state.fpu.mxcsr as u16 & 0x3f, DIVIDE);
    }
}

#[test]
fn comparisons_set_flags_and_masks() {
    let mut cpu = machine();
    cpu.state.fpu.xmm[0] = 1f64.to_bits().into();
    cpu.state.fpu.xmm[1] = f64::NAN.to_bits().into();
    // ucomisd xmm0, xmm1; comisd xmm0, xmm0; cmpsd xmm0, xmm1, 3 (unordered)
    run(&mut cpu, &[&[0x66, 0x0f, 0x2e, 0xc1]]);
    assert!(cpu.state.flags.contains(Flags::ZF | Flags::PF | Flags::CF));
    assert_eq!(cpu.state.fpu.mxcsr, MASKED);
    run(&mut cpu, &[&[0x66, 0x0f, 0x2f, 0xc0]]);
    assert!(!cpu.state.flags.intersects(Flags::PF | Flags::CF));
    run(&mut cpu, &[&[0xf2, 0x0f, 0xc2, 0xc1, 0x03]]);
    assert_eq!(cpu.state.fpu.xmm[0] as u64, u64::MAX);
}

#[test]
fn integers_that_do_not_fit_are_indefinite() {
    let mut cpu = machine();
    cpu.state.fpu.xmm[0] = 3e9f64.to_bits().into();
    // cvttsd2si eax, xmm0; cvttsd2si rcx, xmm0
    run(
        &mut cpu,
        &[&[0xf2, 0x0f, 0x2c, 0xc0], &[0xf2, 0x48, 0x0f, 0x2c, 0xc8]],
    );
    assert_eq!(cpu.state.get(Gpr::RAX), 0x8000_0000);
    assert_eq!(cpu.state.get(Gpr::RCX), 3_000_000_000);
    assert_eq!(cpu.state.fpu.mxcsr as u16 & 0x3f, INVALID);
}

const FLD1: &[u8] = &[0xd9, 0xe8];
const FLDPI: &[u8] = &[0xd9, 0xeb];
const FLDZ: &[u8] = &[0xd9, 0xee];
/// fadd st0, st0; fdivp st1, st0; fsqrt; fsin; fchs
const DOUBLE: &[u8] = &[0xd8, 0xc0];
const FDIVP: &[u8] = &[0xde, 0xf9];
const FSQRT: &[u8] = &[0xd9, 0xfa];
const FSIN: &[u8] = &[0xd9, 0xfe];

const fn extended(sign_exponent: u16, significand: u64) -> Extended {
    Extended {
        significand,
        sign_exponent,
    }
}

#[test]
fn precision_control_shortens_results() {
    let significands = [0x037f, 0x027f, 0x007f].map(|control| {
        let mut cpu = machine();
        cpu.state.fpu.control = control;
        run(&mut cpu, &[FLD1, DOUBLE, FSQRT]);
        cpu.state.fpu.st(0).significand
    });
    let exact = 0xb504_f333_f9de_6484;
    assert_eq!(
        significands,
        [exact, 0xb504_f333_f9de_6800, 0xb504_f300_0000_0000]
    );
}

#[test]
fn rounding_up_is_told_in_c1() {
    let mut cpu = machine();
    run(&mut cpu, &[FLDPI, FLD1, FDIVP]);
    assert_eq!(cpu.state.fpu.status & 0x220, 0);
    cpu.state.fpu.control = 0xb7f;
    // fadd st0, st0, of pi, is exact; fdiv qword [rbx], by 3, is not
    cpu.memory[256..264].copy_from_slice(&3f64.to_le_bytes());
    run(&mut cpu, &[&[0xdc, 0x33]]);
    assert_eq!(cpu.state.fpu.status & 0x220, 0x220);
}

#[test]
fn the_stack_overflows_and_underflows() {
    let mut cpu = machine();
    run(&mut cpu, &[FLDZ; 8]);
    assert_eq!(cpu.state.fpu.in_use, 0xff);
    run(&mut cpu, &[FLD1]);
    let indefinite = extended(0xffff, 3 << 62);
    assert_eq!(cpu.state.fpu.st(0), indefinite);
    // Invalid, stack, C1: overflow.
    assert_eq!(cpu.state.fpu.status & 0x241, 0x241);
    let mut cpu = machine();
    run(&mut cpu, &[FSQRT]);
    assert_eq!(cpu.state.fpu.status & 0x241, 0x041);
    assert_eq!(cpu.state.fpu.st(0), indefinite);
}

#[test]
fn an_unmasked_exception_waits_and_names_its_instruction() {
    let mut cpu = machine();
    cpu.state.fpu.control = 0x37b;
    run(&mut cpu, &[FLD1, FLDZ]);
    let at = cpu.state.rip();
    run(&mut cpu, &[FDIVP]);
    let fpu = &cpu.state.fpu;
    // Nothing popped, nothing written.
    assert_eq!((fpu.in_use, fpu.top()), (0xc0, 6));
    assert_eq!(fpu.status & 0x80bf, 0x8084);
    assert_eq!((fpu.instruction.1, fpu.opcode), (at, 0x6f9));
    let pending = Err(Stop::Exception(Exception::X87));
    assert_eq!(step(&mut cpu, FLD1).map(drop), pending);
    // fnclex
    run(&mut cpu, &[&[0xdb, 0xe2], FLD1]);
}

#[test]
fn decimals_come_back() {
    let mut cpu = machine();
    cpu.memory[256..264].copy_from_slice(&(-123_456_789_012_345_678i64).to_le_bytes());
    // fild qword [rbx]; fbstp [rbx + 16]; fbld [rbx + 16]; fistp qword [rbx + 32]
    run(&mut cpu, &[&[0xdf, 0x2b], &[0xdf, 0x73, 0x10]]);
    assert_eq!(
        cpu.memory[272..282],
        [0x78, 0x56, 0x34, 0x12, 0x90, 0x78, 0x56, 0x34, 0x12, 0x80]
    );
    run(&mut cpu, &[&[0xdf, 0x63, 0x10], &[0xdf, 0x7b, 0x20]]);
    assert_eq!(cpu.memory[256..264], cpu.memory[288..296]);
    assert_eq!(cpu.state.fpu.in_use, 0);
}

#[test]
fn a_store_that_faults_does_not_pop() {
    let mut cpu = machine();
    run(&mut cpu, &[FLDPI]);
    cpu.state.set(Gpr::RBX, Flat::BASE + 1024 - 4);
    let before = cpu.state.fpu.clone();
    // fstp tbyte [rbx]
    let stopped = step(&mut cpu, &[0xdb, 0x3b]).map(drop);
    assert_eq!(stopped, Err(Stop::Exception(Exception::with_code(14, 6))));
    assert_eq!(cpu.state.fpu, before);
    assert_eq!(cpu.memory[1020..], [0; 4]);
}

#[test]
fn functions_have_known_values() {
    let mut cpu = machine();
    cpu.memory[256..264].copy_from_slice(&6f64.to_le_bytes());
    // The sine of pi / 6: fldpi; fdiv qword [rbx]; fsin
    run(&mut cpu, &[FLDPI, &[0xdc, 0x33], FSIN]);
    let sine = cpu.state.fpu.st(0);
    assert!(
        sine.significand.abs_diff(u64::MAX) < 4 && sine.sign_exponent == 0x3ffd
            || sine.significand.abs_diff(1 << 63) < 4,
        "{sine:x?}"
    );
    // 4 * arctan(1): fld1; fld1; fpatan; fadd twice
    let mut cpu = machine();
    run(&mut cpu, &[FLD1, FLD1, &[0xd9, 0xf3], DOUBLE, DOUBLE]);
    assert_eq!(cpu.state.fpu.st(0), extended(0x4000, 0xc90f_daa2_2168_c235));
    // log2(3) * 1 and back: 2^(log2(3) - 1) = 1.5: fld1; fild word [rbx]; fyl2x; fld1; fsubp; f2xm1
    cpu.memory[256..258].copy_from_slice(&3u16.to_le_bytes());
    let fild: &[u8] = &[0xdf, 0x03];
    run(
        &mut cpu,
        &[
            FLD1,
            fild,
            &[0xd9, 0xf1],
            FLD1,
            &[0xde, 0xe9],
            &[0xd9, 0xf0],
        ],
    );
    let half = cpu.state.fpu.st(0);
    let distance = (u128::from(half.sign_exponent) << 63 | u128::from(half.significand << 1 >> 1))
        .abs_diff(0x3ffe << 63);
    assert!(distance < 8, "{half:x?}");
}

#[test]
fn remainders_of_far_numbers_take_several_steps() {
    let mut cpu = machine();
    cpu.memory[256..264].copy_from_slice(&3f64.to_le_bytes());
    cpu.memory[264..272].copy_from_slice(&2f64.powi(200).to_le_bytes());
    // fld qword [rbx]; fld qword [rbx + 8]; fprem, until C2 is clear
    run(&mut cpu, &[&[0xdd, 0x03], &[0xdd, 0x43, 0x08]]);
    let mut steps = 0;
    loop {
        run(&mut cpu, &[&[0xd9, 0xf8]]);
        steps += 1;
        if cpu.state.fpu.status & 0x400 == 0 {
            break;
        }
    }
    // 2^200 mod 3 = 1.
    assert_eq!(cpu.state.fpu.st(0), extended(0x3fff, 1 << 63));
    assert!((3..=7).contains(&steps), "{steps}");
}
