//! The interrupt descriptor table (AMD APM vol. 2, section 8.2).

use core::arch::asm;
use core::cell::UnsafeCell;

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

    /// An interrupt gate (present, DPL 0) to the assembly routine `handler`.
    #[must_use]
    pub fn new(handler: unsafe extern "C" fn()) -> Self {
        Self::at(handler as usize as u64)
    }

    /// An interrupt gate (present, DPL 0) to the routine at `address`.
    #[must_use]
    pub const fn at(address: u64) -> Self {
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

impl Gate {
    /// The same gate, open to INT3 in user mode.
    #[must_use]
    pub fn for_user(self) -> Self {
        Self {
            stack_and_type: self.stack_and_type | 0x6000,
            ..self
        }
    }

    /// The same gate, its handler on interrupt stack `number` (1 to 7).
    #[must_use]
    pub fn on_stack(self, number: u16) -> Self {
        Self {
            stack_and_type: self.stack_and_type & !7 | number,
            ..self
        }
    }
}

/// An interrupt descriptor table of `N` gates.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Gates<const N: usize>(UnsafeCell<[Gate; N]>);

// SAFETY: it is written before a processor uses it, and afterwards only processors read it, when they deliver events.
unsafe impl<const N: usize> Sync for Gates<N> {}

impl<const N: usize> Default for Gates<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Gates<N> {
    /// A table without handlers.
    #[must_use]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([Gate::EMPTY; N]))
    }

    /// Fills the table.
    ///
    /// # Safety
    /// - Every gate that is not empty must lead to a routine that preserves all registers and ends in IRET with the error
    ///   code (if the vector has one) popped, or that does not return.
    /// - No processor uses the table meanwhile: it isn't loaded, or no event occurs during the call.
    pub unsafe fn fill(&'static self, gates: [Gate; N]) {
        // SAFETY: the caller vouches that nothing else reads the table.
        unsafe { self.0.get().write(gates) };
    }

    /// Makes this processor use the table.
    pub fn install(&'static self) {
        // SAFETY: the table is static, and what fills it vouches for its handlers.
        unsafe { load_table(self.address(), N) };
    }

    /// Where the table is.
    fn address(&'static self) -> u64 {
        self.0.get() as u64
    }
}

/// The boot processor's table, for the 32 exceptions.
static TABLE: Gates<32> = Gates::new();

/// Makes `gates` the processor's interrupt descriptor table, in a guest that uses one processor.
///
/// # Safety
/// As of [`Gates::fill`]: no exception may occur during the call.
pub unsafe fn install_gates(gates: [Gate; 32]) {
    // SAFETY: one processor, interrupts off, and no exception during the call.
    unsafe { TABLE.fill(gates) };
    TABLE.install();
}

/// Where the table of [`install_gates`] is.
#[must_use]
pub fn gates_address() -> u64 {
    TABLE.address()
}

/// Tells the processor that the table of [`install_gates`] is at `address`.
///
/// # Safety
/// `address` is mapped to the table's memory (see [`gates_address`]) as long as exceptions can occur.
pub unsafe fn use_gates_at(address: u64) {
    // SAFETY: the caller vouches for what is at the address.
    unsafe { load_table(address, 32) };
}

/// Tells the processor that its table, of `gates` gates, is at `address`.
///
/// # Safety
/// It is there as long as exceptions can occur.
unsafe fn load_table(address: u64, gates: usize) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: (gates * size_of::<Gate>()) as u16 - 1,
        base: address,
    };
    // SAFETY: the caller vouches for what is at the address.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}
