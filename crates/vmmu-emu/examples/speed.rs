//! Measures how fast decoded instructions run on flat memory, without a TLB.

#[path = "../tests/common/mod.rs"]
mod common;

use common::Flat;
use std::time::Instant;
use vmmu_emu::{Gpr, Mode, State, decode};

fn main() {
    let mut cpu = Flat::new(0x2000);
    cpu.state.set(Gpr::RBX, Flat::BASE + 0x1000);
    // add rax, rcx; mov [rbx + 8], rax; sub rdx, 5; mov rsi, [rbx + 8]; add rcx, 3
    let code = [
        0x48, 0x01, 0xc8, 0x48, 0x89, 0x43, 0x08, 0x48, 0x83, 0xea, 0x05, 0x48, 0x8b, 0x73, 0x08,
        0x48, 0x83, 0xc1, 0x03,
    ];
    let mode = Mode::of(&State::reset());
    assert_eq!(mode, Mode::Bits16);
    let mut ops = Vec::new();
    let mut rest = &code[..];
    while !rest.is_empty() {
        let op = decode::<Flat>(rest, Mode::Bits64).expect("a known instruction");
        rest = &rest[op.length()..];
        ops.push(op);
    }
    let begin = Instant::now();
    let rounds = 20_000_000;
    for _ in 0..rounds {
        for op in &ops {
            op.execute(&mut cpu).expect("no fault");
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let all = f64::from(rounds) * ops.len() as f64;
    println!("{:.0} million instructions a second", all / seconds / 1e6);
}
