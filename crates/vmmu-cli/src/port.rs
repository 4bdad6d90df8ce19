//! Three tiny programs for the guest, as machine code: they reach I/O ports, which busybox can't.
//!
//! Key function: [`elf`], which wraps a [`Program`]'s code in the smallest ELF64 file that Linux runs.
//! [`crate::initramfs`] puts them into `/bin`.
//!
//! Invariants:
//! 1. The code is position-independent, needs nothing but the stack that Linux sets up, and makes only the
//!    system calls named in its listing.
//! 2. The file is one read-execute segment of header and code; nothing in it is writable.

/// A program of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `port-out`: copies standard input to port 0xE9, byte for byte, until it ends.
    Out,
    /// `port-exit STATUS`: writes the number to port 0xf4, which ends the run.
    Exit,
    /// `tsc`: prints the time-stamp counter as a decimal line; under `-icount` it counts instructions.
    Tsc,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 3] = [Self::Out, Self::Exit, Self::Tsc];

    /// Returns the name under `/bin`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "port-out",
            Self::Exit => "port-exit",
            Self::Tsc => "tsc",
        }
    }

    const fn code(self) -> &'static [u8] {
        match self {
            Self::Out => OUT,
            Self::Exit => EXIT,
            Self::Tsc => TSC,
        }
    }
}

/// iopl(3), then read(0) into 64 KiB of stack and OUTSB to port 0xE9 until read returns 0 or an error.
#[rustfmt::skip]
const OUT: &[u8] = &[
    0xbf, 0x03, 0x00, 0x00, 0x00,             // 00: mov  edi, 3
    0xb8, 0xac, 0x00, 0x00, 0x00,             // 05: mov  eax, 172           iopl
    0x0f, 0x05,                               // 0a: syscall
    0x85, 0xc0,                               // 0c: test eax, eax
    0x75, 0x2e,                               // 0e: jnz  3e                 refused: exit(1)
    0x48, 0x81, 0xec, 0x00, 0x00, 0x01, 0x00, // 10: sub  rsp, 0x10000
    0x31, 0xff,                               // 17: xor  edi, edi           standard input
    0x48, 0x89, 0xe6,                         // 19: mov  rsi, rsp
    0xba, 0x00, 0x00, 0x01, 0x00,             // 1c: mov  edx, 0x10000
    0x31, 0xc0,                               // 21: xor  eax, eax           read
    0x0f, 0x05,                               // 23: syscall
    0x48, 0x85, 0xc0,                         // 25: test rax, rax
    0x7e, 0x0b,                               // 28: jle  35                 the end: exit(0)
    0x89, 0xc1,                               // 2a: mov  ecx, eax
    0xba, 0xe9, 0x00, 0x00, 0x00,             // 2c: mov  edx, 0xe9
    0xf3, 0x6e,                               // 31: rep outsb
    0xeb, 0xe2,                               // 33: jmp  17
    0x31, 0xff,                               // 35: xor  edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00,             // 37: mov  eax, 60            exit
    0x0f, 0x05,                               // 3c: syscall
    0xbf, 0x01, 0x00, 0x00, 0x00,             // 3e: mov  edi, 1
    0xb8, 0x3c, 0x00, 0x00, 0x00,             // 43: mov  eax, 60            exit
    0x0f, 0x05,                               // 48: syscall
];

/// Reads the decimal number in argv[1], iopl(3), OUT to port 0xf4, then pause() until the machine is gone.
#[rustfmt::skip]
const EXIT: &[u8] = &[
    0x59,                                     // 00: pop  rcx                argc
    0x5e,                                     // 01: pop  rsi                argv[0]
    0x5e,                                     // 02: pop  rsi                argv[1]
    0x31, 0xdb,                               // 03: xor  ebx, ebx
    0x48, 0x85, 0xf6,                         // 05: test rsi, rsi
    0x74, 0x15,                               // 08: jz   1f                 none given: 0
    0x0f, 0xb6, 0x06,                         // 0a: movzx eax, byte [rsi]
    0x83, 0xe8, 0x30,                         // 0d: sub  eax, '0'
    0x83, 0xf8, 0x09,                         // 10: cmp  eax, 9
    0x77, 0x0a,                               // 13: ja   1f                 no digit: the end
    0x6b, 0xdb, 0x0a,                         // 15: imul ebx, ebx, 10
    0x01, 0xc3,                               // 18: add  ebx, eax
    0x48, 0xff, 0xc6,                         // 1a: inc  rsi
    0xeb, 0xeb,                               // 1d: jmp  0a
    0xbf, 0x03, 0x00, 0x00, 0x00,             // 1f: mov  edi, 3
    0xb8, 0xac, 0x00, 0x00, 0x00,             // 24: mov  eax, 172           iopl
    0x0f, 0x05,                               // 29: syscall
    0x89, 0xd8,                               // 2b: mov  eax, ebx
    0xba, 0xf4, 0x00, 0x00, 0x00,             // 2d: mov  edx, 0xf4
    0xef,                                     // 32: out  dx, eax
    0xb8, 0x22, 0x00, 0x00, 0x00,             // 33: mov  eax, 34            pause
    0x0f, 0x05,                               // 38: syscall
    0xeb, 0xf7,                               // 3a: jmp  33
];

/// RDTSC, the digits from the last to the first on the stack, write(1), exit(0).
#[rustfmt::skip]
const TSC: &[u8] = &[
    0x0f, 0x31,                               // 00: rdtsc
    0x48, 0xc1, 0xe2, 0x20,                   // 02: shl  rdx, 32
    0x48, 0x09, 0xd0,                         // 06: or   rax, rdx
    0x48, 0x83, 0xec, 0x18,                   // 09: sub  rsp, 24
    0x48, 0x8d, 0x74, 0x24, 0x14,             // 0d: lea  rsi, [rsp + 20]
    0xc6, 0x06, 0x0a,                         // 12: mov  byte [rsi], '\n'
    0xb9, 0x0a, 0x00, 0x00, 0x00,             // 15: mov  ecx, 10
    0x31, 0xd2,                               // 1a: xor  edx, edx
    0x48, 0xf7, 0xf1,                         // 1c: div  rcx
    0x83, 0xc2, 0x30,                         // 1f: add  edx, '0'
    0x48, 0xff, 0xce,                         // 22: dec  rsi
    0x88, 0x16,                               // 25: mov  [rsi], dl
    0x48, 0x85, 0xc0,                         // 27: test rax, rax
    0x75, 0xee,                               // 2a: jnz  1a
    0x48, 0x8d, 0x54, 0x24, 0x15,             // 2c: lea  rdx, [rsp + 21]
    0x48, 0x29, 0xf2,                         // 31: sub  rdx, rsi           length
    0xbf, 0x01, 0x00, 0x00, 0x00,             // 34: mov  edi, 1             standard output
    0xb8, 0x01, 0x00, 0x00, 0x00,             // 39: mov  eax, 1             write
    0x0f, 0x05,                               // 3e: syscall
    0x31, 0xff,                               // 40: xor  edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00,             // 42: mov  eax, 60            exit
    0x0f, 0x05,                               // 47: syscall
];

const HEADER_SIZE: u16 = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;
const LOAD_ADDRESS: u64 = 0x40_0000;

/// Builds the ELF64 file of `program`: file header, one PT_LOAD header, the code.
#[must_use]
pub fn elf(program: Program) -> Vec<u8> {
    let code = program.code();
    let headers = HEADER_SIZE + PROGRAM_HEADER_SIZE;
    let size = u64::from(headers) + code.len() as u64;
    let mut file = Vec::with_capacity(usize::from(headers) + code.len());
    // e_ident: magic, 64-bit, little endian, version 1, System V.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&2u16.to_le_bytes()); // e_type: ET_EXEC
    file.extend_from_slice(&62u16.to_le_bytes()); // e_machine: x86-64
    file.extend_from_slice(&1u32.to_le_bytes()); // e_version
    file.extend_from_slice(&(LOAD_ADDRESS + u64::from(headers)).to_le_bytes()); // e_entry
    file.extend_from_slice(&u64::from(HEADER_SIZE).to_le_bytes()); // e_phoff
    file.extend_from_slice(&0u64.to_le_bytes()); // e_shoff
    file.extend_from_slice(&0u32.to_le_bytes()); // e_flags
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for half in [HEADER_SIZE, PROGRAM_HEADER_SIZE, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1u32.to_le_bytes()); // p_type: PT_LOAD
    file.extend_from_slice(&5u32.to_le_bytes()); // p_flags: read, execute
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

#[cfg(test)]
mod guest_programs {
    use super::{Program, elf};
    use object::{Object, ObjectSegment};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn the_file_is_an_elf_whose_entry_is_the_first_byte_of_code() {
        for program in Program::ALL {
            let file = elf(program);
            let parsed = object::File::parse(&*file).expect("an ELF file");
            let segment = parsed.segments().next().expect("one segment");
            let offset = (parsed.entry() - segment.address()) as usize;
            assert_eq!(&file[offset..], program.code());
        }
    }

    #[test]
    fn tsc_prints_one_growing_decimal_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tsc");
        std::fs::write(&path, elf(Program::Tsc)).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("executable");
        let read = || -> u64 {
            let out = Command::new(&path).output().expect("runs");
            String::from_utf8(out.stdout)
                .expect("text")
                .strip_suffix('\n')
                .expect("a line")
                .parse()
                .expect("digits")
        };
        let first = read();
        assert!(read() > first);
    }
}
