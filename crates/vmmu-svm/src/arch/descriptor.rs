//! The host's GDT, TSS and IDT, one of each for every processor.
//!
//! Every vector below 32 goes to a stub that reports a bug, on a stack of its own, so that an overrun of the normal stack is still
//! reported. Interrupts stay off, but where those are discarded that a local APIC still has ([`let_interrupts_in`]): an IDT of its own sends
//! each of their vectors to a handler that does nothing.

use alloc::boxed::Box;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

const STACK: usize = 32 << 10;
const CODE: u16 = 8;
const DATA: u16 = 16;
const TASK: u16 = 24;

/// The tables that the processor reads, in one block that never moves.
#[repr(C, align(16))]
struct Tables {
    gdt: [u64; 5],
    // Padding puts the TSS's 64-bit fields, which start at offset 4, on their natural boundaries.
    padding: u32,
    tss: [u32; 26],
    idt: [[u64; 2]; 32],
    stack: [u8; STACK],
}

struct Once(UnsafeCell<Tables>);

// SAFETY:
// - Written once, by `install_first`, before anything else could look; afterwards only the processor reads it.
unsafe impl Sync for Once {}

/// The boot processor's, which are needed before there is memory to allocate.
static TABLES: Once = Once(UnsafeCell::new(Tables {
    gdt: [0; 5],
    padding: 0,
    tss: [0; 26],
    idt: [[0; 2]; 32],
    stack: [0; STACK],
}));

#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

/// Makes the boot processor's tables, with `stub` giving each vector's entry point, and loads them.
pub(crate) fn install_first(stub: impl Fn(u8) -> u64) {
    // SAFETY:
    // - Called once, on the only CPU, before the tables are loaded.
    let tables = unsafe { &mut *TABLES.0.get() };
    install(tables, stub);
}

/// Makes another processor's tables, and loads them.
pub(crate) fn install_another(stub: impl Fn(u8) -> u64) {
    // SAFETY:
    // - Zeros are a valid value of each field.
    let tables = unsafe { Box::<Tables>::new_zeroed().assume_init() };
    install(Box::leak(tables), stub);
}

/// Fills the tables and loads them.
fn install(tables: &'static mut Tables, stub: impl Fn(u8) -> u64) {
    let tss = (&raw const tables.tss) as u64;
    let top = ((&raw const tables.stack) as u64 + STACK as u64) & !15;
    // IST1 lies at offset 24h of the TSS (AMD APM vol. 2, section 12.2.5).
    tables.tss[9] = top as u32;
    tables.tss[10] = (top >> 32) as u32;
    tables.tss[25] = 104 << 16;
    let busy_free = 0x89 << 40 | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56 | 103;
    tables.gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        busy_free,
        tss >> 32,
    ];
    for (vector, gate) in (0u8..).zip(tables.idt.iter_mut()) {
        *gate = self::gate(stub(vector), OWN_STACK);
    }
    let gdtr = TableRegister {
        limit: 39,
        base: (&raw const tables.gdt) as u64,
    };
    let idtr = TableRegister {
        limit: 511,
        base: (&raw const tables.idt) as u64,
    };
    // SAFETY:
    // - The tables are complete, and there for good.
    // - The selectors keep their meaning, so that the segments loaded by the entry code stay right.
    unsafe {
        asm!("lgdt [{0}]", "lidt [{1}]", "ltr {2:x}", in(reg) &raw const gdtr, in(reg) &raw const idtr, in(reg) TASK, options(nostack));
    }
    const { assert!(DATA == CODE + 8 && TASK == DATA + 8) }
}

/// The bits of a gate that choose the stack: that of exceptions, or none, which is the one in use.
const OWN_STACK: u64 = 1 << 32;
const NO_STACK: u64 = 0;

/// Returns the gate that leads to an entry point.
const fn gate(entry: u64, stack: u64) -> [u64; 2] {
    let low =
        entry & 0xffff | (CODE as u64) << 16 | stack | 0x8e << 40 | (entry >> 16 & 0xffff) << 48;
    [low, entry >> 32]
}

/// An IDT that discards interrupts, those too whose vectors exceptions have.
type Discarding = [[u64; 2]; 256];

/// Where it is, or 0. It names no processor's own stacks.
static DISCARDING: AtomicU64 = AtomicU64::new(0);

/// The first vector that an interrupt may have.
const FIRST_INTERRUPT: u8 = 16;

/// Makes the IDT that discards interrupts, with `stub` as for [`install_first`].
pub(crate) fn install_discarding(stub: impl Fn(u8) -> u64, discard: u64) {
    let mut gates: Box<Discarding> = Box::new([[0; 2]; 256]);
    for (vector, gate) in (0u8..=255).zip(gates.iter_mut()) {
        *gate = if vector < FIRST_INTERRUPT {
            self::gate(stub(vector), OWN_STACK)
        } else {
            // An NMI that came in the handler would use the stack of its own from the top, and overwrite what the handler returns by.
            self::gate(discard, NO_STACK)
        };
    }
    let at = &raw const *Box::leak(gates);
    DISCARDING.store(at as u64, Ordering::Release);
}

unsafe extern "sysv64" {
    fn vmmu_let_interrupts_in() -> u32;
}

/// Lets interrupts in that wait, one at least if there are any, and discards them; the APIC has yet to be told. NMIs are let in too.
pub(crate) fn let_interrupts_in() {
    let base = DISCARDING.load(Ordering::Acquire);
    if base == 0 {
        return;
    }
    let discarding = TableRegister { limit: 4095, base };
    let mut own = TableRegister { limit: 0, base: 0 };
    // SAFETY:
    // - The register's content is stored in a place of its size.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut own, options(nostack)) }
    // SAFETY:
    // - The table is complete, and there for good.
    // - Interrupts come in `vmmu_let_interrupts_in` alone. Their handlers return at once, on the stack in use: below its pointer, where the caller of a
    //   function keeps nothing.
    // - Exceptions and NMIs have the stack of their own that they had before.
    unsafe { asm!("lidt [{}]", in(reg) &raw const discarding, options(nostack)) }
    // SAFETY:
    // - Interrupts are off again behind it.
    unsafe { vmmu_let_interrupts_in() };
    // SAFETY:
    // - The table is the one that was in force.
    unsafe { asm!("lidt [{}]", in(reg) &raw const own, options(nostack)) }
}
