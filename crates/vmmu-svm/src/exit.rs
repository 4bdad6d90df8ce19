//! Exit codes (AMD APM vol. 2, appendix C), and how often each came.
//!
//! The counters are static, so that a report of a bug can still tell them.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use vmmu::host::VcpuId;

use crate::json::Object;

/// Why the guest exited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitCode(u64);

impl ExitCode {
    /// Write of CR3.
    pub const CR3_WRITE: Self = Self(0x13);
    /// Read of CR0; CR1 to CR15 follow.
    pub const CR_READ: Self = Self(0x00);
    /// Write of CR0; CR1 to CR15 follow.
    pub const CR_WRITE: Self = Self(0x10);
    /// Exception 0; 1 to 31 follow.
    pub const EXCEPTION: Self = Self(0x40);
    /// Debug exception.
    pub const DEBUG: Self = Self(0x41);
    /// Page fault.
    pub const PAGE_FAULT: Self = Self(0x4e);
    /// Physical interrupt.
    pub const INTERRUPT: Self = Self(0x60);
    /// Physical non-maskable interrupt.
    pub const NMI: Self = Self(0x61);
    /// IRET.
    pub const IRET: Self = Self(0x74);
    /// CPUID.
    pub const CPUID: Self = Self(0x72);
    /// HLT.
    pub const HLT: Self = Self(0x78);
    /// INVLPG.
    pub const INVLPG: Self = Self(0x79);
    /// INVLPGA.
    pub const INVLPGA: Self = Self(0x7a);
    /// IN or OUT.
    pub const IOIO: Self = Self(0x7b);
    /// RDMSR or WRMSR.
    pub const MSR: Self = Self(0x7c);
    /// Shutdown.
    pub const SHUTDOWN: Self = Self(0x7f);
    /// VMRUN; the other SVM instructions follow up to SKINIT.
    pub const VMRUN: Self = Self(0x80);
    /// SKINIT.
    pub const SKINIT: Self = Self(0x86);
    /// Nested page fault.
    pub const NESTED_FAULT: Self = Self(0x400);
    /// The control block was refused. Some processors leave the upper half 0.
    pub const INVALID: Self = Self(u64::MAX);

    /// Makes a code from the control block's field.
    #[inline]
    pub const fn new(code: u64) -> Self {
        if code == u32::MAX as u64 {
            Self::INVALID
        } else {
            Self(code)
        }
    }
    /// Returns the code's number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Returns how far this code lies behind `first`, if by less than `count`.
    #[inline]
    pub const fn offset_from(self, first: Self, count: u64) -> Option<u8> {
        let offset = self.0.wrapping_sub(first.0);
        if offset < count {
            Some(offset as u8)
        } else {
            None
        }
    }

    const fn index(self) -> usize {
        match self.0 {
            code @ 0..0x90 => code as usize,
            0x400 => 0x90,
            _ => 0x91,
        }
    }
    const fn from_index(index: usize) -> Self {
        match index {
            0..0x90 => Self(index as u64),
            0x90 => Self::NESTED_FAULT,
            _ => Self::INVALID,
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            code @ 0x00..=0x0f => write!(f, "cr{code}_read"),
            code @ 0x10..=0x1f => write!(f, "cr{}_write", code - 0x10),
            0x4e => f.write_str("page_fault"),
            code @ 0x40..=0x5f => write!(f, "exception_{}", code - 0x40),
            0x60 => f.write_str("interrupt"),
            0x61 => f.write_str("nmi"),
            0x63 => f.write_str("init"),
            0x72 => f.write_str("cpuid"),
            0x74 => f.write_str("iret"),
            0x78 => f.write_str("hlt"),
            0x79 => f.write_str("invlpg"),
            0x7b => f.write_str("io"),
            0x7c => f.write_str("msr"),
            0x7f => f.write_str("shutdown"),
            0x81 => f.write_str("vmmcall"),
            0x400 => f.write_str("nested_fault"),
            u64::MAX => f.write_str("invalid"),
            code => write!(f, "code_{code:#x}"),
        }
    }
}

const CODES: usize = 0x92;

/// How often each code came on one processor, which alone counts in them.
#[derive(Debug)]
#[repr(align(64))]
pub struct Counters([AtomicU64; CODES]);

/// As many processors as can be counted.
const PROCESSORS: usize = 16;

/// The counters of this image's one guest, for each of its processors.
pub static EXITS: Exits =
    Exits([const { Counters([const { AtomicU64::new(0) }; CODES]) }; PROCESSORS]);

impl Counters {
    /// Counts an exit.
    #[inline]
    pub fn count(&self, code: ExitCode) {
        let counter = &self.0[code.index()];
        // One processor counts; load and store are cheaper than a locked increment.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    /// Returns the sum.
    pub fn total(&self) -> u64 {
        self.0
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}

/// The counters of all processors.
#[derive(Debug)]
pub struct Exits([Counters; PROCESSORS]);

impl Exits {
    /// Returns the counters of a processor.
    ///
    /// # Panics
    /// If there are more processors than the configuration allows: that is a bug of the hypervisor.
    pub fn of(&self, processor: VcpuId) -> &Counters {
        &self.0[usize::from(processor.0)]
    }
    /// Returns the sum.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counters::total).sum()
    }
    /// Adds a member for each code that came.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write<W: fmt::Write + ?Sized>(&self, object: &mut Object<'_, W>) -> fmt::Result {
        for index in 0..CODES {
            let of = |counters: &Counters| counters.0[index].load(Ordering::Relaxed);
            let count: u64 = self.0.iter().map(of).sum();
            if count != 0 {
                let mut name = Name::default();
                fmt::Write::write_fmt(&mut name, format_args!("{}", ExitCode::from_index(index)))?;
                object.number(name.get(), count)?;
            }
        }
        Ok(())
    }
}

/// A short text without a heap.
#[derive(Default)]
struct Name {
    bytes: [u8; 24],
    length: usize,
}

impl Name {
    fn get(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }
}

impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let to = self
            .bytes
            .get_mut(self.length..self.length + text.len())
            .ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod exits_are_counted_by_name {
    use super::*;
    use alloc::string::String;

    #[test]
    fn each_under_its_own_whatever_processor_it_came_on() {
        let exits = Exits([const { Counters([const { AtomicU64::new(0) }; CODES]) }; PROCESSORS]);
        for (cpu, code) in [
            (0, 0x13),
            (1, 0x4e),
            (15, 0x4e),
            (2, 0x400),
            (0, 0xffff_ffff),
            (0, u64::MAX),
        ] {
            exits.of(VcpuId(cpu)).count(ExitCode::new(code));
        }
        let mut text = String::new();
        Object::write(&mut text, |object| exits.write(object)).unwrap();
        assert_eq!(
            text,
            r#"{"cr3_write":1,"page_fault":2,"nested_fault":1,"invalid":2}"#
        );
        assert_eq!((exits.total(), exits.of(VcpuId(0)).total()), (6, 3));
    }
}
