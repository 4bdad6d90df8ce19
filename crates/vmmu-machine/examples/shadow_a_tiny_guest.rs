//! Third step: a guest of a few instructions on the software machine, under shadow paging.
//!
//! `cargo run --release -p vmmu-machine --example shadow_a_tiny_guest`
//!
//! It turns paging on with a table of its own, stores through one address and loads through another that maps the same frame, and ends with the sum.

use vmmu_machine::machine::{End, Machine};

/// Where the program lies; the multiboot header is in front of it.
const AT: u32 = 0x10_0000;

/// 32-bit code that builds tables at 0x1000 to 0x4fff, goes to 64-bit mode, and computes.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    // Tables: entry 0 of each leads to the next; level 1 maps 0x8000 and 0x9000 to the frame at 0x8000, and this code.
    0xc7, 0x05, 0x00, 0x10, 0, 0, 0x03, 0x20, 0, 0, // mov dword [1000h], 2003h
    0xc7, 0x05, 0x00, 0x20, 0, 0, 0x03, 0x30, 0, 0, // mov dword [2000h], 3003h
    0xc7, 0x05, 0x00, 0x30, 0, 0, 0x03, 0x40, 0, 0, // mov dword [3000h], 4003h
    0xc7, 0x05, 0x40, 0x40, 0, 0, 0x03, 0x80, 0, 0, // mov dword [4040h], 8003h
    0xc7, 0x05, 0x48, 0x40, 0, 0, 0x03, 0x80, 0, 0, // mov dword [4048h], 8003h
    0xc7, 0x05, 0x00, 0x48, 0, 0, 0x03, 0, 0x10, 0, // mov dword [4800h], 100003h
    0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0,          // mov eax, PAE; mov cr4, eax
    0xb8, 0x00, 0x10, 0, 0, 0x0f, 0x22, 0xd8,       // mov eax, 1000h; mov cr3, eax
    0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32,             // mov ecx, EFER; rdmsr
    0x0d, 0x00, 0x01, 0, 0, 0x0f, 0x30,             // or eax, LME; wrmsr
    0x0f, 0x20, 0xc0,                               // mov eax, cr0
    0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0,          // or eax, PG; mov cr0, eax
    0xb8, 40, 0, 0, 0,                              // mov eax, 40
    0xa3, 0x00, 0x80, 0, 0,                         // mov [8000h], eax
    0x83, 0x05, 0x00, 0x90, 0, 0, 2,                // add dword [9000h], 2
    0xa1, 0x00, 0x80, 0, 0,                         // mov eax, [8000h]
    0xe7, 0xf4,                                     // out f4h, eax: ends the run
];

fn main() -> Result<(), Box<dyn core::error::Error>> {
    let record = Machine::new(multiboot(PROGRAM)).memory(16 << 20).run()?;
    println!("the guest ended by {:?}", record.end);
    println!(
        "{} instructions, {} exits, {} shadow tables",
        record.instructions,
        record.exits.total(),
        record.stats.pages
    );
    let happened = record.stats.iter().filter(|(_, count)| *count > 0);
    for (event, count) in happened {
        println!("  {:16} {count}", event.name());
    }
    match record.end {
        End::Exit(42) => Ok(()),
        other => Err(format!("not what it should be: {other:?}").into()),
    }
}

/// Wraps code into an ELF32 with a multiboot-1 header (Multiboot specification 0.6.96, section 3.1).
fn multiboot(code: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 52 + 32;
    let magic = 0x1bad_b002_u32;
    let header = [magic, 0, magic.wrapping_neg()];
    let size = (12 + code.len()) as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let halves = |file: &mut Vec<u8>, values: &[u16]| {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    let words = |file: &mut Vec<u8>, values: &[u32]| {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    // An executable for the 386; its entry is behind the multiboot header.
    halves(&mut file, &[2, 3]);
    words(&mut file, &[1, AT + 12, 52, 0, 0]);
    halves(&mut file, &[52, 32, 1, 0, 0, 0]);
    // One segment: loaded, readable, writable, executable.
    words(&mut file, &[1, HEADERS as u32, AT, AT, size, size, 7, 4]);
    words(&mut file, &header);
    file.extend(code);
    file
}
