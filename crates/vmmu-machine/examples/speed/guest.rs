//! The guest that is measured: one 64-bit loop with paging on, wrapped as a kernel file and as a boot sector.
//!
//! Key type: [`Loop`]. Both wrappings execute the same bytes from the first table on, and print the same checksum on port E9h.

/// Where a multiboot loader puts the kernel.
const KERNEL: u32 = 0x10_0000;
/// Where firmware puts a boot sector.
const SECTOR: u32 = 0x7c00;
/// Instructions of eight rounds: 24 each, and one more in every second block of four.
const EIGHT_ROUNDS: u64 = 8 * 24 + 4;
/// Loads and stores of a round, those of CALL, RET, PUSH and POP included.
const ACCESSES: u64 = 8;

/// A number of rounds, a multiple of eight.
#[derive(Clone, Copy)]
pub(crate) struct Loop(u32);

impl Loop {
    /// The shortest, to see what all the rest costs.
    pub(crate) const SHORTEST: Self = Self(8);

    /// Returns the longest one of no more than so many million instructions.
    pub(crate) fn of_millions(millions: u32) -> Self {
        let eights = u64::from(millions) * 1_000_000 / EIGHT_ROUNDS;
        Self((eights.clamp(1, u64::from(u32::MAX / 8)) * 8) as u32)
    }

    /// Returns how many instructions it has.
    pub(crate) fn instructions(self) -> u64 {
        u64::from(self.0) / 8 * EIGHT_ROUNDS
    }

    /// Returns how often it accesses memory, fetches not counted.
    pub(crate) fn accesses(self) -> u64 {
        u64::from(self.0) * ACCESSES
    }

    /// Returns it as an ELF32 with a multiboot-1 header (Multiboot specification 0.6.96, section 3.1).
    pub(crate) fn kernel(self) -> Vec<u8> {
        const HEADERS: u32 = 52 + 32;
        let entry = KERNEL + 12;
        let code = self.enter_long_mode(entry);
        let size = 12 + code.len() as u32;
        let magic = 0x1bad_b002_u32;
        let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // An executable for the 386.
        halves(&mut file, &[2, 3]);
        words(&mut file, &[1, entry, 52, 0, 0]);
        halves(&mut file, &[52, 32, 1, 0, 0, 0]);
        words(&mut file, &[1, HEADERS, KERNEL, KERNEL, size, size, 7, 4]);
        words(&mut file, &[magic, 0, magic.wrapping_neg()]);
        file.extend(code);
        file
    }

    /// Returns it as a floppy disk of 1.44 MB with a boot sector.
    #[rustfmt::skip]
    pub(crate) fn floppy(self) -> Vec<u8> {
        /// The bytes up to the jump, and those of its table of segments.
        const JUMP: u32 = 23;
        const TABLE: u32 = 4 * 8;
        let table = SECTOR + JUMP + 6;
        let start = table + TABLE;
        let [pointer, start_half] = [table - 6, start].map(|at| (at as u16).to_le_bytes());
        let mut disk = vec![
            0xfa, 0x31, 0xc0, 0x8e, 0xd8,                       // cli; xor ax, ax; mov ds, ax
            0x0f, 0x01, 0x16, pointer[0], pointer[1],           // lgdt [pointer]
            0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0,        // mov eax, cr0; or al, PE; mov cr0, eax
            0xea, start_half[0], start_half[1], 0x10, 0,        // jmp 10h:start
        ];
        halves(&mut disk, &[TABLE as u16 - 1]);
        words(&mut disk, &[table]);
        // None, none, 32-bit code, data.
        words(&mut disk, &[0, 0, 0, 0, 0xffff, 0x00cf_9b00, 0xffff, 0x00cf_9300]);
        disk.extend([0x66, 0xb8, 0x18, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // mov ax, 18h; to ds, es, ss
        let rest = self.enter_long_mode(SECTOR + disk.len() as u32);
        disk.extend(rest);
        assert!(disk.len() <= 510, "the program fits into one sector");
        disk.resize(510, 0);
        disk.extend([0x55, 0xaa]);
        disk.resize(1440 << 10, 0);
        disk
    }

    /// Returns 32-bit code for the address `at` that maps 2 MiB one to one, goes to 64-bit mode, and runs the loop.
    #[rustfmt::skip]
    fn enter_long_mode(self, at: u32) -> Vec<u8> {
        let mut code = Vec::new();
        for (place, entry) in [(0x1000_u32, 0x2003_u32), (0x2000, 0x3003), (0x3000, 0x83)] {
            for half in [place, place + 4] {
                code.extend([0xc7, 0x05]); // mov dword [half], ...
                words(&mut code, &[half, if half == place { entry } else { 0 }]);
            }
        }
        code.extend([
            0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0,              // mov eax, PAE; mov cr4, eax
            0xb8, 0, 0x10, 0, 0, 0x0f, 0x22, 0xd8,              // mov eax, 1000h; mov cr3, eax
            0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32,                 // mov ecx, EFER; rdmsr
            0x0d, 0, 1, 0, 0, 0x0f, 0x30,                       // or eax, LME; wrmsr
            0x0f, 0x20, 0xc0,                                   // mov eax, cr0
            0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0,              // or eax, PG; mov cr0, eax
        ]);
        let table = at + code.len() as u32 + 7 + 7 + 6;
        code.extend([0x0f, 0x01, 0x15]); // lgdt [pointer]
        words(&mut code, &[table - 6]);
        code.push(0xea); // jmp 8:start
        words(&mut code, &[table + 16]);
        halves(&mut code, &[8, 15]);
        words(&mut code, &[table, 0, 0, 0xffff, 0x00af_9b00]);
        code.extend(self.in_long_mode());
        code
    }

    /// Returns the loop, with what comes before and after it.
    #[rustfmt::skip]
    fn in_long_mode(self) -> Vec<u8> {
        let [a, b, c, d] = self.0.to_le_bytes();
        let before = [
            0xbc, 0, 0x90, 0, 0, 0xbe, 0, 0, 1, 0,              // mov esp, 9000h; mov esi, 10000h
            0x89, 0xf7, 0x31, 0xc0, 0xb9, 0, 0x20, 0, 0,        // mov edi, esi; xor eax, eax; mov ecx, 2000h
            0xfc, 0xf3, 0x48, 0xab,                             // cld; rep stosq: 64 KiB of zeros
            0x31, 0xdb, 0xba, 1, 0, 0, 0, 0xb9, a, b, c, d,     // xor ebx, ebx; mov edx, 1; mov ecx, rounds
        ];
        let first = [
            0x89, 0xcf, 0xc1, 0xe7, 7, 0x81, 0xe7, 0xf8, 0xff, 0, 0, // mov edi, ecx; shl edi, 7; and edi, fff8h
            0x48, 0x8b, 0x04, 0x3e, 0x48, 0x01, 0xd0,           // mov rax, [rsi+rdi]; add rax, rdx
            0x48, 0x31, 0xc3, 0x48, 0x89, 0x04, 0x3e,           // xor rbx, rax; mov [rsi+rdi], rax
            0x48, 0x8d, 0x54, 0x42, 7,                          // lea rdx, [rdx+rax*2+7]
            0xf6, 0xc1, 4, 0x74, 3, 0x48, 0xff, 0xc3,           // test cl, 4; jz over; inc rbx; over:
        ];
        let second = [
            0x50, 0x5d, 0x48, 0xc1, 0xc5, 5, 0x48, 0x29, 0xea,  // push rax; pop rbp; rol rbp, 5; sub rdx, rbp
            0x48, 0x3b, 0x2e, 0x0f, 0x92, 0xc0,                 // cmp rbp, [rsi]; setb al
            0x0f, 0xb6, 0xc0, 0x48, 0x01, 0xc3, 0xff, 0xc9,     // movzx eax, al; add rbx, rax; dec ecx
        ];
        let called = [0x48, 0x03, 0x5e, 8, 0x48, 0x0f, 0xaf, 0xd3, 0xc3]; // add rbx, [rsi+8]; imul rdx, rbx; ret
        let back = first.len() + 5 + second.len() + 2;
        let after = after();
        let to_called = second.len() + 2 + after.len();
        let mut code = before.to_vec();
        code.extend(first);
        code.push(0xe8); // call called
        words(&mut code, &[to_called as u32]);
        code.extend(second);
        code.extend([0x75, (back as u8).wrapping_neg()]); // jnz back
        code.extend(after);
        code.extend(called);
        code
    }
}

/// Prints EBX on port E9h, a letter for each four bits, and ends: by port 8900h as Bochs wants it, by port F4h as this machine does.
#[rustfmt::skip]
fn after() -> Vec<u8> {
    let mut code = vec![
        0xb9, 8, 0, 0, 0,                                       // mov ecx, 8
        0xc1, 0xc3, 4, 0x88, 0xd8, 0x24, 0x0f, 0x04, b'A',      // next: rol ebx, 4; mov al, bl; and al, 15; add al, 'A'
        0xe6, 0xe9, 0xff, 0xc9, 0x75, 0xf1,                     // out e9h, al; dec ecx; jnz next
        0x66, 0xba, 0x00, 0x89,                                 // mov dx, 8900h
    ];
    for letter in *b"Shutdown" {
        code.extend([0xb0, letter, 0xee]); // mov al, letter; out dx, al
    }
    code.extend([0x31, 0xc0, 0xe7, 0xf4, 0xf4]); // xor eax, eax; out f4h, eax; hlt
    code
}

fn halves(bytes: &mut Vec<u8>, values: &[u16]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn words(bytes: &mut Vec<u8>, values: &[u32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
