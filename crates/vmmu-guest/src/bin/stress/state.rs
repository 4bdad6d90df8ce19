//! The processor's own state across what a hypervisor does unseen: registers, flags, CR2.
#![allow(unsafe_code)]

use core::arch::asm;

use vmmu_guest::machine::register::{self, invalidate_page};
use vmmu_guest::machine::{Entry, Level, Va};

use crate::access::{Check, Kind, Privilege, same};
use crate::lab::{DATA, Lab, PWU};

/// General registers that a sweep loads with values of their own (all but RSP, RBX and RBP, and RAX, which leads).
const GENERAL: usize = 12;
/// 128-bit registers.
const WIDE: usize = 16;

/// What a sweep finds in the registers after it.
#[repr(C, align(16))]
struct Found {
    general: [u64; GENERAL],
    wide: [[u64; 2]; WIDE],
}

/// Loads every register with a value of its own, touches each page from `first` on by load, store or both, and notes what
/// the registers hold then. Returns the flags.
fn sweep(first: Va, pages: u64, found: &mut Found) -> u64 {
    let flags: u64;
    // SAFETY: all registers that change are declared; the pages are the caller's test memory.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rdx",
            "mov rbx, rcx",
            "mov rcx, 0x1111111111111111", "mov rdx, 0x2222222222222222",
            "mov rsi, 0x3333333333333333", "mov rdi, 0x4444444444444444",
            "mov r8, 0x5555555555555555", "mov r9, 0x6666666666666666",
            "mov r10, 0x7777777777777777", "mov r11, 0x8888888888888888",
            "mov r12, 0x9999999999999999", "mov r13, 0xaaaaaaaaaaaaaaaa",
            "mov r14, 0xbbbbbbbbbbbbbbbb", "mov r15, 0xcccccccccccccccc",
            "movq xmm0, rcx", "movq xmm1, rdx", "movq xmm2, rsi", "movq xmm3, rdi",
            "movq xmm4, r8", "movq xmm5, r9", "movq xmm6, r10", "movq xmm7, r11",
            "movq xmm8, r12", "movq xmm9, r13", "movq xmm10, r14", "movq xmm11, r15",
            "movq xmm12, rcx", "movq xmm13, rdx", "movq xmm14, rsi", "movq xmm15, rdi",
            "punpcklqdq xmm0, xmm1", "punpcklqdq xmm15, xmm14",
            // RBX pages; carry and direction set.
            "cmp rbx, -1",
            "std",
            "2: mov rbp, [rax]",
            "mov [rax + 8], rbp",
            "lea rax, [rax + 4096]",
            "lea rbx, [rbx - 1]",
            "xchg rbx, rcx",
            "jrcxz 3f",
            "xchg rbx, rcx",
            "jmp 2b",
            "3: xchg rbx, rcx",
            "pushfq",
            "pop rbp",
            "cld",
            "pop rax",
            "mov [rax], rcx", "mov [rax + 8], rdx", "mov [rax + 16], rsi", "mov [rax + 24], rdi",
            "mov [rax + 32], r8", "mov [rax + 40], r9", "mov [rax + 48], r10", "mov [rax + 56], r11",
            "mov [rax + 64], r12", "mov [rax + 72], r13", "mov [rax + 80], r14", "mov [rax + 88], r15",
            "movaps [rax + 96], xmm0", "movaps [rax + 112], xmm1", "movaps [rax + 128], xmm2", "movaps [rax + 144], xmm3",
            "movaps [rax + 160], xmm4", "movaps [rax + 176], xmm5", "movaps [rax + 192], xmm6", "movaps [rax + 208], xmm7",
            "movaps [rax + 224], xmm8", "movaps [rax + 240], xmm9", "movaps [rax + 256], xmm10",
            "movaps [rax + 272], xmm11", "movaps [rax + 288], xmm12", "movaps [rax + 304], xmm13",
            "movaps [rax + 320], xmm14", "movaps [rax + 336], xmm15",
            "mov rax, rbp",
            "pop rbp",
            "pop rbx",
            inout("rax") first.value() => flags, inout("rcx") pages => _, inout("rdx") found as *mut Found => _,
            out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _,
            out("r14") _, out("r15") _, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
    flags
}

/// The value that register `number` of the general ones has in a sweep.
fn pattern(number: usize) -> u64 {
    (number as u64 + 1) * 0x1111_1111_1111_1111
}

/// Faults that the guest does not see leave its registers, its 128-bit registers and its flags alone.
pub(crate) fn registers_survive(lab: &mut Lab) -> Check {
    const PAGES: u64 = 16;
    const CARRY_AND_DIRECTION: u64 = 0x401;
    for round in 0..8 {
        let va = Va::new(0x160_0000_0000 + (round << 30));
        for page in 0..PAGES {
            lab.map_data(va.page(page), page * 9 + round, PWU);
        }
        let mut found = Found {
            general: [0; GENERAL],
            wide: [[0; 2]; WIDE],
        };
        let flags = sweep(va, PAGES, &mut found);
        for (number, value) in found.general.into_iter().enumerate() {
            same("general register", number as u64, value, pattern(number))?;
        }
        for (number, [low, high]) in found.wide.into_iter().enumerate() {
            let upper = match number {
                0 => pattern(1),
                15 => pattern(2),
                _ => 0,
            };
            let lower = if number == 15 {
                pattern(3)
            } else {
                pattern(number % GENERAL)
            };
            same("128-bit register, low", number as u64, low, lower)?;
            same("128-bit register, high", number as u64, high, upper)?;
        }
        same("flags", round, flags & 0x4c1, CARRY_AND_DIRECTION)?;
        for page in 0..PAGES {
            lab.expect_frame(va.page(page), page * 9 + round)?;
        }
    }
    Ok(())
}

/// CR2 changes when the guest gets a page fault or writes it, never otherwise.
pub(crate) fn cr2_survives(lab: &mut Lab) -> Check {
    let va = Va::new(0x162_0000_0000);
    for page in 0..32 {
        lab.map_data(va.page(page), page, PWU);
    }
    for page in 0..32_u64 {
        let value = 0x1234_5000 + page;
        // SAFETY: CR2 is nothing but a note; the page is test memory.
        unsafe {
            asm!("mov cr2, {}", "mov {}, [{}]", in(reg) value, out(reg) _, in(reg) va.page(page).value(), options(nostack))
        };
        same("CR2 after a load", page, register::cr2(), value)?;
        va.page(page).plus(8).store(page);
        same("CR2 after a store", page, register::cr2(), value)?;
        invalidate_page(va.page(page));
        lab.flush();
        same("CR2 after a flush", page, register::cr2(), value)?;
    }
    lab.expect_fault(Kind::Load, Privilege::User, va.page(33).plus(5), 4)?;
    same(
        "CR2 after a fault",
        0,
        register::cr2(),
        va.page(33).plus(5).value(),
    )
}

/// MOV from and to CR3 through one register, the register kept in another. Yields what was read.
macro_rules! cr3_through {
    ($register:tt, $keep:tt, $seen:tt) => {{
        let seen: u64;
        // SAFETY: the same root is loaded again, and the register is put back.
        unsafe {
            asm!(concat!("mov ", $keep, ", ", $register), concat!("mov ", $register, ", cr3"),
                 concat!("mov cr3, ", $register), concat!("mov ", $seen, ", ", $register),
                 concat!("mov ", $register, ", ", $keep), out($keep) _, out($seen) seen, options(nostack));
        }
        seen
    }};
}

/// MOV CR3 with every general register: the value is right, and the flush happens.
pub(crate) fn cr3_through_every_register(lab: &mut Lab) -> Check {
    let va = Va::new(0x162_4000_0000);
    let forms: [fn() -> u64; 16] = [
        || cr3_through!("rax", "r8", "r9"),
        || cr3_through!("rcx", "r8", "r9"),
        || cr3_through!("rdx", "r8", "r9"),
        || cr3_through!("rbx", "r8", "r9"),
        || cr3_through!("rsp", "r8", "r9"),
        || cr3_through!("rbp", "r8", "r9"),
        || cr3_through!("rsi", "r8", "r9"),
        || cr3_through!("rdi", "r8", "r9"),
        || cr3_through!("r8", "rax", "rcx"),
        || cr3_through!("r9", "rax", "rcx"),
        || cr3_through!("r10", "rax", "rcx"),
        || cr3_through!("r11", "rax", "rcx"),
        || cr3_through!("r12", "rax", "rcx"),
        || cr3_through!("r13", "rax", "rcx"),
        || cr3_through!("r14", "rax", "rcx"),
        || cr3_through!("r15", "rax", "rcx"),
    ];
    for (number, form) in (0..).zip(forms) {
        for round in 0..2 {
            let frame = 2 * number + round;
            lab.map_data(va, frame, PWU);
            same("CR3", number, form(), lab.root.address())?;
            lab.expect_frame(va, frame)?;
        }
    }
    Ok(())
}

/// INVLPG with an operand as written, RAX holding the address less `$offset`.
macro_rules! invlpg {
    ($operand:literal, $offset:expr) => {
        |address: u64| {
            // SAFETY: dropping a cached translation changes nothing that the tables don't say; RBX and RBP are put back.
            unsafe {
                asm!("mov r8, rbx", "mov r9, rbp", "mov rcx, 3", "mov rdx, rax", "mov rbx, rax", "mov rbp, rax",
                     "mov rsi, rax", "mov rdi, rax", "mov r12, rax", "mov r13, rax",
                     concat!("invlpg ", $operand), "mov rbx, r8", "mov rbp, r9",
                     inout("rax") address.wrapping_sub($offset) => _, out("rcx") _, out("rdx") _, out("rsi") _,
                     out("rdi") _, out("r8") _, out("r9") _, out("r12") _, out("r13") _, options(nostack));
            }
        }
    };
}

/// Bases of FS and GS in `invalidate_forms`.
const FS_BASE: u64 = 0x7000;
const GS_BASE: u64 = 0x12_3456_7000;

/// INVLPG with every shape of operand: registers, displacements, scaled indices, segment bases.
pub(crate) fn invalidate_forms(lab: &mut Lab) -> Check {
    let va = Va::new(0x162_8000_0000);
    let forms: [fn(u64); 16] = [
        invlpg!("[rax]", 0),
        invlpg!("[rcx + rax]", 3),
        invlpg!("[rdx + 0x7f]", 0x7f),
        invlpg!("[rbx - 0x80]", -0x80_i64 as u64),
        invlpg!("[rbp]", 0),
        invlpg!("[rsi + 0x12345]", 0x12345),
        invlpg!("[rdi + rcx * 8 + 0x10]", 0x28),
        invlpg!("[r12]", 0),
        invlpg!("[r13]", 0),
        invlpg!("[r13 + rcx * 4]", 12),
        invlpg!("[r12 + rcx * 2 - 0x10000]", 6_u64.wrapping_sub(0x10000)),
        invlpg!("fs:[rax]", FS_BASE),
        invlpg!("fs:[rbp + rcx * 8 + 1]", FS_BASE + 25),
        invlpg!("gs:[r13]", GS_BASE),
        invlpg!("gs:[rax + 0x55]", GS_BASE + 0x55),
        // DS and ES have no base in 64-bit mode.
        invlpg!("es:[rdx]", 0),
    ];
    register::set_segment_bases(FS_BASE, GS_BASE);
    let result = (0..).zip(forms).try_for_each(|(number, form)| {
        for round in 0..2 {
            lab.map_data(va, 2 * number + round, PWU);
            form(va.plus(0x234).value());
            lab.expect_frame(va, 2 * number + round)?;
        }
        Ok(())
    });
    register::set_segment_bases(0, 0);
    result
}

/// Control registers read as they were written, by every instruction that reaches them.
pub(crate) fn control_registers(_: &mut Lab) -> Check {
    const TASK_SWITCHED: u64 = 8;
    const LONG_MODE_ACTIVE_NXE: u64 = 0xd00;
    let before = register::cr0();
    same("CR0", 0, before & 0x8001_0013, 0x8001_0013)?;
    same("CR4", 0, register::cr4() & 0x6b0, 0x620)?;
    same("EFER", 0, register::efer() & 0x1f01, LONG_MODE_ACTIVE_NXE)?;
    let (set, cleared, word, lmsw): (u64, u64, u64, u64);
    // SAFETY: only CR0.TS changes, no instruction that it forbids is here, and it is clear again at the end.
    unsafe {
        asm!(
            "mov r9, cr0", "or r9, 8", "mov cr0, r9", "mov r10, cr0", "smsw r11",
            "clts", "mov r12, cr0",
            "mov r13, r10", "lmsw r13w", "mov r13, cr0", "clts",
            out("r9") _, out("r10") set, out("r11") word, out("r12") cleared, out("r13") lmsw, options(nostack),
        );
    }
    same("CR0 with TS", 0, set, before | TASK_SWITCHED)?;
    same("SMSW", 0, word & 0xffff, set & 0xffff)?;
    same("CR0 after CLTS", 0, cleared, before)?;
    same("CR0 after LMSW", 0, lmsw, before | TASK_SWITCHED)?;
    same("CR0 in the end", 0, register::cr0(), before)
}

/// A change that no flush has followed: the old frame may show, or the new one, and nothing else.
pub(crate) fn unflushed_change(lab: &mut Lab) -> Check {
    let va = Va::new(0x162_c000_0000);
    for round in 0..60 {
        let (old, new) = (round % 13, 20 + round % 17);
        lab.map_data(va, old, PWU);
        invalidate_page(va);
        lab.expect_frame(va, old)?;
        lab.map_data(va, new, PWU);
        let seen = va.load();
        if seen != crate::lab::tag(DATA.next(old)) {
            same(
                "frame before the flush",
                va.value(),
                seen,
                crate::lab::tag(DATA.next(new)),
            )?;
        }
        let (table, index) = lab.slot(va, Level::Pt);
        same(
            "entry",
            va.value(),
            table.get(index).bits() & !0x60,
            Entry::new(DATA.next(new), PWU).bits(),
        )?;
        if round % 2 == 0 {
            invalidate_page(va);
        } else {
            lab.flush();
        }
        lab.expect_frame(va, new)?;
    }
    Ok(())
}
