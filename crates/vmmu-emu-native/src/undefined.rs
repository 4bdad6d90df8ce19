//! What the manuals leave undefined, so that processors differ: flags by instruction (AMD APM vol. 3, section 1.2.3 and each instruction's page; Intel SDM
//! vol. 1, appendix A "EFLAGS Cross-Reference").
//!
//! Key functions: [`flags`], [`result`].

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::registers::Registers;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

/// Returns the flags that the instruction leaves undefined.
#[must_use]
pub fn flags(instruction: &Instruction, before: &Registers) -> u64 {
    match instruction.mnemonic() {
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test => AF,
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => shift(instruction, before),
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => {
            if count(instruction, before) == 1 {
                0
            } else {
                OF
            }
        }
        Mnemonic::Shld | Mnemonic::Shrd => match count(instruction, before) {
            0 => 0,
            1 => AF,
            _ => AF | OF,
        },
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => OF | SF | AF | PF,
        Mnemonic::Bsf | Mnemonic::Bsr => CF | OF | SF | AF | PF,
        Mnemonic::Tzcnt | Mnemonic::Lzcnt => OF | SF | AF | PF,
        Mnemonic::Mul | Mnemonic::Imul => SF | ZF | AF | PF,
        Mnemonic::Div | Mnemonic::Idiv => CF | OF | SF | ZF | AF | PF,
        Mnemonic::Aaa | Mnemonic::Aas => OF | SF | ZF | PF,
        Mnemonic::Aam | Mnemonic::Aad => OF | AF | CF,
        Mnemonic::Daa | Mnemonic::Das => OF,
        _ => 0,
    }
}

/// Shifts: OF is defined for a count of 1, AF for none, CF up to the operand's size.
fn shift(instruction: &Instruction, before: &Registers) -> u64 {
    let bits = 8 * size(instruction) as u64;
    match count(instruction, before) {
        0 => 0,
        1 => AF,
        count if count > bits && instruction.mnemonic() != Mnemonic::Sar => AF | OF | CF,
        _ => AF | OF,
    }
}

/// Returns the count of a shift or rotation, as much of it as matters.
fn count(instruction: &Instruction, before: &Registers) -> u64 {
    let last = instruction.op_count() - 1;
    let count = match instruction.op_kind(last) {
        OpKind::Register => before.gpr[1],
        _ => instruction.immediate(last),
    };
    count & if size(instruction) == 8 { 63 } else { 31 }
}

fn size(instruction: &Instruction) -> usize {
    match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    }
}

/// Says whether the instruction's result is undefined, and not to be compared: SHLD and SHRD of words by more than 16, BSWAP of a word.
#[must_use]
pub fn result(instruction: &Instruction, before: &Registers) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => {
            size(instruction) == 2 && count(instruction, before) > 16
        }
        Mnemonic::Bswap => size(instruction) == 2,
        _ => false,
    }
}
