//! The interrupt descriptor table (AMD APM vol. 2, section 8.2).

use core::arch::asm;

/// An entry of the interrupt descriptor table: an interrupt gate to a handler in code segment 8.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Gate {
    offset_low: u16,
    selector: u16,
    stack_and_type: u16,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    /// No handler: the exception becomes a double fault.
    pub const EMPTY: Self = Self {
        offset_low: 0,
        selector: 0,
        stack_and_type: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    };

    /// An interrupt gate (present, DPL 0) to the assembly routine at `handler`.
    #[must_use]
    pub fn new(handler: unsafe extern "C" fn()) -> Self {
        let address = handler as usize as u64;
        Self {
            offset_low: address as u16,
            selector: 8,
            stack_and_type: 0x8e00,
            offset_middle: (address >> 16) as u16,
            offset_high: (address >> 32) as u32,
            reserved: 0,
        }
    }
}

/// The processor's table, for the 32 exceptions.
static mut TABLE: [Gate; 32] = [Gate::EMPTY; 32];

/// Makes `gates` the processor's interrupt descriptor table.
///
/// # Safety
/// - Every gate that is not empty must lead to a routine that preserves all registers and ends in IRET with the error
///   code (if the vector has one) popped, or that does not return.
/// - No exception may occur during the call.
pub unsafe fn install_gates(gates: [Gate; 32]) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let table = &raw mut TABLE;
    // SAFETY: one processor, interrupts off, and no exception during the call: nothing else reads the table.
    unsafe { table.write(gates) };
    let pointer = Pointer {
        limit: (size_of::<[Gate; 32]>() - 1) as u16,
        base: table as u64,
    };
    // SAFETY: the table is static and the caller vouches for its handlers.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}
