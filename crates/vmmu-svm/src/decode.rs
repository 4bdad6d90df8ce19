//! Recognising the instruction that exited.
//!
//! The processor tells why an exit happened, but neither how long the instruction was nor, for control registers, which operand it
//! had. CPUID, RDMSR, WRMSR, MOV CRn and INVLPG are recognised by their bytes; everything else is left to iced-x86.
//!
//! Invariants:
//! 1. The bytes are the guest's and may have changed since the processor read them: whatever they are, the answer is an
//!    [`Instruction`], or none, and the caller compares it with the exit.

use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use vmmu::addr::Gva;

/// The longest instruction (AMD APM vol. 3, section 1.1).
pub const LONGEST: usize = 15;

/// How many bits the code segment's instructions default to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeSize {
    /// 16-bit code.
    Bits16 = 16,
    /// 32-bit code.
    Bits32 = 32,
    /// 64-bit code.
    Bits64 = 64,
}

/// The number of a general register, 0 for RAX to 15 for R15.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr(pub u8);

/// The number of a control register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlRegister(pub u8);

/// What an address is computed from.
pub trait RegisterFile {
    /// Returns a general register, all 64 bits.
    fn general(&self, register: Gpr) -> u64;
    /// Returns the base that a segment adds to addresses: 0 for all but FS and GS in 64-bit code.
    fn segment_base(&self, segment: SegmentName) -> u64;
}

/// A segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// An instruction that the hypervisor has something to do with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// MOV to a control register.
    MovToControl(ControlRegister, Gpr),
    /// MOV from a control register.
    MovFromControl(ControlRegister, Gpr),
    /// INVLPG of a linear address.
    Invlpg(Gva),
    /// CLTS.
    Clts,
    /// LMSW from a register.
    Lmsw(Gpr),
    /// LMSW from memory.
    LmswMemory(Gva),
    /// SMSW to a register, of which it writes this many bytes.
    Smsw(Gpr, u8),
    /// SMSW to memory.
    SmswMemory(Gva),
    /// INVLPGA.
    Invlpga,
    /// Anything else.
    Other,
}

/// An operation and the instruction's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// What it does.
    pub operation: Operation,
    /// How many bytes it has.
    pub length: u8,
}

/// Decodes the instruction at `rip`, of which `bytes` has the first 16 bytes, the first one lowest.
#[inline(always)]
pub fn decode(
    bytes: u128,
    size: CodeSize,
    rip: u64,
    registers: &impl RegisterFile,
) -> Option<Instruction> {
    match recognise(bytes as u64, size, registers) {
        None => decode_any(&bytes.to_le_bytes()[..LONGEST], size, rip, registers),
        known => known,
    }
}

/// Recognises the frequent instructions by their first bytes.
#[inline(always)]
fn recognise(mut word: u64, size: CodeSize, registers: &impl RegisterFile) -> Option<Instruction> {
    let long = size == CodeSize::Bits64;
    let (mut rex, mut prefixes) = (0, 0);
    if long && word & 0xf0 == 0x40 {
        (rex, prefixes) = (word as u8, 1);
        word >>= 8;
    }
    if word as u8 != 0x0f {
        return None;
    }
    if word as u16 == 0xa20f {
        return Some(Instruction {
            operation: Operation::Cpuid,
            length: prefixes + 2,
        });
    }
    let modrm = (word >> 16) as u8;
    let (mode, reg, rm) = (
        modrm >> 6,
        modrm >> 3 & 7 | (rex & 4) << 1,
        modrm & 7 | (rex & 1) << 3,
    );
    let (operation, length) = match (word >> 8) as u8 {
        0x30 => (Operation::Wrmsr, 2),
        0x32 => (Operation::Rdmsr, 2),
        // The processor ignores the mode bits of MOV CRn.
        0x22 => (Operation::MovToControl(ControlRegister(reg), Gpr(rm)), 3),
        0x20 => (Operation::MovFromControl(ControlRegister(reg), Gpr(rm)), 3),
        0x01 if long && modrm >> 3 & 7 == 7 && rex & 2 == 0 => {
            let (gva, length) = recognise_address(mode, rm, word >> 24, registers)?;
            (Operation::Invlpg(gva), 3 + length)
        }
        _ => return None,
    };
    Some(Instruction {
        operation,
        length: prefixes + length,
    })
}

/// Recognises an address that is a register, or one with 8 bits of displacement, as compilers make them; returns how many bytes follow ModRM.
/// R12 and RSP take a SIB byte for it, R13 and RBP a displacement.
#[inline(always)]
fn recognise_address(
    mode: u8,
    rm: u8,
    rest: u64,
    registers: &impl RegisterFile,
) -> Option<(Gva, u8)> {
    const NO_INDEX: u8 = 0x24;
    let (rest, sib) = match rm & 7 {
        4 if rest as u8 == NO_INDEX => (rest >> 8, 1),
        4 => return None,
        _ => (rest, 0),
    };
    let base = registers.general(Gpr(rm));
    match mode {
        0 if rm & 7 != 5 => Some((Gva::new(base), sib)),
        1 => Some((
            Gva::new(base.wrapping_add_signed(i64::from(rest as i8))),
            sib + 1,
        )),
        _ => None,
    }
}

/// Decodes any instruction; `None` if the bytes are no complete one.
#[cold]
pub fn decode_any(
    bytes: &[u8],
    size: CodeSize,
    rip: u64,
    registers: &impl RegisterFile,
) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(size as u32, bytes, rip, DecoderOptions::AMD);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let address = || {
        let value = |register, _, _| Some(register_value(register, registers));
        Gva::new(instruction.virtual_address(0, 0, value).unwrap_or(0))
    };
    let is_memory = instruction.op0_kind() == OpKind::Memory;
    let gpr = |operand| gpr(instruction.op_register(operand));
    let operation = match instruction.mnemonic() {
        Mnemonic::Cpuid => Operation::Cpuid,
        Mnemonic::Rdmsr => Operation::Rdmsr,
        Mnemonic::Wrmsr => Operation::Wrmsr,
        Mnemonic::Clts => Operation::Clts,
        Mnemonic::Invlpg => Operation::Invlpg(address()),
        Mnemonic::Invlpga => Operation::Invlpga,
        Mnemonic::Lmsw if is_memory => Operation::LmswMemory(address()),
        Mnemonic::Lmsw => Operation::Lmsw(gpr(0)),
        Mnemonic::Smsw if is_memory => Operation::SmswMemory(address()),
        Mnemonic::Smsw => Operation::Smsw(gpr(0), instruction.op0_register().size() as u8),
        Mnemonic::Mov => match instruction.code() {
            Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
                Operation::MovToControl(control(instruction.op0_register()), gpr(1))
            }
            Code::Mov_r32_cr | Code::Mov_r64_cr => {
                Operation::MovFromControl(control(instruction.op1_register()), gpr(0))
            }
            _ => Operation::Other,
        },
        _ => Operation::Other,
    };
    Some(Instruction {
        operation,
        length: instruction.len() as u8,
    })
}

fn gpr(register: Register) -> Gpr {
    Gpr(register.number() as u8 & 15)
}

fn control(register: Register) -> ControlRegister {
    ControlRegister(register.number() as u8)
}

fn register_value(register: Register, registers: &impl RegisterFile) -> u64 {
    let segment = match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => {
            let value = registers.general(gpr(register));
            return match register.size() {
                2 => value & 0xffff,
                4 => value & 0xffff_ffff,
                _ => value,
            };
        }
    };
    registers.segment_base(segment)
}

#[cfg(test)]
mod instructions_are_recognised {
    use super::*;

    struct Numbered;
    impl RegisterFile for Numbered {
        fn general(&self, register: Gpr) -> u64 {
            0x1000 * (u64::from(register.0) + 1)
        }
        fn segment_base(&self, segment: SegmentName) -> u64 {
            if segment == SegmentName::Gs {
                0x100_0000
            } else {
                0
            }
        }
    }
    fn decoded(bytes: &[u8]) -> Option<(Operation, u8)> {
        let mut padded = [0x90; 16];
        padded[..bytes.len()].copy_from_slice(bytes);
        decode(
            u128::from_le_bytes(padded),
            CodeSize::Bits64,
            0x40_0000,
            &Numbered,
        )
        .map(|i| (i.operation, i.length))
    }

    #[test]
    fn by_their_bytes() {
        use Operation::{Cpuid, Invlpg, MovFromControl, MovToControl};
        assert_eq!(decoded(&[0x0f, 0xa2]), Some((Cpuid, 2)));
        assert_eq!(
            decoded(&[0x0f, 0x22, 0xd9]),
            Some((MovToControl(ControlRegister(3), Gpr(1)), 3))
        );
        assert_eq!(
            decoded(&[0x41, 0x0f, 0x22, 0xd8]),
            Some((MovToControl(ControlRegister(3), Gpr(8)), 4))
        );
        assert_eq!(
            decoded(&[0x0f, 0x20, 0xe0]),
            Some((MovFromControl(ControlRegister(4), Gpr(0)), 3))
        );
        assert_eq!(
            decoded(&[0x0f, 0x01, 0x3b]),
            Some((Invlpg(Gva::new(0x4000)), 3))
        );
        assert_eq!(
            decoded(&[0x41, 0x0f, 0x01, 0x38]),
            Some((Invlpg(Gva::new(0x9000)), 4))
        );
    }

    #[test]
    fn with_any_prefix_and_any_address() {
        use Operation::{Clts, Cpuid, Invlpg, Lmsw, LmswMemory, MovToControl, Smsw};
        assert_eq!(decoded(&[0x66, 0x0f, 0xa2]), Some((Cpuid, 3)));
        assert_eq!(
            decoded(&[0x66, 0x0f, 0x22, 0xd9]),
            Some((MovToControl(ControlRegister(3), Gpr(1)), 4))
        );
        assert_eq!(
            decoded(&[0x0f, 0x01, 0x7c, 0x4b, 0x08]),
            Some((Invlpg(Gva::new(0x4000 + 2 * 0x2000 + 8)), 5))
        );
        assert_eq!(
            decoded(&[0x65, 0x0f, 0x01, 0x3b]),
            Some((Invlpg(Gva::new(0x100_4000)), 4))
        );
        assert_eq!(
            decoded(&[0x0f, 0x01, 0x3d, 0x10, 0, 0, 0]),
            Some((Invlpg(Gva::new(0x40_0017)), 7))
        );
        assert_eq!(decoded(&[0x0f, 0x06]), Some((Clts, 2)));
        assert_eq!(decoded(&[0x0f, 0x01, 0xf3]), Some((Lmsw(Gpr(3)), 3)));
        assert_eq!(
            decoded(&[0x0f, 0x01, 0x33]),
            Some((LmswMemory(Gva::new(0x4000)), 3))
        );
        assert_eq!(
            decoded(&[0x66, 0x0f, 0x01, 0xe3]),
            Some((Smsw(Gpr(3), 2), 4))
        );
    }

    #[test]
    fn both_ways_agree() {
        for bytes in [
            &[0x0f, 0xa2][..],
            &[0x44, 0x0f, 0x20, 0xc1],
            &[0x0f, 0x22, 0xe7],
            &[0x41, 0x0f, 0x01, 0x3a],
            &[0x0f, 0x01, 0x3c, 0x24],
            &[0x41, 0x0f, 0x01, 0x3c, 0x24],
            &[0x41, 0x0f, 0x01, 0x7d, 0x00],
            &[0x0f, 0x01, 0x7d, 0xf8],
            &[0x0f, 0x01, 0x7b, 0x10],
            &[0x41, 0x0f, 0x01, 0x7c, 0x24, 0x80],
            &[0x0f, 0x32],
        ] {
            let mut word = [0x90; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let fast = recognise(u64::from_le_bytes(word), CodeSize::Bits64, &Numbered);
            assert!(fast.is_some(), "{bytes:x?}");
            assert_eq!(fast, decode_any(bytes, CodeSize::Bits64, 0, &Numbered));
        }
    }

    #[test]
    fn and_what_is_more_is_left_to_the_decoder() {
        for bytes in [
            &[0x0f, 0x01, 0x3d, 0x10, 0, 0, 0, 0x90][..],
            &[0x0f, 0x01, 0x3c, 0x4b, 0x90, 0x90, 0x90, 0x90],
            &[0x42, 0x0f, 0x01, 0x3c, 0x24, 0x90, 0x90, 0x90],
            &[0x0f, 0x01, 0xbb, 0x10, 0, 0, 0, 0x90],
            &[0x0f, 0x01, 0xfb, 0x90, 0x90, 0x90, 0x90, 0x90],
        ] {
            let word = u64::from_le_bytes(bytes.try_into().unwrap());
            assert_eq!(recognise(word, CodeSize::Bits64, &Numbered), None);
        }
    }

    #[test]
    fn in_32_bit_code_a_rex_byte_is_an_instruction_of_its_own() {
        let bytes = [0x41, 0x0f, 0x22, 0xd8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let found = decode(u128::from_le_bytes(bytes), CodeSize::Bits32, 0, &Numbered)
            .map(|i| (i.operation, i.length));
        assert_eq!(found, Some((Operation::Other, 1)));
    }

    #[test]
    fn what_is_cut_short_is_none() {
        for bytes in [&[0x0f][..], &[0x0f, 0x01], &[]] {
            assert_eq!(decode_any(bytes, CodeSize::Bits64, 0, &Numbered), None);
        }
    }
}
