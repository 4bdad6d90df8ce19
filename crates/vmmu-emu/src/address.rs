//! From an operand to a linear address.

use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::op::{Bits, Op, Seg};
use crate::state::{Segment, State};

/// Says whether 64-bit code may use the address (AMD APM vol. 2, section 5.3.1): all upper bits equal the highest translated one.
#[inline(always)]
pub(crate) const fn is_canonical(state: &State, at: u64) -> bool {
    let shift = if state.cr4 & 1 << 12 != 0 { 7 } else { 16 };
    ((at << shift) as i64 >> shift) as u64 == at
}

impl<C: Cpu> Op<C> {
    /// Returns the operand's offset in its segment.
    #[inline(always)]
    pub(crate) fn offset(&self, state: &State) -> u64 {
        let at = state.gpr[self.base.index()]
            .wrapping_add(state.gpr[self.index.index()] << (self.scale & 3))
            .wrapping_add(self.disp);
        if self
            .bits
            .intersects(Bits::ADDRESS_32.union(Bits::ADDRESS_16))
        {
            self.truncate(at)
        } else {
            at
        }
    }

    /// Truncates an offset to the instruction's address size.
    pub(crate) const fn truncate(&self, at: u64) -> u64 {
        if self.bits.contains(Bits::ADDRESS_16) {
            at & 0xffff
        } else if self.bits.contains(Bits::ADDRESS_32) {
            at & 0xffff_ffff
        } else {
            at
        }
    }

    /// Returns the linear address of the memory operand, `len` bytes long.
    #[inline(always)]
    pub(crate) fn linear(&self, cpu: &C, len: usize, access: Access) -> Result<u64, Stop> {
        let offset = self.offset(cpu.state());
        linear(cpu.state(), self.seg, offset, len, access)
    }
}

/// Returns the linear address of an offset in a segment.
#[inline(always)]
pub(crate) fn linear(
    state: &State,
    seg: Seg,
    offset: u64,
    len: usize,
    access: Access,
) -> Result<u64, Stop> {
    let at = match seg {
        Seg::Flat | Seg::FlatStack => offset,
        Seg::FlatFs => offset.wrapping_add(state.segments[4].base),
        Seg::FlatGs => offset.wrapping_add(state.segments[5].base),
        _ => return segmented(state, seg, offset, len, access),
    };
    // The first and the last byte: an access may not cross the end of either half.
    if is_canonical(state, at) && is_canonical(state, at.wrapping_add(len as u64 - 1)) {
        Ok(at)
    } else if seg == Seg::FlatStack {
        Err(Exception::STACK.into())
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Checks limit and type (AMD APM vol. 2, sections 4.12.1 and 4.7.2), and adds the base.
fn segmented(
    state: &State,
    seg: Seg,
    offset: u64,
    len: usize,
    access: Access,
) -> Result<u64, Stop> {
    let segment = &state.segments[(seg as u8 - Seg::Es as u8) as usize];
    if is_allowed(state, segment, offset, len, access) {
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    } else if seg == Seg::Ss {
        Err(Exception::STACK.into())
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Says whether a segment allows an access of `len` bytes at an offset.
pub(crate) fn is_allowed(
    state: &State,
    segment: &Segment,
    offset: u64,
    len: usize,
    access: Access,
) -> bool {
    const PRESENT: u16 = 1 << 7;
    const CODE: u16 = 1 << 3;
    const DOWN: u16 = 1 << 2;
    const READ_OR_WRITE: u16 = 1 << 1;
    const BIG: u16 = 1 << 10;
    let attributes = segment.attributes;
    let last = offset.wrapping_add(len as u64 - 1);
    let is_code = attributes & CODE != 0;
    let within = if !is_code && attributes & DOWN != 0 {
        let top = if attributes & BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > u64::from(segment.limit) && last <= top
    } else {
        last <= u64::from(segment.limit)
    };
    if state.is_real() || state.flags.contains(crate::Flags::VM) {
        return within;
    }
    let writes = matches!(access, Access::Write | Access::Update | Access::SystemWrite);
    let typed = match (is_code, writes) {
        (true, true) => false,
        (true, false) | (false, true) => attributes & READ_OR_WRITE != 0,
        (false, false) => true,
    };
    within && typed && attributes & PRESENT != 0
}
