//! Segment loads, far transfers, software interrupts, system calls.

use iced_x86::{Code, Instruction, Register};

use super::{ELSEWHERE, made, scratch, selector};
use crate::layout::{ALIAS, END_VECTOR};
use crate::program::Kind;
use crate::slot::Slot;

/// Picks a selector for DS, ES or SS of 32-bit code: one that works is flat and writable, since QEMU checks neither limits nor types when it accesses
/// memory (see `deviation`).
fn flat_selector(slot: &mut Slot<'_>) -> u64 {
    const WRONG: [u64; 9] = [0x08, 0x30, 0x40, 0x7b, 0x8b, 0xa3, 0x7fb, 0xe1, 0x70];
    const KERNEL: [u64; 4] = [0x10, 0x23, 0x108, 0x0c];
    const USER: [u64; 4] = [0x23, 0x20, 0xf3, 0x0f];
    let rng = &mut *slot.rng;
    if rng.bool() {
        WRONG[rng.usize(..WRONG.len())]
    } else if slot.kind.is_kernel() {
        KERNEL[rng.usize(..4)]
    } else {
        USER[rng.usize(..4)]
    }
}

/// Picks a code selector: one that works without changing the width of the code, or one that does not work.
fn code_selector(slot: &mut Slot<'_>) -> u64 {
    const WRONG: [u64; 12] = [
        0, 0x10, 0x23, 0x30, 0x40, 0x6b, 0x83, 0xe0, 0x7fb, 0x13, 0x78, 0xe9,
    ];
    let same: &[u64] = if slot.bits() == 64 {
        &[0x08, 0x2b, 0x60, 0x8b, 0xfb, 0x110, 0x17, 0x63]
    } else {
        &[0x50, 0x1b, 0x0f, 0x103, 0x53]
    };
    let rng = &mut *slot.rng;
    if rng.u8(..) < 80 {
        // The last is 64-bit code of level 1, and works.
        let count = if slot.kind.bits() == 64 { 12 } else { 11 };
        WRONG[rng.usize(..count)]
    } else {
        same[rng.usize(..same.len())]
    }
}

/// Returns the next slot's address as code of a selector's level sees it.
fn landing(slot: &Slot<'_>, selector: u64) -> u64 {
    if selector & 3 == 3 {
        slot.next() & !ALIAS
    } else {
        slot.next() | ALIAS
    }
}

pub(super) fn segment(slot: &mut Slot<'_>) -> Code {
    let names = [
        Register::DS,
        Register::ES,
        Register::SS,
        Register::FS,
        Register::GS,
    ];
    let n = slot.rng.usize(..5);
    let to = names[n];
    let value = if n > 2 && slot.rng.u8(..16) == 0 {
        ELSEWHERE | 3
    } else if slot.bits() == 64 || n > 2 {
        selector(slot)
    } else {
        flat_selector(slot)
    };
    slot.load(Register::RAX, value);
    slot.add(made(Instruction::with2(
        Code::Mov_Sreg_r32m16,
        to,
        Register::EAX,
    )));
    Code::Mov_Sreg_r32m16
}

pub(super) fn pop_segment(slot: &mut Slot<'_>) -> Code {
    let value = if slot.bits() == 64 {
        selector(slot)
    } else {
        flat_selector(slot)
    };
    slot.fresh_stack();
    slot.push(value);
    let fs = slot.rng.bool();
    let code = match (slot.bits(), fs) {
        (64, true) => Code::Popq_FS,
        (64, false) => Code::Popq_GS,
        (_, true) => Code::Popd_DS,
        (_, false) => Code::Popd_SS,
    };
    let to = match code {
        Code::Popq_FS => Register::FS,
        Code::Popq_GS => Register::GS,
        Code::Popd_DS => Register::DS,
        _ => Register::SS,
    };
    slot.add(made(Instruction::with1(code, to)));
    code
}

/// Stores a far pointer of 32 bits; returns where.
fn store_pointer(slot: &mut Slot<'_>, selector: u64, offset: u64) -> u64 {
    let at = scratch(slot);
    slot.store(at, offset as u32);
    slot.store(at + 4, selector as u32);
    at
}

pub(super) fn far_pointer(slot: &mut Slot<'_>) -> Code {
    let value = if slot.bits() == 64 {
        selector(slot)
    } else {
        flat_selector(slot)
    };
    let at = store_pointer(slot, value, 0x1234_5678);
    let code = [
        Code::Lss_r32_m1632,
        Code::Lfs_r32_m1632,
        Code::Lgs_r32_m1632,
    ][slot.rng.usize(..3)];
    let memory = slot.memory(at);
    slot.add(made(Instruction::with2(code, Register::EBX, memory)));
    code
}

/// JMP and CALL to code, through gates, to tasks.
pub(super) fn far_branch(slot: &mut Slot<'_>) -> Code {
    let value = match slot.rng.u8(..) {
        0..90 => [0xa3, 0xa0, 0xb3, 0xc3, 0xc0, 0xd3][slot.rng.usize(..6)],
        _ => code_selector(slot),
    };
    if slot.kind == Kind::Kernel64 {
        // With a null SS QEMU's CALL pushes by 16 bits of RSP.
        slot.load(Register::RBX, 0x10);
        slot.add(made(Instruction::with2(
            Code::Mov_Sreg_r32m16,
            Register::SS,
            Register::EBX,
        )));
    }
    slot.fresh_stack();
    let target = landing(slot, if slot.kind.is_kernel() { 0 } else { 3 });
    let at = store_pointer(slot, value, target);
    let code = if slot.rng.bool() {
        Code::Call_m1632
    } else {
        Code::Jmp_m1632
    };
    let memory = slot.memory(at);
    slot.add(made(Instruction::with1(code, memory)));
    code
}

pub(super) fn far_return(slot: &mut Slot<'_>) -> Code {
    let value = code_selector(slot);
    let stack = selector(slot);
    slot.fresh_stack();
    if value & 3 == 3 {
        slot.push(stack);
        slot.push(0x1_8c00);
    }
    slot.push(value);
    let target = landing(slot, value);
    slot.push(target);
    let code = slot.by_width(Code::Retfq, Code::Retfd);
    slot.plain(code);
    code
}

pub(super) fn interrupt_return(slot: &mut Slot<'_>) -> Code {
    let value = code_selector(slot);
    let stack = match slot.rng.u8(..) {
        0..60 => selector(slot),
        _ if value & 3 == 3 => 0x23,
        _ => 0x10,
    };
    let flags = slot.rng.u64(..) & 0x25_7ed5 | u64::from(slot.rng.u8(..40) == 0) << 16;
    slot.fresh_stack();
    if slot.bits() == 64 || value & 3 == 3 {
        slot.push(stack);
        let pointer = if value & 3 == 3 { 0x1_8c00 } else { 0x3_8c00 };
        slot.push(pointer);
    }
    slot.push(flags);
    slot.push(value);
    let target = landing(slot, value);
    slot.push(target);
    let code = slot.by_width(Code::Iretq, Code::Iretd);
    slot.plain(code);
    code
}

pub(super) fn interrupt(slot: &mut Slot<'_>) -> Code {
    slot.fresh_stack();
    let vector = match slot.rng.u8(..) {
        0..10 => 3,
        10..20 => 4,
        20..30 => 0x41,
        30..40 => 0x20 + slot.rng.u8(..END_VECTOR - 0x20),
        _ => 0x30 + slot.rng.u8(..16),
    };
    slot.add(made(Instruction::with1(Code::Int_imm8, u32::from(vector))));
    Code::Int_imm8
}

pub(super) fn system_call(slot: &mut Slot<'_>) -> Code {
    let choice = if slot.kind.is_kernel() {
        slot.rng.u8(..12)
    } else {
        slot.rng.u8(..4)
    };
    let code = match choice {
        0 | 1 => Code::Syscall,
        2 => Code::Sysenter,
        3 => Code::Sysexitd,
        _ if slot.bits() == 64 => Code::Swapgs,
        _ => Code::Clts,
    };
    slot.plain(code);
    code
}
