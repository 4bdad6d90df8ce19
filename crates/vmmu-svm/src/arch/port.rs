//! I/O ports.

use core::arch::asm;

/// How many bytes one port access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortWidth {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
}

/// The number of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port(pub u16);

impl Port {
    /// Reads the port; the unused high bits of the answer are 0.
    pub fn read(self, width: PortWidth) -> u32 {
        match width {
            PortWidth::Byte => u32::from(self.read8()),
            PortWidth::Word => u32::from(self.read16()),
            PortWidth::Dword => self.read32(),
        }
    }

    fn read8(self) -> u8 {
        let value;
        // SAFETY:
        // - Ports don't reach Rust's memory: no device here is told to use DMA.
        unsafe { asm!("in al, dx", out("al") value, in("dx") self.0, options(nomem, nostack)) }
        value
    }
    fn read16(self) -> u16 {
        let value;
        // SAFETY:
        // - As for a byte.
        unsafe { asm!("in ax, dx", out("ax") value, in("dx") self.0, options(nomem, nostack)) }
        value
    }
    fn read32(self) -> u32 {
        let value;
        // SAFETY:
        // - As for a byte.
        unsafe { asm!("in eax, dx", out("eax") value, in("dx") self.0, options(nomem, nostack)) }
        value
    }

    /// Writes the low bits of `value` to the port.
    pub fn write(self, width: PortWidth, value: u32) {
        match width {
            // SAFETY:
            // - As for reading.
            PortWidth::Byte => unsafe {
                asm!("out dx, al", in("eax") value, in("dx") self.0, options(nomem, nostack))
            },
            // SAFETY:
            // - As for reading.
            PortWidth::Word => unsafe {
                asm!("out dx, ax", in("eax") value, in("dx") self.0, options(nomem, nostack))
            },
            // SAFETY:
            // - As for reading.
            PortWidth::Dword => unsafe {
                asm!("out dx, eax", in("eax") value, in("dx") self.0, options(nomem, nostack))
            },
        }
    }
}
