//! Control, debug and model-specific registers, descriptor and page tables, flags, ports.

use iced_x86::{Code, Instruction, Register};

use super::{made, scratch, selector};
use crate::layout::{DATA, DEMAND, PAGE, READ_ONLY, SUPERVISOR, WINDOW_TABLE};
use crate::slot::Slot;

/// Changes bits of CR0 that do no harm. QEMU takes the combinations that are refused (AMD APM vol. 2, section 3.1.1).
pub(super) fn control_0(slot: &mut Slot<'_>) -> Code {
    let bits = [
        1 << 16,
        1 << 18,
        1 << 3,
        2,
        4,
        1 << 5,
        1 << 30,
        1 << 16 | 1 << 18,
    ];
    let change = bits[slot.rng.usize(..bits.len())];
    let from = slot.by_width(Code::Mov_r64_cr, Code::Mov_r32_cr);
    let to = slot.by_width(Code::Mov_cr_r64, Code::Mov_cr_r32);
    let register = slot.wide(Register::RAX);
    slot.add(made(Instruction::with2(from, register, Register::CR0)));
    slot.add(made(Instruction::with2(
        Code::Xor_EAX_imm32,
        Register::EAX,
        change,
    )));
    slot.add(made(Instruction::with2(to, Register::CR0, register)));
    to
}

pub(super) fn control_4(slot: &mut Slot<'_>) -> Code {
    let bits = [2, 3, 4, 7, 8, 9, 10, 11, 16, 20, 21];
    let change = 1u32 << bits[slot.rng.usize(..bits.len())];
    let from = slot.by_width(Code::Mov_r64_cr, Code::Mov_r32_cr);
    let to = slot.by_width(Code::Mov_cr_r64, Code::Mov_cr_r32);
    let register = slot.wide(Register::RAX);
    slot.add(made(Instruction::with2(from, register, Register::CR4)));
    slot.add(made(Instruction::with2(
        Code::Xor_EAX_imm32,
        Register::EAX,
        change,
    )));
    slot.add(made(Instruction::with2(to, Register::CR4, register)));
    to
}

/// CR2, CR3, CR8, debug registers, and the short ways to CR0.
pub(super) fn control_other(slot: &mut Slot<'_>) -> Code {
    let from = slot.by_width(Code::Mov_r64_cr, Code::Mov_r32_cr);
    let to = slot.by_width(Code::Mov_cr_r64, Code::Mov_cr_r32);
    let from_debug = slot.by_width(Code::Mov_r64_dr, Code::Mov_r32_dr);
    let to_debug = slot.by_width(Code::Mov_dr_r64, Code::Mov_dr_r32);
    let register = slot.wide(Register::RBX);
    let value = slot.rng.u64(..0xffff_ffff);
    match slot.rng.u8(..10) {
        0 => {
            slot.load(Register::RBX, value);
            slot.add(made(Instruction::with2(to, Register::CR2, register)));
            to
        }
        1 => {
            slot.add(made(Instruction::with2(from, register, Register::CR3)));
            slot.add(made(Instruction::with2(to, Register::CR3, register)));
            to
        }
        2 if slot.bits() == 64 => {
            slot.load(Register::RBX, value & 15);
            slot.add(made(Instruction::with2(to, Register::CR8, register)));
            to
        }
        3 => {
            slot.load(Register::RAX, value);
            slot.add(made(Instruction::with1(Code::Lmsw_r32m16, Register::EAX)));
            Code::Lmsw_r32m16
        }
        4 => {
            slot.plain(Code::Clts);
            Code::Clts
        }
        5 => {
            let name = Register::DR0 + slot.rng.u32(..8);
            slot.add(made(Instruction::with2(from_debug, register, name)));
            from_debug
        }
        6 | 7 => {
            // A breakpoint on the next slot.
            let next = slot.next();
            slot.load(Register::RBX, next);
            let n = slot.rng.u32(..4);
            slot.add(made(Instruction::with2(
                to_debug,
                Register::DR0 + n,
                register,
            )));
            slot.load(Register::RBX, 1 << (2 * n) | 0x400);
            slot.add(made(Instruction::with2(to_debug, Register::DR7, register)));
            to_debug
        }
        8 => {
            slot.load(Register::RBX, 0x400);
            slot.add(made(Instruction::with2(to_debug, Register::DR7, register)));
            to_debug
        }
        _ => {
            let name = if slot.bits() == 64 && slot.rng.bool() {
                Register::CR8
            } else {
                Register::CR2
            };
            slot.add(made(Instruction::with2(from, register, name)));
            from
        }
    }
}

pub(super) fn model_specific(slot: &mut Slot<'_>) -> Code {
    let numbers = [
        0xc000_0080u32,
        0xc000_0081,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
        0x174,
        0x175,
        0x176,
    ];
    let number = numbers[slot.rng.usize(..numbers.len())];
    slot.load(Register::RCX, number.into());
    if slot.rng.bool() {
        slot.plain(Code::Rdmsr);
        return Code::Rdmsr;
    }
    let value = match number {
        0xc000_0080 => 0xd00 | slot.rng.u64(..2),
        0xc000_0081 => [0x001b_0008, 0x0018_0008, 0x001b_000b][slot.rng.usize(..3)] << 32,
        _ => slot.rng.u64(..0x1000),
    };
    slot.load(Register::RAX, value & 0xffff_ffff);
    slot.load(Register::RDX, value >> 32);
    slot.plain(Code::Wrmsr);
    Code::Wrmsr
}

/// LAR, LSL, VERR, VERW, ARPL, and loading LDTR and TR.
pub(super) fn probe(slot: &mut Slot<'_>) -> Code {
    let choice = slot.rng.u8(..8);
    let value = match selector(slot) {
        // QEMU takes a null task, and dies of it.
        0..=3 if choice == 7 => 0x30,
        other => other,
    };
    slot.load(Register::RAX, value);
    let eax = Register::EAX;
    let instruction = match choice {
        0 | 1 => Instruction::with2(Code::Lar_r32_r32m16, Register::EBX, eax),
        2 | 3 => Instruction::with2(Code::Lsl_r32_r32m16, Register::EBX, eax),
        4 => Instruction::with1(Code::Verr_r32m16, eax),
        5 => Instruction::with1(Code::Verw_r32m16, eax),
        6 => Instruction::with1(Code::Lldt_r32m16, eax),
        _ => Instruction::with1(Code::Ltr_r32m16, eax),
    };
    let instruction = made(instruction);
    slot.add(instruction);
    if instruction.code() == Code::Lar_r32_r32m16 {
        // The accessed bit of code is not compared (see `deviation`).
        slot.add(made(Instruction::with1(Code::Sete_rm8, Register::CL)));
        let (ebx, bit) = (Register::EBX, 0x100u32);
        slot.add(made(Instruction::with2(Code::Or_rm32_imm32, ebx, bit)));
        slot.hide(0x10);
    }
    instruction.code()
}

/// Stores a descriptor-table register, and loads it with another limit.
pub(super) fn tables(slot: &mut Slot<'_>) -> Code {
    let at = scratch(slot);
    let memory = slot.memory(at);
    let interrupts = slot.rng.bool();
    let (store, load) = match (slot.bits(), interrupts) {
        (64, false) => (Code::Sgdt_m1664, Code::Lgdt_m1664),
        (64, true) => (Code::Sidt_m1664, Code::Lidt_m1664),
        (_, false) => (Code::Sgdt_m1632, Code::Lgdt_m1632),
        (_, true) => (Code::Sidt_m1632, Code::Lidt_m1632),
    };
    slot.add(made(Instruction::with1(store, memory)));
    if slot.rng.bool() {
        let limits: &[u32] = if interrupts {
            &[0x3ff, 0x38f, 0x3f7]
        } else {
            &[0x127, 0xff, 0x4f, 0x3b]
        };
        let limit = limits[slot.rng.usize(..limits.len())];
        slot.add(made(Instruction::with2(
            Code::Mov_rm16_imm16,
            memory,
            limit,
        )));
        slot.add(made(Instruction::with1(load, memory)));
    }
    load
}

/// Changes a page's entry and invalidates it.
pub(super) fn page_entry(slot: &mut Slot<'_>) -> Code {
    let pages = [DATA, DATA + PAGE, READ_ONLY, DEMAND, SUPERVISOR];
    let page = slot.kind.view(pages[slot.rng.usize(..pages.len())]);
    let entry = WINDOW_TABLE + page / PAGE * 8;
    let bits = [1u32, 2, 4, 0x20, 0x40, 0x60, 0x200];
    let bit = bits[slot.rng.usize(..bits.len())];
    let memory = slot.memory(entry);
    slot.add(made(Instruction::with2(Code::Xor_rm32_imm32, memory, bit)));
    let at = page + 8 * slot.rng.u64(..512);
    let memory = slot.memory(at);
    slot.add(made(Instruction::with1(Code::Invlpg_m, memory)));
    // The flags tell accessed and dirty bits, in which QEMU deviates.
    slot.hide(0x8d5);
    if slot.rng.bool() {
        let code = if slot.rng.bool() {
            Code::Mov_rm32_r32
        } else {
            Code::Mov_r32_rm32
        };
        slot.add(made(if code == Code::Mov_rm32_r32 {
            Instruction::with2(code, memory, Register::EDX)
        } else {
            Instruction::with2(code, Register::EDX, memory)
        }));
    }
    Code::Invlpg_m
}

pub(super) fn flags(slot: &mut Slot<'_>) -> Code {
    slot.fresh_stack();
    let value = slot.rng.u64(..) & 0x27_7ed7;
    slot.push(value);
    let code = slot.by_width(Code::Popfq, Code::Popfd);
    slot.plain(code);
    if slot.rng.bool() {
        slot.plain(slot.by_width(Code::Pushfq, Code::Pushfd));
    }
    code
}

/// Sets TF for a few instructions.
pub(super) fn single_step(slot: &mut Slot<'_>) -> Code {
    slot.fresh_stack();
    slot.push(0x302);
    let pop = slot.by_width(Code::Popfq, Code::Popfd);
    slot.plain(pop);
    match slot.rng.u8(..5) {
        0 => {
            slot.load(Register::RBX, 1);
        }
        1 => {
            let ss = if slot.kind.is_kernel() { 0x10 } else { 0x23 };
            slot.load(Register::RBX, ss);
            slot.add(made(Instruction::with2(
                Code::Mov_Sreg_r32m16,
                Register::ES,
                Register::EBX,
            )));
        }
        2 => slot.plain(Code::Syscall),
        3 => slot.add(made(Instruction::with1(Code::Int_imm8, 0x30))),
        _ => slot.plain(slot.by_width(Code::Pushfq, Code::Pushfd)),
    }
    slot.push(0x202);
    slot.plain(pop);
    pop
}

/// Ports that no device has, aligned, through the bitmap.
pub(super) fn ports(slot: &mut Slot<'_>) -> Code {
    let port = if slot.rng.bool() {
        0xe0 + slot.rng.u64(..4) * 4
    } else {
        0x300 + slot.rng.u64(..4) * 4
    };
    slot.load(Register::RDX, port);
    let dx = Register::DX;
    let instruction = made(match slot.rng.u8(..6) {
        0 => Instruction::with2(Code::In_AL_DX, Register::AL, dx),
        1 => Instruction::with2(Code::In_AX_DX, Register::AX, dx),
        2 => Instruction::with2(Code::In_EAX_DX, Register::EAX, dx),
        3 => Instruction::with2(Code::Out_DX_AL, dx, Register::AL),
        4 => Instruction::with2(Code::Out_DX_AX, dx, Register::AX),
        _ => Instruction::with2(Code::Out_DX_EAX, dx, Register::EAX),
    });
    slot.add(instruction);
    instruction.code()
}
