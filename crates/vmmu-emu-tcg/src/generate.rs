//! Random programs.
//!
//! Key type: [`Generator`]. Most slots try one instruction with random operands; the others try one of the prepared system sequences.

use std::collections::BTreeMap;

use fastrand::Rng;
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic,
    OpCodeOperandKind, RflagsBits,
};
use vmmu_emu::{DecodeError, Mode, decode};

use crate::layout::{CODE, END_VECTOR, PAGE, SLOT, SLOTS, STACK};
use crate::machine::Machine;
use crate::operand::{self, Scene};
use crate::program::{Kind, Program, Tried, word};
use crate::slot::Slot;
use crate::system;
use crate::world::Handlers;

/// What a baseline processor has.
const FEATURES: [CpuidFeature; 14] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::FSGSBASE,
    CpuidFeature::SMAP,
    CpuidFeature::CLFSH,
];

/// Instructions that have sequences of their own, or that say something else on each processor. (SGDT and SIDT across pages are two stores in QEMU.)
const APART: [Mnemonic; 52] = [
    Mnemonic::Hlt,
    Mnemonic::Cpuid,
    Mnemonic::Rdtsc,
    Mnemonic::In,
    Mnemonic::Out,
    Mnemonic::Insb,
    Mnemonic::Insw,
    Mnemonic::Insd,
    Mnemonic::Outsb,
    Mnemonic::Outsw,
    Mnemonic::Outsd,
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Lgdt,
    Mnemonic::Lidt,
    Mnemonic::Lldt,
    Mnemonic::Ltr,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Lmsw,
    Mnemonic::Rdmsr,
    Mnemonic::Wrmsr,
    Mnemonic::Rdpmc,
    Mnemonic::Int,
    Mnemonic::Int1,
    Mnemonic::Iret,
    Mnemonic::Iretd,
    Mnemonic::Iretq,
    Mnemonic::Retf,
    Mnemonic::Ret,
    Mnemonic::Syscall,
    Mnemonic::Sysret,
    Mnemonic::Sysretq,
    Mnemonic::Sysenter,
    Mnemonic::Sysexit,
    Mnemonic::Sysexitq,
    Mnemonic::Invlpg,
    Mnemonic::Invd,
    Mnemonic::Wbinvd,
    Mnemonic::Lds,
    Mnemonic::Les,
    Mnemonic::Lss,
    Mnemonic::Lfs,
    Mnemonic::Lgs,
    Mnemonic::Swapgs,
    Mnemonic::Popf,
    Mnemonic::Popfd,
    Mnemonic::Popfq,
    Mnemonic::Rsm,
    Mnemonic::Reservednop,
];

/// Makes programs.
#[derive(Debug)]
pub struct Generator {
    /// Instructions to try in code of 64 bits, and of 32.
    codes: BTreeMap<u32, Vec<Code>>,
    handlers: Handlers,
}

/// Says whether an instruction may stand anywhere with any operands.
fn is_tried(code: Code, bits: u32) -> bool {
    let described = code.op_code();
    let mode = if bits == 64 {
        described.mode64()
    } else {
        described.mode32()
    };
    let plain = described.is_instruction() && described.encoding() == EncodingKind::Legacy;
    let known = code.cpuid_features().iter().all(|f| FEATURES.contains(f));
    let register_moves = matches!(
        code,
        Code::Mov_r32_cr
            | Code::Mov_r64_cr
            | Code::Mov_cr_r32
            | Code::Mov_cr_r64
            | Code::Mov_r32_dr
            | Code::Mov_r64_dr
            | Code::Mov_dr_r32
            | Code::Mov_dr_r64
    );
    let far = matches!(code.mnemonic(), Mnemonic::Jmp | Mnemonic::Call) && !is_near_direct(code);
    let apart = APART.contains(&code.mnemonic()) || UNDEFINED.contains(&code);
    let narrow_branch = described
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2));
    mode && plain && known && !register_moves && !far && !apart && !narrow_branch
}

/// Encodings that the manuals leave undefined: BSWAP and double shifts of 16 bits, the upper half of a register that
/// BSF and BSR leave, the other number of TEST; and CLFLUSH, which reads a byte (AMD APM vol. 3), but does
/// nothing in QEMU.
const UNDEFINED: [Code; 12] = [
    Code::Bswap_r16,
    Code::Test_rm8_imm8_F6r1,
    Code::Test_rm16_imm16_F7r1,
    Code::Test_rm32_imm32_F7r1,
    Code::Test_rm64_imm32_F7r1,
    Code::Shld_rm16_r16_imm8,
    Code::Shld_rm16_r16_CL,
    Code::Shrd_rm16_r16_imm8,
    Code::Shrd_rm16_r16_CL,
    Code::Bsf_r32_rm32,
    Code::Bsr_r32_rm32,
    Code::Clflush_m8,
];

const fn is_near_direct(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_rel8_64
            | Code::Jmp_rel32_64
            | Code::Jmp_rel8_32
            | Code::Jmp_rel32_32
            | Code::Call_rel32_64
            | Code::Call_rel32_32
    )
}

/// Says whether QEMU finds another address for the memory operand: relative to RIP it forgets the immediate byte of double shifts.
fn is_misplaced(instruction: &Instruction) -> bool {
    let double_shift = matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    double_shift && instruction.is_ip_rel_memory_operand()
}

/// Returns undefined flags as RFLAGS has them.
fn undefined_flags(instruction: &Instruction) -> u64 {
    let mut bits = instruction.rflags_undefined();
    // A rotation by the width leaves OF, or does not.
    if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) {
        bits |= RflagsBits::OF;
    }
    let pairs = [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, 0x800),
    ];
    pairs
        .iter()
        .filter(|(flag, _)| bits & flag != 0)
        .fold(0, |all, (_, flag)| all | flag)
}

impl Generator {
    pub(crate) fn new(handlers: Handlers) -> Self {
        let codes = [64, 32].map(|bits| {
            let codes = Code::values().filter(|code| is_tried(*code, bits));
            (bits, codes.collect())
        });
        Self {
            codes: codes.into(),
            handlers,
        }
    }

    /// Returns how many instructions it may try.
    #[must_use]
    pub fn known(&self) -> usize {
        let mut all: Vec<_> = self.codes.values().flatten().map(|c| *c as u16).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    /// Makes a program of a kind from a seed.
    #[must_use]
    pub fn program(&self, kind: Kind, seed: u64) -> Program {
        let mut rng = Rng::with_seed(seed);
        let mut code = Vec::new();
        let mut tried = Vec::new();
        while tried.len() < SLOTS as usize - 1 {
            let at = kind.view(CODE) + SLOT * tried.len() as u64;
            let Some((bytes, one)) = self.slot(&mut rng, kind, at) else {
                continue;
            };
            code.extend(bytes);
            tried.push(one);
        }
        code.extend([0xcd, END_VECTOR]);
        code.resize(PAGE as usize, 0xcc);
        Program {
            kind,
            seed,
            words: self.words(&mut rng, kind),
            code,
            data: (0..PAGE).map(|_| rng.u8(..)).collect(),
            tried,
        }
    }

    fn slot(&self, rng: &mut Rng, kind: Kind, at: u64) -> Option<(Vec<u8>, Tried)> {
        let mut slot = Slot::new(rng, kind, at);
        if slot.rng.u8(..) < 60 {
            slot.fresh_stack();
        }
        let tried = if slot.rng.u8(..) < 100 {
            Tried {
                code: system::fill(&mut slot),
                undefined: 0,
            }
        } else {
            self.any(&mut slot)?
        };
        Some((slot.finish()?, tried))
    }

    /// Any instruction with any operands.
    fn any(&self, slot: &mut Slot<'_>) -> Option<Tried> {
        let codes = &self.codes[&slot.bits()];
        let code = codes[slot.rng.usize(..codes.len())];
        let scene = Scene {
            kind: slot.kind,
            next: slot.next(),
        };
        let made = operand::instruction(slot.rng, code, scene)?;
        if is_misplaced(&made.instruction) {
            return None;
        }
        for before in made.before {
            slot.add(before);
        }
        slot.add(made.instruction);
        let undefined = undefined_flags(&made.instruction);
        slot.hide(undefined);
        Some(Tried { code, undefined })
    }

    fn words(&self, rng: &mut Rng, kind: Kind) -> [u64; word::COUNT] {
        let mut words = [0; word::COUNT];
        for register in &mut words[..16] {
            *register = match rng.u8(..) {
                0..128 => operand::number(rng),
                _ => operand::address(rng, kind),
            };
        }
        let (cs, ss) = kind.selectors();
        words[word::RIP] = kind.view(CODE);
        words[word::CS] = cs.into();
        words[word::FLAGS] =
            0x202 | rng.u64(..) & 0x8d5 | if rng.u8(..4) == 0 { 0x3000 } else { 0 };
        words[word::RSP] = kind.view(STACK) + 0xc00;
        words[word::SS] = ss.into();
        words[word::DS..word::DS + 4].fill(ss.into());
        words[word::CR0] = 0x8001_0033 ^ u64::from(rng.u8(..8) == 0) << 16;
        let options: u64 = [2, 3, 8, 11, 16, 20, 21]
            .map(|bit| 1u64 << bit)
            .iter()
            .sum();
        // Under SMAP QEMU's far returns fail for level 3 (see `deviation`).
        let options = if kind.is_kernel() {
            options
        } else {
            options & !(1 << 21)
        };
        words[word::CR4] = 0x620 | rng.u64(..) & options;
        let flags_of_call = 0x4_0700 & rng.u64(..) | 0x100;
        let msrs = [
            0xd01,
            // SYSRET adds the level, if it is not there.
            [0x001b_0008, 0x0018_0008][rng.usize(..2)] << 32,
            self.handlers.system_call,
            self.handlers.system_call_32,
            flags_of_call,
            rng.u64(..0x100) * 8,
            rng.u64(..0x100) * 8,
            rng.u64(..0x100) * 8,
            0,
            0,
            0,
            0x0007_0406_0007_0406,
            7,
        ];
        words[word::MSRS..].copy_from_slice(&msrs);
        words
    }
}

/// Returns the instructions among those known to the generator that the emulator does not know, by trying to decode one of each.
#[must_use]
pub fn unsupported(generator: &Generator) -> Vec<Code> {
    let mut found = Vec::new();
    for (bits, codes) in &generator.codes {
        let (mode, kind) = if *bits == 64 {
            (Mode::Bits64, Kind::User64)
        } else {
            (Mode::Bits32, Kind::User32)
        };
        for code in codes {
            let mut rng = Rng::with_seed(1);
            let mut slot = Slot::new(&mut rng, kind, kind.view(CODE));
            let scene = Scene {
                kind,
                next: slot.next(),
            };
            let Some(made) = operand::instruction(slot.rng, *code, scene) else {
                continue;
            };
            slot.add(made.instruction);
            let Some(bytes) = slot.finish() else { continue };
            let decoded = decode::<Machine>(&bytes[..15], mode);
            if matches!(decoded, Err(DecodeError::Unsupported)) && !found.contains(code) {
                found.push(*code);
            }
        }
    }
    found
}

/// Returns the text of the instructions of a slot.
pub(crate) fn listing(program: &Program, slot: usize) -> Vec<String> {
    use iced_x86::{Formatter, NasmFormatter};
    let start = slot * SLOT as usize;
    let bytes = &program.code[start..start + SLOT as usize];
    let at = program.kind.view(CODE) + start as u64;
    let mut decoder = Decoder::with_ip(program.kind.bits(), bytes, at, DecoderOptions::NONE);
    let mut lines = Vec::new();
    let mut formatter = NasmFormatter::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.code() == Code::Int3 && lines.len() > 1 {
            break;
        }
        let mut text = format!("{:#x}: ", instruction.ip());
        formatter.format(&instruction, &mut text);
        if instruction.is_invalid() {
            let from = start + (instruction.ip() - at) as usize;
            text += &format!(" {:02x?}", &program.code[from..from + 8]);
        }
        lines.push(text);
    }
    lines
}
