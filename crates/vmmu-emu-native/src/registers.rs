//! What an instruction starts from and how it ends.
//!
//! Key types: [`Registers`], [`Fx`], [`CodeMode`], [`End`].

use crate::trampoline::{CODE, CODE_LEN, DATA};

/// The mode that code runs in; a process may use all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CodeMode {
    /// 64-bit mode.
    Bits64,
    /// Compatibility mode with 32-bit code, and flat segments.
    Bits32,
    /// Compatibility mode with 16-bit code, in segments of 64 KiB that begin with the code pages and the data pages.
    Bits16,
}

impl CodeMode {
    /// Returns the base of the code segment.
    #[must_use]
    pub const fn code_base(self) -> u64 {
        match self {
            Self::Bits64 | Self::Bits32 => 0,
            Self::Bits16 => CODE,
        }
    }

    /// Returns the base of the data and stack segments.
    #[must_use]
    pub const fn data_base(self) -> u64 {
        match self {
            Self::Bits64 | Self::Bits32 => 0,
            Self::Bits16 => DATA,
        }
    }

    /// Returns the instruction pointer in the middle of the code pages, so that branches may go both ways.
    #[must_use]
    pub const fn start(self) -> u64 {
        CODE + CODE_LEN as u64 / 2 - self.code_base()
    }

    /// Returns the number of bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
            Self::Bits16 => 16,
        }
    }
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
