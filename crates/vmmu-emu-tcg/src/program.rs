//! A program: registers, code in slots, data.
//!
//! Key types: [`Program`], [`Kind`]. A slot holds one tried instruction, what prepares it, and what hides what the manuals leave undefined. After an
//! exception the monitor goes on at the next slot.

use iced_x86::Code;

use crate::layout::{ALIAS, CODE, END_VECTOR, PAGE, SLOT};
use crate::world::selector;

/// The words of a program's first page.
pub(crate) mod word {
    pub(crate) const RIP: usize = 16;
    pub(crate) const CS: usize = 17;
    pub(crate) const FLAGS: usize = 18;
    pub(crate) const RSP: usize = 19;
    pub(crate) const SS: usize = 20;
    pub(crate) const DS: usize = 21;
    pub(crate) const CR0: usize = 25;
    pub(crate) const CR4: usize = 26;
    pub(crate) const MSRS: usize = 27;
    pub(crate) const COUNT: usize = MSRS + crate::monitor::RECORDED_MSRS.len();
}

/// How a program's code runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// 64-bit code of level 0.
    Kernel64,
    /// 64-bit code of level 3.
    User64,
    /// 32-bit code of level 0, in compatibility mode.
    Kernel32,
    /// 32-bit code of level 3, in compatibility mode.
    User32,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Kernel64, Self::User64, Self::Kernel32, Self::User32];

    /// Returns the width of the code in bits.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Kernel64 | Self::User64 => 64,
            Self::Kernel32 | Self::User32 => 32,
        }
    }

    /// Says whether it is of level 0.
    pub(crate) const fn is_kernel(self) -> bool {
        matches!(self, Self::Kernel64 | Self::Kernel32)
    }

    /// Returns CS and SS.
    pub(crate) const fn selectors(self) -> (u16, u16) {
        match self {
            Self::Kernel64 => (selector::KERNEL_CODE, selector::KERNEL_DATA),
            Self::User64 => (selector::USER_CODE, selector::USER_DATA),
            Self::Kernel32 => (selector::KERNEL_CODE_32, selector::KERNEL_DATA),
            Self::User32 => (selector::USER_CODE_32, selector::USER_DATA),
        }
    }

    /// Returns where it sees an address of the window.
    pub(crate) const fn view(self, address: u64) -> u64 {
        if self.is_kernel() {
            address + ALIAS
        } else {
            address
        }
    }
}

/// What a slot tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tried {
    /// The instruction that the slot is about.
    pub(crate) code: Code,
    /// The flags that the manuals leave undefined after it, as in RFLAGS.
    pub(crate) undefined: u64,
}

/// A program.
#[derive(Clone, Debug)]
pub struct Program {
    /// How it runs.
    pub(crate) kind: Kind,
    /// The seed it was made from.
    pub(crate) seed: u64,
    /// The words of its first page.
    pub(crate) words: [u64; word::COUNT],
    /// Its code, a page.
    pub(crate) code: Vec<u8>,
    /// Its first page of data.
    pub(crate) data: Vec<u8>,
    /// What its slots try.
    pub(crate) tried: Vec<Tried>,
}

impl Program {
    /// Returns the bytes for the image.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.resize(PAGE as usize, 0);
        bytes.extend(&self.code);
        bytes.extend(&self.data);
        bytes
    }

    /// Returns it cut off before a slot.
    pub(crate) fn cut(&self, slot: usize) -> Self {
        let mut cut = self.clone();
        let start = slot * SLOT as usize;
        cut.code[start..start + 2].copy_from_slice(&[0xcd, END_VECTOR]);
        cut
    }

    /// Returns the slot that an address is in.
    pub(crate) fn slot(&self, rip: u64) -> Option<usize> {
        let offset = (rip & !ALIAS).checked_sub(CODE)?;
        (offset < PAGE).then_some((offset / SLOT) as usize)
    }
}
