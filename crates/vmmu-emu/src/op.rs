//! An instruction, decoded.
//!
//! Key types: [`Op`], [`After`].
//!
//! An op is independent of where it lies: branch targets and RIP-relative addresses are kept relative to the instruction's own address, so that one
//! decoding of a physical page serves all its linear addresses.

use core::fmt;

use crate::cpu::{Cpu, Stop};
use crate::state::Gpr;

/// The function that executes an instruction.
pub(crate) type Run<C> = fn(&mut C, &Op<C>) -> Result<(), Stop>;

/// What follows an instruction, for whoever runs one after another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The next one in memory, and nothing changed that decides how it is decoded, fetched or interrupted.
    Next,
    /// Control may have gone elsewhere.
    Branch,
    /// Anything may have changed: the mode, interrupts, the address space.
    Anything,
}

/// How an address's segment takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Seg {
    /// 64-bit code, no base; a non-canonical address raises #GP.
    Flat,
    /// 64-bit code, through the stack registers: it raises #SS.
    FlatStack,
    /// 64-bit code with FS's base.
    FlatFs,
    /// 64-bit code with GS's base.
    FlatGs,
    /// Other code: base, limit and type count. In the order of encodings.
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A decoded instruction.
pub struct Op<C: Cpu> {
    pub(crate) run: Run<C>,
    /// The immediate, extended as the instruction does; a second one is in the upper half where both are short (ENTER). A near branch: the
    /// target relative to the instruction's address. A far one: the offset, and the selector in the upper half.
    pub(crate) imm: u64,
    /// The displacement; with RIP as base relative to the instruction's own address.
    pub(crate) disp: u64,
    pub(crate) base: Gpr,
    pub(crate) index: Gpr,
    /// log2 of the scale.
    pub(crate) scale: u8,
    pub(crate) seg: Seg,
    /// The first register operand; byte registers AH, CH, DH, BH have [`HIGH_BYTE`] set.
    pub(crate) reg: u8,
    /// The second register operand.
    pub(crate) rm: u8,
    pub(crate) len: u8,
    pub(crate) bits: Bits,
}

/// The bit of a register number that means bits 8 to 15 of the register below it.
pub(crate) const HIGH_BYTE: u8 = 0x40;

bitflags::bitflags! {
    /// What else there is to an op.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Bits: u8 {
        /// The address is truncated to 32 bits.
        const ADDRESS_32 = 1 << 0;
        /// The address is truncated to 16 bits.
        const ADDRESS_16 = 1 << 1;
        const LOCK = 1 << 2;
        const REP = 1 << 3;
        const REPNE = 1 << 4;
        /// [`After::Branch`].
        const BRANCH = 1 << 5;
        /// [`After::Anything`].
        const ANYTHING = 1 << 6;
    }
}

impl<C: Cpu> Op<C> {
    /// Executes the instruction at the state's RIP, which moves on.
    ///
    /// # Errors
    /// Why it did not complete; the state is as before.
    #[inline(always)]
    pub fn execute(&self, cpu: &mut C) -> Result<(), Stop> {
        let state = cpu.state_mut();
        state.next = state.rip().wrapping_add(u64::from(self.len));
        (self.run)(cpu, self)?;
        let state = cpu.state_mut();
        state.set_rip(state.next);
        Ok(())
    }

    /// Returns the length in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self) -> usize {
        self.len as usize
    }

    /// Returns what follows.
    #[inline]
    #[must_use]
    pub const fn after(&self) -> After {
        if self.bits.contains(Bits::ANYTHING) {
            After::Anything
        } else if self.bits.contains(Bits::BRANCH) {
            After::Branch
        } else {
            After::Next
        }
    }
}

impl<C: Cpu> Clone for Op<C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C: Cpu> Copy for Op<C> {}

impl<C: Cpu> fmt::Debug for Op<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Op")
            .field("len", &self.len)
            .field("imm", &self.imm)
            .field("disp", &self.disp)
            .field("reg", &self.reg)
            .field("rm", &self.rm)
            .finish_non_exhaustive()
    }
}
