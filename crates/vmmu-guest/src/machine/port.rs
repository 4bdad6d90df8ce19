//! I/O ports, and the one that ends the run.

use core::arch::asm;

/// An I/O port of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(u16);

impl Port {
    /// A byte written here appears in the log of the debug console.
    pub const DEBUG: Self = Self(0xe9);
    /// The first register of the first serial port.
    pub const COM1: Self = Self(0x3f8);
    /// The mask of the first interrupt controller (8259A).
    pub const FIRST_PIC_MASK: Self = Self(0x21);
    /// The mask of the second one.
    pub const SECOND_PIC_MASK: Self = Self(0xa1);
    /// A write here takes about a microsecond and does nothing else.
    pub const DELAY: Self = Self(0x80);
    /// `phase << 24 | count` written here says that a measured phase starts.
    pub const MARK_START: Self = Self(0x5e0);
    /// The phase's number written here says that it has ended.
    pub const MARK_END: Self = Self(0x5e4);
    /// A 32-bit value written here ends the run with it.
    pub const END: Self = Self(0xf4);

    /// The port `offset` registers behind this one.
    #[must_use]
    pub const fn register(self, offset: u16) -> Self {
        Self(self.0 + offset)
    }

    /// Writes one byte.
    pub fn write_u8(self, value: u8) {
        // SAFETY: no device of this machine reaches memory by itself, so a port access cannot touch a Rust object.
        unsafe {
            asm!("out dx, al", in("dx") self.0, in("al") value, options(nomem, nostack, preserves_flags))
        };
    }

    /// Reads one byte.
    #[must_use]
    pub fn read_u8(self) -> u8 {
        let value: u8;
        // SAFETY: as in `write_u8`.
        unsafe {
            asm!("in al, dx", in("dx") self.0, out("al") value, options(nomem, nostack, preserves_flags))
        };
        value
    }

    /// Writes 16 bits.
    pub fn write_u16(self, value: u16) {
        // SAFETY: as in `write_u8`.
        unsafe {
            asm!("out dx, ax", in("dx") self.0, in("ax") value, options(nomem, nostack, preserves_flags))
        };
    }

    /// Writes 32 bits.
    #[inline]
    pub fn write_u32(self, value: u32) {
        // SAFETY: as in `write_u8`. Memory is not declared untouched: marks delimit what was done before and after.
        unsafe {
            asm!("out dx, eax", in("dx") self.0, in("eax") value, options(nostack, preserves_flags))
        };
    }
}

/// Ends the run with `value`: 0 means that all went well.
///
/// Without a device on [`Port::END`] the processor halts for good.
pub fn end_run(value: u32) -> ! {
    Port::END.write_u32(value);
    loop {
        // SAFETY: interrupts are off in every guest, so this stops the processor and nothing else.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
