//! Kernels of a few bytes: multiboot-1 ELF32 files made on the spot.

/// Where the kernel is loaded.
pub(crate) const BASE: u32 = 0x10_0000;
/// Where code begins in it, behind the multiboot header.
pub(crate) const CODE: u32 = BASE + 0x10;

/// Wraps 32-bit code, which begins at [`CODE`] in protected mode.
pub(crate) fn multiboot(code: &[u8]) -> Vec<u8> {
    const HEADERS: u32 = 52 + 32;
    let mut segment = Vec::new();
    for word in [0x1bad_b002_u32, 0, 0_u32.wrapping_sub(0x1bad_b002), 0] {
        segment.extend(word.to_le_bytes());
    }
    segment.extend(code);
    let size = segment.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    for value in [2, 3] {
        half(&mut file, value);
    }
    // Version, entry, program headers, section headers, flags.
    for value in [1, CODE, 52, 0, 0] {
        word(&mut file, value);
    }
    for value in [52, 32, 1, 40, 0, 0] {
        half(&mut file, value);
    }
    // Load: offset, virtual and physical address, sizes, flags, alignment.
    for value in [1, HEADERS, BASE, BASE, size, size, 7, 4] {
        word(&mut file, value);
    }
    file.extend(segment);
    file
}

/// Returns 32-bit code that enters 64-bit mode, with 2 MiB mapped one to one by tables from 1000h on, and `code` behind it.
pub(crate) fn long_mode(code: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // mov dword [table], entry
    for (at, entry) in [(0x1000_u32, 0x2003_u32), (0x2000, 0x3003), (0x3000, 0x83)] {
        bytes.extend([0xc7, 0x05]);
        bytes.extend(at.to_le_bytes());
        bytes.extend(entry.to_le_bytes());
    }
    bytes.extend([0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8]); // mov eax, 1000h; mov cr3, eax
    bytes.extend([0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0]); // mov eax, cr4; or eax, 20h; mov cr4, eax
    bytes.extend([0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32]); // mov ecx, c0000080h; rdmsr
    bytes.extend([0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30]); // or eax, 100h; wrmsr
    bytes.extend([
        0x0f, 0x20, 0xc0, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0,
    ]); // mov eax, cr0; or eax, 80000001h; mov cr0, eax
    // lgdt [pointer]; jmp 8:start; the pointer and the table lie between.
    let table = CODE + bytes.len() as u32 + 7 + 7 + 6;
    bytes.extend([0x0f, 0x01, 0x15]);
    bytes.extend((table - 6).to_le_bytes());
    bytes.push(0xea);
    bytes.extend((table + 16).to_le_bytes());
    bytes.extend(8_u16.to_le_bytes());
    bytes.extend(15_u16.to_le_bytes());
    bytes.extend(table.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(0x00af_9b00_0000_ffff_u64.to_le_bytes());
    bytes.extend(code);
    bytes
}
