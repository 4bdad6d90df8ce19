//! Random operands: any instruction from its encoding's description.
//!
//! Key function: [`instruction`]. Addresses lie mostly in the window, near its interesting ends; registers hold them because a slot begins by loading them.

use fastrand::Rng;
use iced_x86::{Code, Instruction, OpCodeOperandKind, OpKind, Register};

use crate::layout::{
    CODE, DATA, DEMAND, NO_EXECUTE, PAGE, READ_ONLY, STACK, SUPERVISOR, WINDOW_END,
};
use crate::program::Kind;

/// An instruction, and what a slot does before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    pub(crate) before: Vec<Instruction>,
    pub(crate) instruction: Instruction,
}

/// What operands depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) kind: Kind,
    /// Where branches go.
    pub(crate) next: u64,
}

/// Picks an address that a program may touch: mostly writable memory, mostly whole; sometimes a page that it may not, or the border of one.
pub(crate) fn address(rng: &mut Rng, kind: Kind) -> u64 {
    let page = match rng.u8(..) {
        0..170 => DATA,
        170..200 => DATA + PAGE,
        200..215 => READ_ONLY,
        215..230 => DEMAND,
        230..238 => SUPERVISOR,
        238..246 => STACK,
        246..250 => NO_EXECUTE,
        250..252 => WINDOW_END - 4,
        _ => CODE,
    };
    let offset = match rng.u8(..) {
        0..200 => rng.u64(..PAGE - 64) & !7,
        200..230 => rng.u64(..PAGE - 64),
        _ => PAGE - rng.u64(1..18),
    };
    let other_view = rng.u8(..) < 6;
    if other_view {
        page + offset
    } else {
        kind.view(page + offset)
    }
}

/// Returns an interesting number.
pub(crate) fn number(rng: &mut Rng) -> u64 {
    match rng.u8(..) {
        0..60 => rng.u64(..16),
        60..100 => rng.u64(..256),
        100..120 => !rng.u64(..16),
        120..150 => 1 << rng.u32(..64),
        150..170 => (1u64 << rng.u32(..64)).wrapping_sub(1),
        170..190 => 0x8000_0000 + rng.u64(..3) - 1,
        190..200 => 0x8000 + rng.u64(..3) - 1,
        _ => rng.u64(..),
    }
}

const WIDE: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const BYTES: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

/// Picks a general register of a size; the stack pointer seldom.
pub(crate) fn register(rng: &mut Rng, bytes: usize, bits: u32) -> Register {
    let count = if bits == 64 { 16 } else { 8 };
    let mut n = rng.usize(..count);
    if n == 4 && rng.u8(..) < 230 {
        n = rng.usize(..4);
    }
    let wide = WIDE[n];
    match bytes {
        1 if bits == 64 => BYTES[if n == 4 { 0 } else { rng.usize(..20) }],
        1 => BYTES[[0, 1, 2, 3, 16, 17, 18, 19][rng.usize(..8)]],
        2 => Register::AX + (wide as u32 - Register::RAX as u32),
        4 => Register::EAX + (wide as u32 - Register::RAX as u32),
        _ => wide,
    }
}

/// Returns MOV of a number to a register of the code's width.
pub(crate) fn load(to: Register, value: u64) -> Instruction {
    let made = if to.size() == 8 {
        if value >> 32 == 0 {
            Instruction::with2(Code::Mov_r32_imm32, to.full_register32(), value as u32)
        } else {
            Instruction::with2(Code::Mov_r64_imm64, to, value)
        }
    } else {
        Instruction::with2(Code::Mov_r32_imm32, to.full_register32(), value as u32)
    };
    made.expect("a register and a number")
}

/// Makes an instruction with random operands; none where an operand is of a kind that can't be made.
pub(crate) fn instruction(rng: &mut Rng, code: Code, scene: Scene) -> Option<Made> {
    let mut made = Made::default();
    made.instruction.set_code(code);
    for (n, kind) in (0..).zip(code.op_code().op_kinds()) {
        operand(rng, &mut made, n, *kind, scene)?;
    }
    prefixes(rng, &mut made.instruction);
    Some(made)
}

/// Adds LOCK and REP where they mean something, and sometimes a segment.
fn prefixes(rng: &mut Rng, instruction: &mut Instruction) {
    let code = instruction.op_code();
    let memory_first = instruction.op0_kind() == OpKind::Memory;
    if code.can_use_lock_prefix() && memory_first && rng.u8(..) < 80 {
        instruction.set_has_lock_prefix(true);
    }
    if code.can_use_rep_prefix() && rng.bool() {
        instruction.set_has_rep_prefix(true);
    } else if code.can_use_repne_prefix() && rng.bool() {
        instruction.set_has_repne_prefix(true);
    }
}

fn operand(
    rng: &mut Rng,
    made: &mut Made,
    n: u32,
    kind: OpCodeOperandKind,
    scene: Scene,
) -> Option<()> {
    use OpCodeOperandKind as K;
    let bits = scene.kind.bits();
    let is_register = rng.bool();
    let fixed = match kind {
        K::r8_or_mem if is_register => Some(register(rng, 1, bits)),
        K::r16_or_mem if is_register => Some(register(rng, 2, bits)),
        K::r32_or_mem if is_register => Some(register(rng, 4, bits)),
        K::r64_or_mem if is_register => Some(register(rng, 8, bits)),
        K::r8_reg | K::r8_opcode => Some(register(rng, 1, bits)),
        K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => Some(register(rng, 2, bits)),
        K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_reg_mem => Some(register(rng, 4, bits)),
        K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_reg_mem => Some(register(rng, 8, bits)),
        K::seg_reg => Some(Register::ES + rng.u32(..6)),
        K::es => Some(Register::ES),
        K::cs => Some(Register::CS),
        K::ss => Some(Register::SS),
        K::ds => Some(Register::DS),
        K::fs => Some(Register::FS),
        K::gs => Some(Register::GS),
        K::al => Some(Register::AL),
        K::cl => Some(Register::CL),
        K::ax => Some(Register::AX),
        K::dx => Some(Register::DX),
        K::eax => Some(Register::EAX),
        K::rax => Some(Register::RAX),
        _ => None,
    };
    if let Some(register) = fixed {
        made.instruction.set_op_register(n, register);
        return Some(());
    }
    match kind {
        K::mem | K::mem_mpx | K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem => {
            memory(rng, made, n, scene)
        }
        K::mem_offs => absolute(rng, made, n, scene),
        K::seg_rSI | K::es_rDI | K::seg_rDI => string(rng, made, n, kind, scene),
        K::br16_1 | K::br32_1 | K::br64_1 | K::br16_2 | K::br32_4 | K::br64_4 => {
            branch(made, n, kind, scene.next);
        }
        _ => return immediate(rng, &mut made.instruction, n, kind),
    }
    Some(())
}

/// A memory operand: absolute, relative, or by registers that are loaded before.
fn memory(rng: &mut Rng, made: &mut Made, n: u32, scene: Scene) {
    let bits = scene.kind.bits();
    let target = address(rng, scene.kind);
    let instruction = &mut made.instruction;
    instruction.set_op_kind(n, OpKind::Memory);
    // Address sizes other than the code's are rare.
    let (size, wide) = if bits == 64 && rng.u8(..) < 230 {
        (8, true)
    } else {
        (4, false)
    };
    match rng.u8(..) {
        0..60 if wide => {
            instruction.set_memory_base(Register::RIP);
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(target);
        }
        0..90 => {
            instruction.set_memory_displ_size(size);
            instruction.set_memory_displacement64(target);
            if bits == 64 {
                // Without base and index it takes an index of nothing to be absolute.
                instruction.set_memory_index_scale(1);
            }
        }
        _ => {
            let base = register(rng, size as usize, bits);
            let indexed = rng.bool();
            let index = register(rng, size as usize, bits);
            let displacement = rng.i32(-200..200) as i64;
            let mut rest = target.wrapping_sub(displacement as u64);
            if indexed && !matches!(index, Register::RSP | Register::ESP) && index != base {
                let (scale, value) = (1 << rng.u32(..4), rng.u64(..32));
                made.before.push(load(index, value));
                made.instruction.set_memory_index(index);
                made.instruction.set_memory_index_scale(scale);
                rest = rest.wrapping_sub(value * u64::from(scale));
            }
            made.before.push(load(base, rest));
            made.instruction.set_memory_base(base);
            made.instruction.set_memory_displ_size(1);
            made.instruction
                .set_memory_displacement64(displacement as u64);
        }
    }
    if rng.u8(..) < 12 {
        let segment = Register::ES + rng.u32(..6);
        made.instruction.set_segment_prefix(segment);
    }
}

/// The address in MOV's short form.
fn absolute(rng: &mut Rng, made: &mut Made, n: u32, scene: Scene) {
    let instruction = &mut made.instruction;
    instruction.set_op_kind(n, OpKind::Memory);
    let size = if scene.kind.bits() == 64 { 8 } else { 4 };
    instruction.set_memory_displ_size(size);
    instruction.set_memory_displacement64(address(rng, scene.kind));
}

/// An operand of a string instruction; its registers are loaded, and a count.
fn string(rng: &mut Rng, made: &mut Made, n: u32, kind: OpCodeOperandKind, scene: Scene) {
    let wide = scene.kind.bits() == 64;
    let source = kind == OpCodeOperandKind::seg_rSI;
    let (op_kind, register) = match (kind, wide) {
        (OpCodeOperandKind::seg_rSI, true) => (OpKind::MemorySegRSI, Register::RSI),
        (OpCodeOperandKind::seg_rSI, false) => (OpKind::MemorySegESI, Register::ESI),
        (OpCodeOperandKind::es_rDI, true) => (OpKind::MemoryESRDI, Register::RDI),
        (OpCodeOperandKind::es_rDI, false) => (OpKind::MemoryESEDI, Register::EDI),
        (_, true) => (OpKind::MemorySegRDI, Register::RDI),
        (_, false) => (OpKind::MemorySegEDI, Register::EDI),
    };
    made.instruction.set_op_kind(n, op_kind);
    let target = address(rng, scene.kind);
    made.before.push(load(register, target));
    if source || made.before.len() == 1 {
        let count = if rng.u8(..) < 200 {
            rng.u64(..20)
        } else {
            rng.u64(..600)
        };
        let counter = if wide { Register::RCX } else { Register::ECX };
        made.before.push(load(counter, count));
    }
}

fn branch(made: &mut Made, n: u32, kind: OpCodeOperandKind, next: u64) {
    use OpCodeOperandKind as K;
    let instruction = &mut made.instruction;
    let op_kind = match kind {
        K::br16_1 | K::br16_2 => OpKind::NearBranch16,
        K::br32_1 | K::br32_4 => OpKind::NearBranch32,
        _ => OpKind::NearBranch64,
    };
    instruction.set_op_kind(n, op_kind);
    instruction.set_near_branch64(next);
}

fn immediate(
    rng: &mut Rng,
    instruction: &mut Instruction,
    n: u32,
    kind: OpCodeOperandKind,
) -> Option<()> {
    use OpCodeOperandKind as K;
    let value = number(rng);
    let op_kind = match kind {
        K::imm8 if n > 1 && instruction.op_kind(n - 1) == OpKind::Immediate16 => {
            // ENTER's second one.
            instruction.set_op_kind(n, OpKind::Immediate8_2nd);
            instruction.set_immediate8_2nd(rng.u8(..8));
            return Some(());
        }
        K::imm8 => OpKind::Immediate8,
        K::imm8_const_1 => {
            instruction.set_op_kind(n, OpKind::Immediate8);
            instruction.set_immediate8(1);
            return Some(());
        }
        K::imm8sex16 => OpKind::Immediate8to16,
        K::imm8sex32 => OpKind::Immediate8to32,
        K::imm8sex64 => OpKind::Immediate8to64,
        K::imm16 => OpKind::Immediate16,
        K::imm32 => OpKind::Immediate32,
        K::imm32sex64 => OpKind::Immediate32to64,
        K::imm64 => OpKind::Immediate64,
        _ => return None,
    };
    instruction.set_op_kind(n, op_kind);
    match op_kind {
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate8to16 => instruction.set_immediate8to16(value as i8 as i16),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(value as i8 as i32),
        OpKind::Immediate8to64 => instruction.set_immediate8to64(value as i8 as i64),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        OpKind::Immediate32to64 => instruction.set_immediate32to64(value as i32 as i64),
        _ => instruction.set_immediate64(value),
    }
    Some(())
}
