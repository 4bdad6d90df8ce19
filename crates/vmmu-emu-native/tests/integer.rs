//! Integer instructions do what the processor that runs this does: random encodings, operands and flags, in 64-bit, 32-bit and 16-bit code.
//!
//! `VMMU_EMU_CASES` says how many cases each mode has, `VMMU_EMU_SEED` begins elsewhere.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use vmmu_emu_native::{CodeMode, Coverage, Generator, Sandbox, compare_integer, is_integer};

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Compares, and expects at least `codes` different instructions to complete.
fn compare(mode: CodeMode, codes: usize) {
    let mut sandbox = Sandbox::open().expect("a process may map pages and handle signals");
    if !sandbox.runs(mode) {
        println!("{mode:?}: not compared, the kernel refuses its segments");
        return;
    }
    let seed = setting("VMMU_EMU_SEED", 7);
    let mut generator = Generator::new(seed, mode, is_integer);
    let mut coverage = Coverage::default();
    for _ in 0..setting("VMMU_EMU_CASES", 150_000) {
        let case = generator.next_case();
        if let Err(difference) = compare_integer(&mut sandbox, &case, &mut coverage) {
            panic!("{difference}");
        }
    }
    let (completed, excepted) = coverage.cases();
    let covered = coverage.completed_codes();
    println!("{mode:?}: {covered} instructions, {completed} cases completed, {excepted} raised");
    assert!(
        covered >= codes,
        "only {covered} instructions were compared"
    );
}

#[test]
fn integer_instructions_of_64_bit_code_do_what_the_processor_does() {
    compare(CodeMode::Bits64, 580);
}

#[test]
fn integer_instructions_of_16_bit_code_do_what_the_processor_does() {
    compare(CodeMode::Bits16, 470);
}

#[test]
fn integer_instructions_of_32_bit_code_do_what_the_processor_does() {
    compare(CodeMode::Bits32, 470);
}
