//! Stacks that far transfers and events push to and pop from, the current one or another task's or level's.
//!
//! Key type: [`Stack`].
//!
//! Invariant: nothing changes until the caller stores the pointer and commits the writes.

use crate::address::{is_allowed, is_canonical};
use crate::cpu::{Access, Cpu, Stop};
use crate::state::{Gpr, Segment, SegmentName, State};
use crate::system::descriptor::{STACK, Selector};
use crate::system::writes::Writes;

/// The size of what is pushed or popped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    Two,
    Four,
    Eight,
}

impl Size {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Returns the bits that a value of this size has.
    pub(crate) const fn mask(self) -> u64 {
        match self {
            Self::Two => 0xffff,
            Self::Four => 0xffff_ffff,
            Self::Eight => u64::MAX,
        }
    }
}

/// A stack, its pointer moving.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    segment: Segment,
    /// The pointer's bits: 16, 32 or 64.
    mask: u64,
    /// RSP, with what lies above the mask.
    pub(crate) pointer: u64,
    access: Access,
    /// The error code of a fault on it.
    code: u16,
}

impl Stack {
    /// The current one.
    pub(crate) fn current(state: &State) -> Self {
        let segment = *state.segment(SegmentName::Ss);
        Self {
            mask: mask(state.is_64_bit(), &segment),
            pointer: state.get(Gpr::RSP),
            segment,
            access: Access::Write,
            code: 0,
        }
    }

    /// An inner level's, or another task's.
    pub(crate) fn inner(segment: Segment, pointer: u64, external: u16) -> Self {
        Self {
            mask: mask(false, &segment),
            pointer,
            segment,
            access: Access::SystemWrite,
            code: segment.selector & !3 | external,
        }
    }

    /// One of 64-bit code.
    pub(crate) const fn flat(pointer: u64, access: Access, external: u16) -> Self {
        Self {
            segment: Segment {
                selector: 0,
                attributes: 0,
                limit: 0,
                base: 0,
            },
            mask: u64::MAX,
            pointer,
            access,
            code: external,
        }
    }

    /// Returns the linear address of an offset.
    fn linear(
        &self,
        state: &State,
        offset: u64,
        bytes: usize,
        access: Access,
    ) -> Result<u64, Stop> {
        let fault = Selector(self.code).fault(STACK, self.code & 1);
        let fault = match fault {
            Stop::Exception(mut exception) => {
                exception.code = Some(self.code);
                Stop::Exception(exception)
            }
            other => other,
        };
        if self.mask == u64::MAX {
            let last = offset.wrapping_add(bytes as u64 - 1);
            let canonical = is_canonical(state, offset) && is_canonical(state, last);
            return if canonical { Ok(offset) } else { Err(fault) };
        }
        if is_allowed(state, &self.segment, offset, bytes, access) {
            Ok(self.segment.base.wrapping_add(offset) & 0xffff_ffff)
        } else {
            Err(fault)
        }
    }

    /// Returns the pointer moved by a distance.
    const fn moved(&self, by: u64) -> u64 {
        self.pointer & !self.mask | self.pointer.wrapping_add(by) & self.mask
    }

    /// Plans a push.
    pub(crate) fn push<const N: usize>(
        &mut self,
        state: &State,
        writes: &mut Writes<N>,
        size: Size,
        value: u64,
    ) -> Result<(), Stop> {
        let bytes = size.bytes();
        let pointer = self.moved((bytes as u64).wrapping_neg());
        let at = self.linear(state, pointer & self.mask, bytes, self.access)?;
        writes.add(at, value & size.mask(), bytes, self.access)?;
        self.pointer = pointer;
        Ok(())
    }

    /// Pops.
    pub(crate) fn pop(&mut self, cpu: &mut impl Cpu, size: Size) -> Result<u64, Stop> {
        let value = self.peek(cpu, size, 0)?;
        self.pointer = self.moved(size.bytes() as u64);
        Ok(value)
    }

    /// Reads what lies `skip` bytes above the pointer.
    pub(crate) fn peek(&self, cpu: &mut impl Cpu, size: Size, skip: u64) -> Result<u64, Stop> {
        let offset = self.pointer.wrapping_add(skip) & self.mask;
        let at = self.linear(cpu.state(), offset, size.bytes(), Access::Read)?;
        Ok(match size {
            Size::Two => u64::from(cpu.load::<u16>(at, Access::Read)?),
            Size::Four => u64::from(cpu.load::<u32>(at, Access::Read)?),
            Size::Eight => cpu.load(at, Access::Read)?,
        })
    }

    /// Releases what lies above the pointer.
    pub(crate) const fn release(&mut self, bytes: u64) {
        self.pointer = self.moved(bytes);
    }
}

const fn mask(is_64_bit: bool, segment: &Segment) -> u64 {
    if is_64_bit {
        u64::MAX
    } else if segment.attributes & 1 << 10 != 0 {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Returns a stack pointer for a segment: where that has 16 bits, the upper part of the old one stays.
pub(crate) const fn pointer_for(is_64_bit: bool, segment: &Segment, old: u64, new: u64) -> u64 {
    let mask = mask(is_64_bit, segment);
    if mask == 0xffff {
        old & !0xffff | new & 0xffff
    } else {
        new & mask
    }
}
