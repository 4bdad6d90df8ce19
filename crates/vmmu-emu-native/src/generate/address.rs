//! Registers and displacements that make a memory operand lie at a given address.

use iced_x86::{OpKind, Register};

use super::encoding::Encoded;
use crate::registers::Registers;

/// Returns a register's number in encodings.
pub(crate) fn number(register: Register) -> usize {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            register as usize - Register::AH as usize
        }
        other => other.full_register().number(),
    }
}

/// Says whether there is an operand in memory that has an address of its own.
pub(crate) fn has_memory(encoded: &Encoded) -> bool {
    let instruction = &encoded.instruction;
    (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory)
}

/// Makes the memory operand lie at the offset `target`, or a few bytes from it if no register can hold that exactly. `None` if that can't be: a 16-bit
/// address for more than that, or a register in `fixed`, whose value must stay.
pub(crate) fn place(
    encoded: &mut Encoded,
    registers: &mut Registers,
    target: u64,
    fixed: &[usize],
) -> Option<()> {
    let (base, index) = (
        encoded.instruction.memory_base(),
        encoded.instruction.memory_index(),
    );
    let scale = encoded.instruction.memory_index_scale();
    let displacement = encoded.instruction.memory_displacement64();
    if target > 0xffff && (base.size() == 2 || index.size() == 2) {
        return None;
    }
    let rest = target.wrapping_sub(displacement);
    match (base, index) {
        (Register::RIP | Register::EIP, _) => {
            let relative = target.wrapping_sub(encoded.next());
            return (encoded.set_displacement(relative) == 4).then_some(());
        }
        (Register::None, Register::None) => {
            let fits = encoded.set_displacement(target) >= if target > 0xffff { 4 } else { 2 };
            return fits.then_some(());
        }
        _ if fixed.contains(&number(base)) && base != Register::None => return None,
        (Register::None, index) if fixed.contains(&number(index)) => return None,
        (base, Register::None) => set(registers, base, rest),
        (Register::None, index) => set(registers, index, divided(rest, index, scale)),
        (base, index) if number(base) == number(index) => {
            set(registers, base, divided(rest, base, scale + 1));
        }
        (base, index) => {
            let offset = registers.gpr[number(index)].wrapping_mul(scale.into());
            set(registers, base, rest.wrapping_sub(offset));
        }
    }
    Some(())
}

/// Divides with the sign of the address size, so that a multiplication, with what is lost above, comes back near.
fn divided(value: u64, register: Register, by: u32) -> u64 {
    let value = if register.size() == 4 {
        i64::from(value as u32 as i32)
    } else {
        value as i64
    };
    (value / i64::from(by)) as u64
}

/// Sets a register used as an address; what lies above its size stays.
fn set(registers: &mut Registers, register: Register, value: u64) {
    set_low(&mut registers.gpr[number(register)], register.size(), value);
}

/// Sets a register's low bytes.
pub(crate) fn set_low(gpr: &mut u64, bytes: usize, value: u64) {
    let mask = match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    *gpr = *gpr & !mask | value & mask;
}
