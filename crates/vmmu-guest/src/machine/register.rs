//! Control registers, model-specific registers, TLB invalidation and the time-stamp counter.
//!
//! Functions that change what addresses mean take a [`Frame`] as the root; invariant 1 of
//! [`machine`](super) is on the caller that filled it.

use core::arch::asm;

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

/// Reads CR4.
#[must_use]
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading CR4 has no side effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
