//! Segment and system descriptors, and where they lie.
//!
//! Key types: [`Descriptor`], [`Selector`]; key functions: [`fetch`], [`fetch_system`].
//!
//! Invariant: a descriptor is read once; what was checked is what is loaded. Only the type byte is written back, for the accessed and busy bits.

use crate::address::is_canonical;
use crate::cpu::{Access, Cpu, Exception, Stop};
use crate::state::{Segment, State, Table};

/// The vector of an invalid task state.
pub(crate) const INVALID_TSS: u8 = 10;
/// The vector of a segment that is not present.
pub(crate) const NOT_PRESENT: u8 = 11;
/// The vector of a stack fault.
pub(crate) const STACK: u8 = 12;
/// The vector of a general-protection fault.
pub(crate) const PROTECTION: u8 = 13;

/// Kinds of system descriptors (AMD APM vol. 2, tables 4-5 and 4-6).
pub(crate) mod kind {
    pub(crate) const TSS_16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const TSS_16_BUSY: u8 = 3;
    pub(crate) const CALL_GATE_16: u8 = 4;
    pub(crate) const TASK_GATE: u8 = 5;
    pub(crate) const INTERRUPT_GATE_16: u8 = 6;
    pub(crate) const TRAP_GATE_16: u8 = 7;
    pub(crate) const TSS: u8 = 9;
    pub(crate) const TSS_BUSY: u8 = 11;
    pub(crate) const CALL_GATE: u8 = 12;
    pub(crate) const INTERRUPT_GATE: u8 = 14;
    pub(crate) const TRAP_GATE: u8 = 15;
    /// The bit between a free and a busy TSS.
    pub(crate) const BUSY: u8 = 2;
}

/// A selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Selector(pub(crate) u16);

impl Selector {
    /// Returns the requested privilege level.
    pub(crate) const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Returns it with another requested privilege level.
    pub(crate) const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | rpl as u16)
    }

    /// Says whether it selects nothing.
    pub(crate) const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// Says whether it selects from the local table.
    pub(crate) const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Makes the exception that names it (AMD APM vol. 2, section 8.4.1); `external` is 1 while an event from outside is delivered.
    pub(crate) const fn fault(self, vector: u8, external: u16) -> Stop {
        Stop::Exception(Exception::with_code(vector, self.0 & !3 | external))
    }
}

/// The eight bytes of a descriptor (AMD APM vol. 2, sections 4.7 and 4.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor(pub(crate) u64);

impl Descriptor {
    const fn bit(self, n: u32) -> bool {
        self.0 >> n & 1 != 0
    }

    pub(crate) const fn is_present(self) -> bool {
        self.bit(47)
    }

    pub(crate) const fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    /// Says whether it is a code or data segment, not a system one.
    pub(crate) const fn is_user(self) -> bool {
        self.bit(44)
    }

    /// Returns a system descriptor's type; none of a code or data segment.
    pub(crate) const fn kind(self) -> Option<u8> {
        if self.is_user() {
            None
        } else {
            Some(self.type_bits())
        }
    }

    pub(crate) const fn type_bits(self) -> u8 {
        (self.0 >> 40 & 15) as u8
    }

    pub(crate) const fn is_code(self) -> bool {
        self.is_user() && self.bit(43)
    }

    pub(crate) const fn is_data(self) -> bool {
        self.is_user() && !self.bit(43)
    }

    pub(crate) const fn is_conforming(self) -> bool {
        self.is_code() && self.bit(42)
    }

    pub(crate) const fn is_readable(self) -> bool {
        self.is_data() || self.is_code() && self.bit(41)
    }

    pub(crate) const fn is_writable(self) -> bool {
        self.is_data() && self.bit(41)
    }

    pub(crate) const fn is_accessed(self) -> bool {
        self.bit(40)
    }

    pub(crate) const fn is_long(self) -> bool {
        self.bit(53)
    }

    pub(crate) const fn is_big(self) -> bool {
        self.bit(54)
    }

    pub(crate) const fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 56 << 24
    }

    /// Returns the limit in bytes, granularity applied.
    pub(crate) const fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.bit(55) {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Returns a gate's selector.
    pub(crate) const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }

    /// Returns a 32-bit gate's offset.
    pub(crate) const fn gate_offset(self) -> u32 {
        (self.0 & 0xffff | self.0 >> 32 & 0xffff_0000) as u32
    }

    /// Returns what a segment register holds after the load.
    pub(crate) const fn segment(self, selector: Selector) -> Segment {
        Segment {
            selector: selector.0,
            attributes: (self.0 >> 40 & 0xff | self.0 >> 44 & 0xf00) as u16,
            limit: self.limit(),
            base: self.base(),
        }
    }

    /// Returns it with the accessed bit.
    pub(crate) const fn accessed(self) -> Self {
        Self(self.0 | 1 << 40)
    }

    /// Returns the byte with the type, which lies at offset 5.
    pub(crate) const fn type_byte(self) -> u8 {
        (self.0 >> 40) as u8
    }
}

/// A descriptor and its linear address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) at: u64,
    pub(crate) descriptor: Descriptor,
    /// The second half of a system descriptor in long mode.
    pub(crate) high: u64,
}

impl Found {
    /// Returns the base of a system segment.
    pub(crate) const fn base(&self) -> u64 {
        self.descriptor.base() | self.high << 32
    }
}

/// Returns the linear address `offset` into a system structure; it wraps at 4 GiB outside long mode.
///
/// # Errors
/// #GP where the address is not canonical.
pub(crate) fn system_address(state: &State, base: u64, offset: u64) -> Result<u64, Stop> {
    let at = base.wrapping_add(offset);
    if !state.is_long() {
        return Ok(at & 0xffff_ffff);
    }
    if is_canonical(state, at) {
        Ok(at)
    } else {
        Err(Exception::GENERAL_PROTECTION.into())
    }
}

/// Reads a word of a system structure.
pub(crate) fn load<W: crate::Word>(cpu: &mut impl Cpu, base: u64, offset: u64) -> Result<W, Stop> {
    let at = system_address(cpu.state(), base, offset)?;
    cpu.load(at, Access::SystemRead)
}

/// Returns the table a selector selects from, and the entry's offset; none where it lies beyond the limit.
fn locate(state: &State, selector: Selector, bytes: u64) -> Option<(u64, u64)> {
    let (base, limit) = if selector.is_local() {
        let ldtr = &state.ldtr;
        if ldtr.attributes & 1 << 7 == 0 {
            return None;
        }
        (ldtr.base, ldtr.limit)
    } else {
        let Table { base, limit } = state.gdtr;
        (base, u32::from(limit))
    };
    let offset = u64::from(selector.0 & !7);
    (offset + bytes - 1 <= u64::from(limit)).then_some((base, offset))
}

/// Reads the descriptor of a selector that is not null.
///
/// # Errors
/// `vector` with the selector, where it lies beyond its table's limit; #PF.
pub(crate) fn fetch(
    cpu: &mut impl Cpu,
    selector: Selector,
    vector: u8,
    external: u16,
) -> Result<Found, Stop> {
    let Some((base, offset)) = locate(cpu.state(), selector, 8) else {
        return Err(selector.fault(vector, external));
    };
    let at = system_address(cpu.state(), base, offset)?;
    let descriptor = Descriptor(cpu.load(at, Access::SystemRead)?);
    Ok(Found {
        at,
        descriptor,
        high: 0,
    })
}

/// Reads the second half of a system descriptor in long mode, where it has 16 bytes (AMD APM vol. 2, section 4.8.3).
///
/// # Errors
/// As [`fetch`]; also where the half's type, bits 8 to 12, is not 0.
pub(crate) fn complete(
    cpu: &mut impl Cpu,
    found: Found,
    selector: Selector,
    vector: u8,
    external: u16,
) -> Result<Found, Stop> {
    if !cpu.state().is_long() {
        return Ok(found);
    }
    let Some((base, offset)) = locate(cpu.state(), selector, 16) else {
        return Err(selector.fault(vector, external));
    };
    let high: u64 = load(cpu, base, offset + 8)?;
    if high >> 40 & 0x1f != 0 {
        return Err(selector.fault(vector, external));
    }
    Ok(Found {
        high: high & 0xffff_ffff,
        ..found
    })
}
