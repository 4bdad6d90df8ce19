//! What an instruction starts from and how it ends.
//!
//! Key types: [`Registers`], [`Fx`], [`CodeMode`], [`End`].

/// The mode that code runs in; a process may use both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CodeMode {
    /// 64-bit mode.
    Bits64,
    /// Compatibility mode with 32-bit code, and flat segments.
    Bits32,
}

/// An FXSAVE image in the 64-bit format (AMD APM vol. 2, section 11.4.4): x87 and MMX registers, MXCSR, XMM0 to XMM15.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Fx(pub [u8; 512]);

impl Fx {
    /// Returns the image after FNINIT, with MXCSR's default and zeros elsewhere.
    #[must_use]
    pub const fn initial() -> Self {
        let mut bytes = [0; 512];
        bytes[0] = 0x7f;
        bytes[1] = 0x03;
        bytes[24] = 0x80;
        bytes[25] = 0x1f;
        Self(bytes)
    }
}

/// The registers that user code sees.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Registers {
    /// x87, MMX and SSE registers.
    pub fx: Fx,
    /// General registers, by number in encodings.
    pub gpr: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// RFLAGS. Loaded are the arithmetic flags and DF; the trap flag and what only the kernel may change are not.
    pub flags: u64,
    /// The mode.
    pub mode: CodeMode,
}

impl Registers {
    /// What [`Registers::flags`] loads and reports: CF, PF, AF, ZF, SF, DF, OF.
    pub const FLAGS: u64 = 0xcd5;

    /// Returns registers that are zero, in a mode.
    #[must_use]
    pub const fn new(mode: CodeMode) -> Self {
        Self {
            fx: Fx::initial(),
            gpr: [0; 16],
            rip: 0,
            flags: 0,
            mode,
        }
    }
}

/// How native code ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It ran into a breakpoint that surrounds the instruction, at the registers' RIP.
    Completed,
    /// It raised an exception at the registers' RIP.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, 0 for vectors without one.
        code: u32,
        /// CR2, of a page fault.
        address: u64,
    },
}
