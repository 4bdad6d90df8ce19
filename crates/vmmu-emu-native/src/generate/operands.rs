//! What particular instructions need of their operands, to do more than fault.

use fastrand::Rng;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::address::{has_memory, number, place};
use super::encoding::Encoded;
use super::values::{once_in, value};
use super::{Case, START};
use crate::registers::{CodeMode, Registers};
use crate::trampoline::{CODE, CODE_LEN, DATA, DATA_LEN};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
const MIDDLE: u64 = DATA + DATA_LEN as u64 / 2;

/// Fits registers, memory and constants to the instruction; `None` if this one can't be.
pub(crate) fn fit(rng: &mut Rng, mut encoded: Encoded, case: &mut Case) -> Option<Encoded> {
    // MOVSXD of a word: AMD's processors read four bytes of memory, Intel's two.
    let reads_more = encoded.instruction.code() == Code::Movsxd_r16_rm16;
    if reads_more || is_exchange_or_pause(&encoded) {
        return None;
    }
    let fixed = fit_registers(rng, &mut encoded, &mut case.registers)?;
    if has_memory(&encoded) && !is_address_only(&encoded.instruction) {
        let target = target(rng, &encoded.instruction);
        place(&mut encoded, &mut case.registers, target, &fixed)?;
    }
    fit_memory(rng, &encoded.instruction, case)?;
    Some(encoded)
}

/// Says whether it is F3 90 with a register extension: PAUSE for some processors and the decoder, XCHG for others.
fn is_exchange_or_pause(encoded: &Encoded) -> bool {
    encoded.instruction.mnemonic() == Mnemonic::Pause
        && (0x40..=0x4f).any(|rex| rex & 1 != 0 && encoded.has_prefix(rex))
}

/// Says whether a memory operand is never touched, or addressed by registers that are already set.
fn is_address_only(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Xlatb
    )
}

/// Returns where a memory operand is to lie: anywhere in the middle, seldom across the end or where nothing can be.
fn target(rng: &mut Rng, instruction: &Instruction) -> u64 {
    let size = instruction.memory_size().size().max(1) as u64;
    if once_in(rng, 64) {
        return DATA + DATA_LEN as u64 - rng.u64(..=size);
    }
    if once_in(rng, 64) {
        return DATA - rng.u64(..=size);
    }
    let target = MIDDLE - 512 + rng.u64(..1024);
    if once_in(rng, 3) {
        target
    } else {
        target & !(size.next_power_of_two() - 1)
    }
}

/// Sets registers that the instruction uses in a way of its own; returns those whose values must stay.
fn fit_registers(
    rng: &mut Rng,
    encoded: &mut Encoded,
    registers: &mut Registers,
) -> Option<Vec<usize>> {
    let instruction = encoded.instruction;
    if instruction.is_string_instruction() {
        fit_string(rng, registers);
        return Some(Vec::new());
    }
    if is_branch(&instruction) {
        return fit_branch(rng, encoded, registers);
    }
    if instruction.is_stack_instruction() {
        registers.gpr[RSP] = stack(rng);
        registers.gpr[RBP] = stack(rng);
        if instruction.mnemonic() == Mnemonic::Enter {
            // The immediate that the decoder calls the first is the frame's size.
            encoded.set_immediate(rng.u64(..0x300));
        }
        let explicit = instruction.op0_kind() == OpKind::Register;
        return Some(if explicit { Vec::new() } else { vec![RSP] });
    }
    match instruction.mnemonic() {
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc if has_memory(encoded) => {
            Some(fit_bit_string(rng, &instruction, registers))
        }
        Mnemonic::Div | Mnemonic::Idiv => {
            fit_dividend(rng, &instruction, registers);
            Some(Vec::new())
        }
        Mnemonic::Xlatb => {
            registers.gpr[RBX] = MIDDLE;
            Some(Vec::new())
        }
        Mnemonic::Cmpxchg if !has_memory(encoded) && once_in(rng, 2) => {
            registers.gpr[RAX] = registers.gpr[number(instruction.op0_register())];
            Some(Vec::new())
        }
        _ => Some(Vec::new()),
    }
}

fn stack(rng: &mut Rng) -> u64 {
    let pointer = MIDDLE - 256 + rng.u64(..512);
    if once_in(rng, 64) {
        DATA + rng.u64(..80)
    } else if once_in(rng, 3) {
        pointer
    } else {
        pointer & !7
    }
}

fn fit_string(rng: &mut Rng, registers: &mut Registers) {
    let mut address = |near: u64| {
        if once_in(rng, 64) {
            DATA + DATA_LEN as u64 - rng.u64(..64)
        } else if once_in(rng, 4) {
            near + rng.u64(..16)
        } else {
            MIDDLE - 512 + rng.u64(..1024)
        }
    };
    registers.gpr[RSI] = address(MIDDLE);
    registers.gpr[RDI] = address(registers.gpr[RSI]);
    registers.gpr[RCX] = rng.u64(..48);
}

fn fit_bit_string(
    rng: &mut Rng,
    instruction: &Instruction,
    registers: &mut Registers,
) -> Vec<usize> {
    if instruction.op1_kind() != OpKind::Register {
        return Vec::new();
    }
    let register = number(instruction.op1_register());
    let offset = rng.i64(-9000..9000) as u64;
    let above = match instruction.op1_register().size() {
        2 => !0xffff,
        4 => !0xffff_ffff,
        _ => 0,
    };
    registers.gpr[register] = value(rng) & above | offset & !above;
    if registers.mode == CodeMode::Bits32 {
        registers.gpr[register] &= 0xffff_ffff;
    }
    vec![register]
}

/// Makes the dividend's upper half small or its sign, so that the quotient often fits.
fn fit_dividend(rng: &mut Rng, instruction: &Instruction, registers: &mut Registers) {
    let low = registers.gpr[RAX];
    registers.gpr[RDX] = match rng.u8(..4) {
        0 => 0,
        1 => rng.u64(..16),
        2 if instruction.mnemonic() == Mnemonic::Idiv => (low as i64 >> 63) as u64,
        2 => registers.gpr[RDX] >> 40,
        _ => return,
    };
    if once_in(rng, 2) {
        registers.gpr[RAX] &= !0xff00;
    }
    if registers.mode == CodeMode::Bits32 {
        registers.gpr[RDX] &= 0xffff_ffff;
    }
}

fn is_branch(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret
    ) || matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

/// Returns an address in the code pages that is not in the instruction.
fn code_address(rng: &mut Rng, len: u64) -> u64 {
    loop {
        let address = CODE + rng.u64(..CODE_LEN as u64 - 1);
        if !(START..START + len).contains(&address) {
            return address;
        }
    }
}

fn fit_branch(
    rng: &mut Rng,
    encoded: &mut Encoded,
    registers: &mut Registers,
) -> Option<Vec<usize>> {
    let instruction = encoded.instruction;
    if differs_by_vendor(encoded, registers.mode) {
        return None;
    }
    let len = instruction.len() as u64;
    registers.gpr[RSP] = stack(rng);
    match instruction.op0_kind() {
        OpKind::NearBranch32 | OpKind::NearBranch64 => {
            let target = code_address(rng, len);
            encoded.set_immediate(target.wrapping_sub(encoded.next()));
            let target = encoded.instruction.near_branch_target();
            let inside = (START..START + len).contains(&target);
            (!inside).then_some(Vec::new())
        }
        OpKind::Register if instruction.op0_register().size() >= 4 => {
            let register = number(instruction.op0_register());
            if register == RSP {
                return None;
            }
            registers.gpr[register] = code_address(rng, len);
            Some(vec![register])
        }
        // What memory holds follows in `fit_memory`.
        OpKind::Memory if instruction.memory_size().size() >= 4 => Some(vec![RSP]),
        _ if instruction.mnemonic() == Mnemonic::Ret && returns_far_enough(&instruction) => {
            Some(Vec::new())
        }
        _ => None,
    }
}

/// Says whether processors disagree about a branch: an operand size prefix in 64-bit code (AMD's take it, Intel's don't), and a repeat prefix, which no
/// manual gives a meaning and which turns LOOPE and LOOPNE into each other on some.
fn differs_by_vendor(encoded: &Encoded, mode: CodeMode) -> bool {
    let wide = mode == CodeMode::Bits64 && encoded.has_prefix(0x66);
    wide || encoded.has_prefix(0xf2) || encoded.has_prefix(0xf3)
}

/// Says whether a return is wide enough for an address in the code pages.
fn returns_far_enough(instruction: &Instruction) -> bool {
    !matches!(instruction.code(), Code::Retnw | Code::Retnw_imm16)
}

/// Sets memory that the instruction uses in a way of its own.
fn fit_memory(rng: &mut Rng, instruction: &Instruction, case: &mut Case) -> Option<()> {
    let len = instruction.len() as u64;
    let at = |case: &Case| {
        instruction.virtual_address(0, 0, |register, _, _| match register {
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            Register::RIP | Register::EIP => None,
            other => Some(read(&case.registers, other)),
        })
    };
    match instruction.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call if instruction.op0_kind() == OpKind::Memory => {
            put(case, at(case)?, code_address(rng, len), 8);
        }
        Mnemonic::Ret => put(case, case.registers.gpr[RSP], code_address(rng, len), 8),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            let flags = rng.u64(..) & Registers::FLAGS;
            put(case, case.registers.gpr[RSP], flags, 8);
        }
        Mnemonic::Cmpxchg if has(instruction) && once_in(rng, 2) => {
            put(case, at(case)?, case.registers.gpr[RAX], 8);
        }
        Mnemonic::Cmpxchg8b if once_in(rng, 2) => {
            put(case, at(case)?, case.registers.gpr[RAX], 4);
            put(case, at(case)? + 4, case.registers.gpr[RDX], 4);
        }
        Mnemonic::Cmpxchg16b if once_in(rng, 2) => {
            put(case, at(case)?, case.registers.gpr[RAX], 8);
            put(case, at(case)? + 8, case.registers.gpr[RDX], 8);
        }
        _ => {}
    }
    Some(())
}

fn has(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

fn read(registers: &Registers, register: Register) -> u64 {
    let value = registers.gpr[number(register)];
    match register.size() {
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ => value,
    }
}

/// Writes the value's low bytes to memory, as far as there is memory.
fn put(case: &mut Case, at: u64, value: u64, len: usize) {
    for (offset, byte) in (0..).zip(&value.to_le_bytes()[..len]) {
        let place = at.wrapping_add(offset).wrapping_sub(DATA) as usize;
        if let Some(slot) = case.data.get_mut(place) {
            *slot = *byte;
        }
    }
}
