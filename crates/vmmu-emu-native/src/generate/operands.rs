//! What particular instructions need of their operands, to do more than fault.

use fastrand::Rng;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::Case;
use super::address::{has_memory, number, place, set_low};
use super::encoding::Encoded;
use super::values::{once_in, value};
use crate::registers::{CodeMode, Registers};
use crate::trampoline::{CODE, CODE_LEN, DATA, DATA_LEN, GS_BASE};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// Returns the offset at which data begins.
const fn data(mode: CodeMode) -> u64 {
    DATA - mode.data_base()
}

/// Returns the offset of the data's middle.
const fn middle(mode: CodeMode) -> u64 {
    data(mode) + DATA_LEN as u64 / 2
}

/// Fits registers, memory and constants to the instruction; `None` if this one can't be.
pub(crate) fn fit(rng: &mut Rng, mut encoded: Encoded, case: &mut Case) -> Option<Encoded> {
    // MOVSXD of a word: AMD's processors read four bytes of memory, Intel's two.
    let reads_more = encoded.instruction.code() == Code::Movsxd_r16_rm16;
    // Code is not in the emulator's memory; of flat segments the prefix changes nothing.
    let reads_code = case.registers.mode == CodeMode::Bits16 && encoded.has_prefix(0x2e);
    if reads_code || reads_more || is_exchange_or_pause(&encoded) {
        return None;
    }
    let fixed = fit_registers(rng, &mut encoded, &mut case.registers)?;
    if has_memory(&encoded) && !is_address_only(&encoded.instruction) {
        let target = target(rng, &encoded.instruction, case.registers.mode);
        let target = target.wrapping_sub(base(&encoded.instruction));
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

/// Returns the base that the segment of a memory operand adds beyond that of all data.
fn base(instruction: &Instruction) -> u64 {
    if instruction.memory_segment() == Register::GS {
        GS_BASE
    } else {
        0
    }
}

/// Says whether a memory operand is never touched, or addressed by registers that are already set.
fn is_address_only(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Xlatb
    )
}

/// Returns where a memory operand is to lie: anywhere in the middle, seldom across the end or where nothing can be.
fn target(rng: &mut Rng, instruction: &Instruction, mode: CodeMode) -> u64 {
    let size = instruction.memory_size().size().max(1) as u64;
    if once_in(rng, 64) {
        return data(mode) + DATA_LEN as u64 - rng.u64(..=size);
    }
    if once_in(rng, 64) {
        let before = data(mode).wrapping_sub(rng.u64(..=size));
        return if mode == CodeMode::Bits16 {
            before & 0xffff
        } else {
            before
        };
    }
    let target = middle(mode) - 512 + rng.u64(..1024);
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
        fit_string(rng, &instruction, registers);
        return Some(Vec::new());
    }
    if is_branch(&instruction) {
        return fit_branch(rng, encoded, registers);
    }
    if instruction.is_stack_instruction() {
        set_stack(rng, registers, RSP);
        set_stack(rng, registers, RBP);
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
            registers.gpr[RBX] = middle(registers.mode) - base(&instruction);
            Some(Vec::new())
        }
        Mnemonic::Cmpxchg if !has_memory(encoded) && once_in(rng, 2) => {
            registers.gpr[RAX] = registers.gpr[number(instruction.op0_register())];
            Some(Vec::new())
        }
        _ => Some(Vec::new()),
    }
}

/// Makes a register a stack pointer.
fn set_stack(rng: &mut Rng, registers: &mut Registers, register: usize) {
    let mode = registers.mode;
    let pointer = middle(mode) - 256 + rng.u64(..512);
    let pointer = if once_in(rng, 64) {
        data(mode) + rng.u64(..80)
    } else if once_in(rng, 3) {
        pointer
    } else {
        pointer & !7
    };
    let bytes = if mode == CodeMode::Bits16 { 2 } else { 8 };
    set_low(&mut registers.gpr[register], bytes, pointer);
}

fn fit_string(rng: &mut Rng, instruction: &Instruction, registers: &mut Registers) {
    let mode = registers.mode;
    let mut address = |near: u64| {
        if once_in(rng, 64) {
            data(mode) + DATA_LEN as u64 - rng.u64(..64)
        } else if once_in(rng, 4) {
            near + rng.u64(..16)
        } else {
            middle(mode) - 512 + rng.u64(..1024)
        }
    };
    let from = address(middle(mode));
    let to = address(from);
    let bytes = address_bytes(instruction);
    let from = from - base(instruction);
    for (register, value) in [(RSI, from), (RDI, to), (RCX, rng.u64(..48))] {
        set_low(&mut registers.gpr[register], bytes, value);
    }
}

/// Returns the size of a string instruction's addresses in bytes.
fn address_bytes(instruction: &Instruction) -> usize {
    let kinds = [instruction.op0_kind(), instruction.op1_kind()];
    let among = |wanted: [OpKind; 2]| kinds.iter().any(|kind| wanted.contains(kind));
    if among([OpKind::MemorySegSI, OpKind::MemoryESDI]) {
        2
    } else if among([OpKind::MemorySegESI, OpKind::MemoryESEDI]) {
        4
    } else {
        8
    }
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
    let bytes = instruction.op1_register().size();
    registers.gpr[register] = value(rng);
    set_low(&mut registers.gpr[register], bytes, offset);
    if registers.mode != CodeMode::Bits64 {
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
    if registers.mode != CodeMode::Bits64 {
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

/// Says whether an instruction pointer lies in the instruction under test.
fn is_inside(mode: CodeMode, address: u64, len: u64) -> bool {
    (mode.start()..mode.start() + len).contains(&address)
}

/// Returns an instruction pointer in the code pages that is not in the instruction.
fn code_address(rng: &mut Rng, mode: CodeMode, len: u64) -> u64 {
    loop {
        let address = CODE - mode.code_base() + rng.u64(..CODE_LEN as u64 - 1);
        if !is_inside(mode, address, len) {
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
    let mode = registers.mode;
    let narrowest = if mode == CodeMode::Bits16 { 2 } else { 4 };
    set_stack(rng, registers, RSP);
    match instruction.op0_kind() {
        OpKind::NearBranch16 if mode != CodeMode::Bits16 => None,
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            let target = code_address(rng, mode, len);
            encoded.set_immediate(target.wrapping_sub(encoded.next()));
            let target = encoded.instruction.near_branch_target();
            (!is_inside(mode, target, len)).then_some(Vec::new())
        }
        OpKind::Register if instruction.op0_register().size() >= narrowest => {
            let register = number(instruction.op0_register());
            if register == RSP {
                return None;
            }
            registers.gpr[register] = code_address(rng, mode, len);
            Some(vec![register])
        }
        // What memory holds follows in `fit_memory`.
        OpKind::Memory if instruction.memory_size().size() >= narrowest => Some(vec![RSP]),
        _ if instruction.mnemonic() == Mnemonic::Ret
            && (narrowest == 2 || returns_far_enough(&instruction)) =>
        {
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
    let mode = case.registers.mode;
    let top = read_stack(&case.registers);
    let at = |case: &Case| {
        instruction.virtual_address(0, 0, |register, _, _| match register {
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            Register::GS => Some(GS_BASE),
            Register::RIP | Register::EIP => None,
            other => Some(read(&case.registers, other)),
        })
    };
    match instruction.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call if instruction.op0_kind() == OpKind::Memory => {
            put(case, at(case)?, code_address(rng, mode, len), 8);
        }
        Mnemonic::Ret => put(case, top, code_address(rng, mode, len), 8),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            let flags = rng.u64(..) & Registers::FLAGS;
            put(case, top, flags, 8);
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

fn read_stack(registers: &Registers) -> u64 {
    match registers.mode {
        CodeMode::Bits16 => registers.gpr[RSP] & 0xffff,
        CodeMode::Bits32 | CodeMode::Bits64 => registers.gpr[RSP],
    }
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
        let place = at
            .wrapping_add(offset)
            .wrapping_sub(data(case.registers.mode)) as usize;
        if let Some(slot) = case.data.get_mut(place) {
            *slot = *byte;
        }
    }
}
