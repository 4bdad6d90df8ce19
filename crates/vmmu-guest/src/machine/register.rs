//! Control registers, model-specific registers, TLB invalidation and the time-stamp counter.
//!
//! Functions that change what addresses mean take a [`Frame`] as the root; invariant 1 of
//! [`machine`](super) is on the caller that filled it.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

use super::{Frame, Va};

/// Reads the time-stamp counter. Earlier and later accesses to memory stay on their side of it.
#[inline(always)]
#[must_use]
pub fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC has no side effect.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Loads CR3 with `root`.
#[inline]
pub fn load_root(root: Frame) {
    // SAFETY: the root maps the image as before (invariant 1), so no Rust object moves.
    unsafe { asm!("mov cr3, {}", in(reg) root.address(), options(nostack, preserves_flags)) };
}

/// Loads CR3 with what it holds: everything that isn't global is flushed.
#[inline]
pub fn reload_root() {
    // SAFETY: the root stays the same.
    unsafe {
        asm!("mov {value}, cr3", "mov cr3, {value}", value = out(reg) _, options(nostack, preserves_flags))
    };
}

/// Invalidates the translation of `address`.
#[inline]
pub fn invalidate_page(address: Va) {
    // SAFETY: dropping a cached translation changes nothing that the tables don't say.
    unsafe { asm!("invlpg [{}]", in(reg) address.value(), options(nostack, preserves_flags)) };
}

/// Reads CR0.
#[must_use]
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reading CR0 has no side effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR2.
#[must_use]
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 has no side effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR4.
#[must_use]
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading CR4 has no side effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

bitflags::bitflags! {
    /// The bits of control registers that decide what an access may do, wherever they are.
    ///
    /// The image's own pages are writable, supervisor's, executable and not global, so it runs under any of them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u64 {
        /// CR0.WP: read-only pages are so for the supervisor too.
        const WP = 1 << 16;
        /// CR4.PGE: global pages.
        const PGE = 1 << 7;
        /// CR4.SMEP: the supervisor does not execute user pages.
        const SMEP = 1 << 20;
        /// CR4.SMAP: the supervisor accesses user pages only with RFLAGS.AC set.
        const SMAP = 1 << 21;
        /// EFER.NXE: bit 63 of an entry means "not executable" instead of being reserved.
        const NXE = 1 << 11;
    }
}

impl Control {
    const IN_CR0: Self = Self::WP;
    const IN_CR4: Self = Self::PGE.union(Self::SMEP).union(Self::SMAP);
    const IN_EFER: Self = Self::NXE;

    /// What the processor uses now.
    #[must_use]
    pub fn current() -> Self {
        let in_registers = |value, mask: Self| Self::from_bits_retain(value).intersection(mask);
        in_registers(cr0(), Self::IN_CR0)
            .union(in_registers(cr4(), Self::IN_CR4))
            .union(in_registers(efer(), Self::IN_EFER))
    }

    /// Makes the processor use exactly these. Writes only the registers that change.
    pub fn load(self) {
        let merged = |old: u64, mask: Self| old & !mask.bits() | self.intersection(mask).bits();
        let (cr0, cr4, efer) = (cr0(), cr4(), efer());
        let (new_cr0, new_cr4) = (merged(cr0, Self::IN_CR0), merged(cr4, Self::IN_CR4));
        let new_efer = merged(efer, Self::IN_EFER);
        if new_cr0 != cr0 {
            // SAFETY: only WP changes, and no page of the image is read-only.
            unsafe { asm!("mov cr0, {}", in(reg) new_cr0, options(nostack, preserves_flags)) };
        }
        if new_cr4 != cr4 {
            // SAFETY: only PGE, SMEP and SMAP change, and no page of the image is global or the user's.
            unsafe { asm!("mov cr4, {}", in(reg) new_cr4, options(nostack, preserves_flags)) };
        }
        if new_efer != efer {
            let (low, high) = (new_efer as u32, (new_efer >> 32) as u32);
            // SAFETY: only NXE changes, and no entry for the image has bit 63 set.
            unsafe {
                asm!("wrmsr", in("ecx") EFER, in("eax") low, in("edx") high, options(nostack, preserves_flags))
            };
        }
    }
}

/// The number of the extended-feature register.
const EFER: u32 = 0xc000_0080;

/// Reads EFER.
#[must_use]
pub fn efer() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading EFER has no side effect.
    unsafe {
        asm!("rdmsr", in("ecx") EFER, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads CR3.
#[must_use]
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading CR3 has no side effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Loads CR3 with `root` and the cache-control bits PWT and PCD as `cache_bits` says.
pub fn load_root_with(root: Frame, cache_bits: u64) {
    let value = root.address() | cache_bits & 0x18;
    // SAFETY: as in `load_root`.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Executes CPUID with `leaf` (subleaf 0).
#[must_use]
pub fn cpuid(leaf: u32) -> CpuidResult {
    __cpuid_count(leaf, 0)
}

/// Sets the bases of FS and GS, which no compiled code of a guest uses.
pub fn set_segment_bases(fs: u64, gs: u64) {
    const FS_BASE: u32 = 0xc000_0100;
    for (register, base) in [(FS_BASE, fs), (FS_BASE + 1, gs)] {
        let (low, high) = (base as u32, (base >> 32) as u32);
        // SAFETY: nothing is addressed through the two segments.
        unsafe {
            asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack, preserves_flags))
        };
    }
}
