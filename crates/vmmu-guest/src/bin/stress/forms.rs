//! Instructions that a hypervisor serves, in the forms that compilers don't write: operands in memory, repeated port accesses, needless prefixes;
//! and memory where nothing is.
#![allow(unsafe_code)]

use core::arch::asm;

use vmmu_guest::machine::register::{self, invalidate_page};
use vmmu_guest::machine::{Entry, Level, Va};

use crate::access::{Check, same};
use crate::lab::{Lab, PWU};
use crate::probe;

/// A port that a hypervisor keeps to itself: the scratch register of the second serial port.
const FOREIGN_PORT: u16 = 0x2ff;

/// SMSW, LMSW and CLTS with operands in memory: on a fresh page, across pages, on a page that a page fault brings.
pub(crate) fn status_word_in_memory(lab: &mut Lab) -> Check {
    const TASK_SWITCHED: u64 = 8;
    const MARKED: u64 = Entry::A | Entry::D;
    let va = Va::new(0x163_0000_0000);
    let low = register::cr0() & 0xffff;
    lab.map_data(va, 0, PWU);
    lab.map_data(va.page(1), 5, PWU);
    let smsw = |at: Va| {
        // SAFETY: the operand is test memory.
        unsafe { asm!("smsw word ptr [{}]", in(reg) at.value(), options(nostack)) };
    };
    smsw(va.plus(16));
    same("SMSW to memory", 0, va.plus(16).load() & 0xffff, low)?;
    let entry = lab.get(va, Level::Pt).bits();
    same("marks of SMSW", 0, entry & MARKED, MARKED)?;
    smsw(va.plus(4095));
    same(
        "SMSW across pages, low",
        0,
        va.plus(4088).load() >> 56,
        low & 0xff,
    )?;
    same(
        "SMSW across pages, high",
        0,
        va.page(1).load() & 0xff,
        low >> 8,
    )?;
    // The page goes; the fault brings it back.
    let entry = lab.get(va, Level::Pt);
    let slot = lab.slot(va, Level::Pt);
    lab.set(va, Level::Pt, Entry::raw(0));
    invalidate_page(va);
    probe::repair(1, slot, entry);
    smsw(va.plus(24));
    same("faults of SMSW", 0, probe::repairs_left(), 0)?;
    same("SMSW after a fault", 0, va.plus(24).load() & 0xffff, low)?;
    va.plus(32).store(low | TASK_SWITCHED);
    let (set, cleared): (u64, u64);
    // SAFETY: only CR0.TS changes, no instruction that it forbids is here, and it is clear again at the end.
    unsafe {
        asm!("lmsw word ptr [{at}]", "mov {set}, cr0", ".byte 0x66", "clts", "mov {cleared}, cr0",
             at = in(reg) va.plus(32).value(), set = out(reg) set, cleared = out(reg) cleared, options(nostack));
    }
    same(
        "CR0 after LMSW of memory",
        0,
        set & 0xffff,
        low | TASK_SWITCHED,
    )?;
    same("CR0 after CLTS with a prefix", 0, cleared & 0xffff, low)
}

/// CPUID, MOV to CR3 and RDMSR behind prefixes that mean nothing to them.
pub(crate) fn needless_prefixes(lab: &mut Lab) -> Check {
    let va = Va::new(0x163_4000_0000);
    let (plain, prefixed): (u64, u64);
    // SAFETY: CPUID and RDMSR of EFER only read; RBX is put back.
    unsafe {
        asm!("mov r8, rbx", "xor eax, eax", "cpuid", "mov r9, rbx", "xor eax, eax", ".byte 0x66", "cpuid", "mov r10, rbx",
             "mov rbx, r8", out("rax") _, out("rcx") _, out("rdx") _, out("r8") _, out("r9") plain, out("r10") prefixed,
             options(nostack));
    }
    same("CPUID with a prefix", 0, prefixed, plain)?;
    let efer: u64;
    // SAFETY: as above.
    unsafe {
        asm!("mov ecx, 0xc0000080", ".byte 0x36", "rdmsr", out("rax") efer, out("rcx") _, out("rdx") _, options(nostack));
    }
    same(
        "EFER with a prefix",
        0,
        efer & 0xffff_ffff,
        register::efer() & 0xffff_ffff,
    )?;
    for round in 0..4 {
        lab.map_data(va, round, PWU);
        // SAFETY: the same root is loaded again.
        unsafe {
            asm!("mov rax, cr3", ".byte 0x66", "mov cr3, rax", out("rax") _, options(nostack));
        }
        lab.expect_frame(va, round)?;
    }
    Ok(())
}

/// INS and OUTS, repeated, across a page's end, at a port that has nothing.
pub(crate) fn repeated_ports(lab: &mut Lab) -> Check {
    const BYTES: u64 = 12;
    let va = Va::new(0x163_8000_0000);
    lab.map_data(va, 3, PWU);
    lab.map_data(va.page(1), 8, PWU);
    let start = va.plus(4096 - 8);
    for at in [start, va.page(1)] {
        at.store(0x5555_5555_5555_5555);
    }
    let nothing: u8;
    // SAFETY: the port has nothing, or the scratch register of a serial port.
    unsafe { asm!("in al, dx", out("al") nothing, in("dx") FOREIGN_PORT, options(nostack)) };
    let nothing = u64::from_le_bytes([nothing; 8]);
    let (left, end): (u64, u64);
    // SAFETY: the port has nothing; the memory is the test's.
    unsafe {
        asm!("rep insb", inout("rcx") BYTES => left, inout("rdi") start.value() => end, in("dx") FOREIGN_PORT, options(nostack));
    }
    same("count after INS", 0, left, 0)?;
    same("address after INS", 0, end, start.value() + BYTES)?;
    same("bytes of INS, first page", 0, start.load(), nothing)?;
    let second = va.page(1).load();
    let expected = 0x5555_5555 << 32 | nothing & 0xffff_ffff;
    same("bytes of INS, second page", 0, second, expected)?;
    let (left, end): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!("rep outsd", inout("rcx") 3_u64 => left, inout("rsi") start.value() => end, in("dx") FOREIGN_PORT - 3, options(nostack));
    }
    same("count after OUTS", 0, left, 0)?;
    same("address after OUTS", 0, end, start.value() + BYTES)?;
    Ok(())
}

/// Memory where nothing is: reads give ones (zeros in QEMU), writes go nowhere.
pub(crate) fn absent_memory(lab: &mut Lab) -> Check {
    const NOTHING: u64 = 0xe000_0000;
    let va = Va::new(0x163_c000_0000);
    for round in 0..3_u64 {
        lab.map_data(va.page(1), round, PWU);
        lab.set(va, Level::Pt, Entry::raw(NOTHING | PWU | 0x18));
        invalidate_page(va);
        let nothing = va.plus(8 * round).load();
        // All ones, or zero.
        let ones = if nothing == 0 { 0 } else { u64::MAX };
        same("absent memory", round, nothing, ones)?;
        va.plus(8).store(round);
        same("absent memory, written", round, va.plus(8).load(), nothing)?;
        let sum: u64;
        // SAFETY: nothing is there; the destination is test memory.
        unsafe {
            asm!("mov eax, 2", "add eax, [rsi]", "mov ecx, 2", "rep movsd",
                 out("rax") sum, inout("rsi") va.plus(64).value() => _, inout("rdi") va.page(1).plus(16).value() => _,
                 out("rcx") _, options(nostack));
        }
        same(
            "sum with absent memory",
            round,
            sum,
            nothing.wrapping_add(2) & 0xffff_ffff,
        )?;
        same(
            "copy of absent memory",
            round,
            va.page(1).plus(16).load(),
            nothing,
        )?;
        lab.map_data(va, round + 4, PWU);
        invalidate_page(va);
        lab.expect_frame(va, round + 4)?;
    }
    Ok(())
}
