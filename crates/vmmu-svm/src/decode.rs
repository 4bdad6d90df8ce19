//! Recognising the instruction that exited.
//!
//! The processor tells why an exit happened, but neither how long the instruction was nor, for control registers, which operand it
//! had. CPUID, RDMSR, WRMSR, MOV CRn and INVLPG are recognised by their bytes as compilers and assemblers write them; everything else is left to the
//! emulator.
//!
//! Invariants:
//! 1. The bytes are the guest's and may have changed since the processor read them: whatever they are, the answer is an
//!    [`Instruction`], or none, and the caller compares it with the exit.

use vmmu::addr::Gva;

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
}

/// An operation and the instruction's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// What it does.
    pub operation: Operation,
    /// How many bytes it has.
    pub length: u8,
}

/// Recognises an instruction by its first eight bytes, the first one lowest.
#[inline(always)]
pub fn recognise(
    mut word: u64,
    size: CodeSize,
    registers: &impl RegisterFile,
) -> Option<Instruction> {
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

#[cfg(test)]
mod instructions_are_recognised {
    use super::*;

    struct Numbered;
    impl RegisterFile for Numbered {
        fn general(&self, register: Gpr) -> u64 {
            0x1000 * (u64::from(register.0) + 1)
        }
    }
    fn decoded(bytes: &[u8]) -> Option<(Operation, u8)> {
        let mut padded = [0x90; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        recognise(u64::from_le_bytes(padded), CodeSize::Bits64, &Numbered)
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
    fn with_every_short_address_of_invlpg() {
        for (bytes, address) in [
            (&[0x0f, 0x01, 0x3c, 0x24][..], 0x5000),
            (&[0x41, 0x0f, 0x01, 0x3c, 0x24], 0xd000),
            (&[0x41, 0x0f, 0x01, 0x7d, 0x00], 0xe000),
            (&[0x0f, 0x01, 0x7d, 0xf8], 0x5ff8),
            (&[0x0f, 0x01, 0x7b, 0x10], 0x4010),
            (&[0x41, 0x0f, 0x01, 0x7c, 0x24, 0x80], 0xcf80),
        ] {
            let expected = Operation::Invlpg(Gva::new(address));
            assert_eq!(decoded(bytes), Some((expected, bytes.len() as u8)));
        }
    }

    #[test]
    fn and_what_is_more_is_left_to_the_emulator() {
        for bytes in [
            &[0x0f, 0x01, 0x3d, 0x10, 0, 0, 0][..],
            &[0x0f, 0x01, 0x3c, 0x4b],
            &[0x42, 0x0f, 0x01, 0x3c, 0x24],
            &[0x0f, 0x01, 0xbb, 0x10, 0, 0, 0],
            &[0x0f, 0x01, 0xfb],
            &[0x65, 0x0f, 0x01, 0x3b],
            &[0x66, 0x0f, 0xa2],
            &[0x66, 0x0f, 0x22, 0xd9],
            &[0x0f, 0x06],
            &[0x0f, 0x01, 0xf3],
        ] {
            assert_eq!(decoded(bytes), None, "{bytes:x?}");
        }
    }

    #[test]
    fn in_32_bit_code_a_rex_byte_is_an_instruction_of_its_own() {
        let word = u64::from_le_bytes([0x41, 0x0f, 0x22, 0xd8, 0, 0, 0, 0]);
        assert_eq!(recognise(word, CodeSize::Bits32, &Numbered), None);
    }
}
