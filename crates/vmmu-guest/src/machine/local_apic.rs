//! The processor's local APIC in xAPIC mode: what a system needs to start other processors and to interrupt them (Intel SDM
//! vol. 3, sections 11.4 to 11.8).
//!
//! Key functions: [`map`], once; then on each processor [`enable`], and what sends and ends interrupts. Processors have consecutive
//! identifiers, and numbers from 0 on, which the one that boots has.

use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};

/// Where the registers are after reset.
const BASE: u64 = 0xfee0_0000;
/// The table of level 3 that every root shares, by the bootstrap tables.
const SHARED_PDPT: u64 = 0x2000;
/// The frame below 1 MiB that becomes the page directory of the fourth GiB.
const DIRECTORY: u64 = 0x4000;

/// The identifier of the processor that boots.
static FIRST: AtomicU8 = AtomicU8::new(0);

/// A register, by its offset.
#[derive(Clone, Copy)]
struct Register(u64);

impl Register {
    const ID: Self = Self(0x20);
    const END_OF_INTERRUPT: Self = Self(0xb0);
    const TASK_PRIORITY: Self = Self(0x80);
    const SPURIOUS: Self = Self(0xf0);
    const REQUESTED: Self = Self(0x200);
    const COMMAND_LOW: Self = Self(0x300);
    const COMMAND_HIGH: Self = Self(0x310);
    const LINT0: Self = Self(0x350);

    fn read(self) -> u32 {
        // SAFETY: `map` put the device there; reading these registers has no effect on memory.
        unsafe { ptr::read_volatile((BASE + self.0) as *const u32) }
    }

    fn write(self, value: u32) {
        // SAFETY: as in `read`; what a message starts elsewhere is up to the caller of the functions below.
        unsafe { ptr::write_volatile((BASE + self.0) as *mut u32, value) };
    }
}

/// Finds the registers: maps them at their physical address, uncached, in every root that shares the bootstrap tables' first 512 GiB.
pub fn map() {
    const PRESENT_WRITABLE_DIRTY: u64 = 0x63;
    const UNCACHED_LARGE: u64 = 0x98;
    let directory = DIRECTORY as *mut u64;
    for index in 0..512 {
        // SAFETY: a frame below 1 MiB that nothing else uses, identity-mapped by the bootstrap tables.
        unsafe { ptr::write_volatile(directory.wrapping_add(index), 0) };
    }
    let (pdpt, in_pdpt) = (SHARED_PDPT as *mut u64, (BASE >> 30 & 511) as usize);
    let page = BASE | PRESENT_WRITABLE_DIRTY | UNCACHED_LARGE;
    let index = (BASE >> 21 & 511) as usize;
    // SAFETY: the same frame.
    unsafe { ptr::write_volatile(directory.wrapping_add(index), page) };
    // SAFETY: the bootstrap tables' own; the entry becomes present, so no translation that is in use changes.
    unsafe {
        ptr::write_volatile(
            pdpt.wrapping_add(in_pdpt),
            DIRECTORY | PRESENT_WRITABLE_DIRTY,
        )
    };
    FIRST.store(id(), Ordering::Relaxed);
}

/// This processor's identifier.
#[must_use]
pub fn id() -> u8 {
    (Register::ID.read() >> 24) as u8
}

/// Lets this processor's APIC accept messages; `spurious` is the vector of interrupts that vanish. The 8259s' line is masked.
pub fn enable(spurious: u8) {
    const ENABLED: u32 = 1 << 8;
    const MASKED: u32 = 1 << 16;
    Register::SPURIOUS.write(ENABLED | u32::from(spurious));
    Register::LINT0.write(MASKED);
}

/// Tells whether an interrupt with `vector` waits until this processor takes it.
#[must_use]
pub fn waits(vector: u8) -> bool {
    let word = Register(Register::REQUESTED.0 + u64::from(vector / 32) * 16);
    word.read() >> (vector % 32) & 1 != 0
}

/// Where the priority is below which interrupts wait: a register without other effects, for whoever tries instructions on one.
#[must_use]
pub fn task_priority() -> *mut u32 {
    (BASE + Register::TASK_PRIORITY.0) as *mut u32
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    Register::END_OF_INTERRUPT.write(0);
}

/// Interrupts the processor `number` with `vector`.
pub fn send_fixed(number: u8, vector: u8) {
    send(number, u32::from(vector));
}

/// Resets the processor `number`, which then waits for [`send_startup`].
pub fn send_init(number: u8) {
    const INIT_ASSERTED: u32 = 0x4500;
    send(number, INIT_ASSERTED);
}

/// Starts the processor `number`, which waits after INIT, in real mode at the page `page` (below 1 MiB).
pub fn send_startup(number: u8, page: u8) {
    const STARTUP: u32 = 0x4600;
    send(number, STARTUP | u32::from(page));
}

/// Sends a message, once the one before is delivered. Interrupts are off, or the handlers send none.
fn send(number: u8, command: u32) {
    const PENDING: u32 = 1 << 12;
    while Register::COMMAND_LOW.read() & PENDING != 0 {
        core::hint::spin_loop();
    }
    let id = FIRST.load(Ordering::Relaxed) + number;
    Register::COMMAND_HIGH.write(u32::from(id) << 24);
    Register::COMMAND_LOW.write(command);
}
