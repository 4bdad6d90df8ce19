//! Measures how fast decoded instructions run on flat memory, without a TLB: `cargo run --release -p vmmu-emu --example speed`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::Flat;
use std::time::Instant;
use vmmu_emu::{Gpr, Mode, Op, decode};

/// Mixes of instructions; RBX points to data.
const MIXES: [(&str, &[u8]); 4] = [
    // add rax, rcx; mov [rbx + 8], rax; sub rdx, 5; mov rsi, [rbx + 8]; add rcx, 3
    (
        "integers",
        &[
            0x48, 0x01, 0xc8, 0x48, 0x89, 0x43, 0x08, 0x48, 0x83, 0xea, 0x05, 0x48, 0x8b, 0x73,
            0x08, 0x48, 0x83, 0xc1, 0x03,
        ],
    ),
    // movdqu xmm1, [rbx + 3]; pxor xmm0, xmm0; pcmpeqb xmm0, xmm1; pmovmskb eax, xmm0; movups [rbx + 32], xmm1
    (
        "string functions",
        &[
            0xf3, 0x0f, 0x6f, 0x4b, 0x03, 0x66, 0x0f, 0xef, 0xc0, 0x66, 0x0f, 0x74, 0xc1, 0x66,
            0x0f, 0xd7, 0xc0, 0x0f, 0x11, 0x4b, 0x20,
        ],
    ),
    // movsd xmm0, [rbx + 64]; mulsd xmm0, [rbx + 72]; addsd xmm1, xmm0; subsd xmm1, xmm2; divsd xmm0, [rbx + 72]
    (
        "doubles",
        &[
            0xf2, 0x0f, 0x10, 0x43, 0x40, 0xf2, 0x0f, 0x59, 0x43, 0x48, 0xf2, 0x0f, 0x58, 0xc8,
            0xf2, 0x0f, 0x5c, 0xca, 0xf2, 0x0f, 0x5e, 0x43, 0x48,
        ],
    ),
    // fld qword [rbx + 64]; fmul qword [rbx + 72]; fadd st0, st0; fdiv qword [rbx + 64]; fstp qword [rbx + 80]
    (
        "x87",
        &[
            0xdd, 0x43, 0x40, 0xdc, 0x4b, 0x48, 0xd8, 0xc0, 0xdc, 0x73, 0x40, 0xdd, 0x5b, 0x50,
        ],
    ),
];

fn decoded(code: &[u8]) -> Vec<Op<Flat>> {
    let mut ops = Vec::new();
    let mut rest = code;
    while !rest.is_empty() {
        let op = decode::<Flat>(rest, Mode::Bits64).expect("a known instruction");
        rest = &rest[op.length()..];
        ops.push(op);
    }
    ops
}

fn main() {
    for (name, code) in MIXES {
        let mut cpu = Flat::new(0x2000);
        cpu.state.set(Gpr::RBX, Flat::BASE + 0x1000);
        cpu.memory[0x1040..0x1048].copy_from_slice(&1.1f64.to_le_bytes());
        cpu.memory[0x1048..0x1050].copy_from_slice(&0.7f64.to_le_bytes());
        cpu.state.fpu.control = 0x37f;
        cpu.state.fpu.in_use = 0;
        let ops = decoded(code);
        let (begin, used) = (Instant::now(), processor_seconds());
        let rounds = 4_000_000;
        for _ in 0..rounds {
            for op in &ops {
                op.execute(&mut cpu).expect("no fault");
            }
        }
        let seconds = match (used, processor_seconds()) {
            (Some(before), Some(after)) => after - before,
            _ => begin.elapsed().as_secs_f64(),
        };
        let all = f64::from(rounds) * ops.len() as f64;
        println!(
            "{name}: {:.0} million instructions a second",
            all / seconds / 1e6
        );
    }
}

/// Returns the processor time that this process has used, where the system tells: others may be busy meanwhile.
fn processor_seconds() -> Option<f64> {
    let line = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    let nanoseconds: f64 = line.split(' ').next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}
