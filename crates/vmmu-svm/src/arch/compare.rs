//! Finding the words of a guest table that differ from a copy of it: what most root loads of a guest that edits its tables come to.
//!
//! Invariant:
//! 1. The guest's words are read by aligned loads, in assembly because the guest may change them meanwhile: an aligned 16-byte load never tears an
//!    aligned word. What differs is read again, word by word.

use core::sync::atomic::{AtomicU64, Ordering};

/// Words of a block that is compared at once.
const BLOCK: usize = 16;
/// Bytes of a table.
const TABLE: isize = 4096;

/// A table of 512 words in guest RAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestTable(*mut u64);

impl GuestTable {
    /// Makes the table at `start`.
    ///
    /// # Safety
    /// - A whole frame of guest RAM starts there, mapped for good and reached by atomic accesses only.
    pub(super) const unsafe fn new(start: *mut u64) -> Self {
        Self(start)
    }

    /// Compares with `copy` under `mask`, and sets a bit for each word that differs.
    pub(super) fn diff(self, copy: &[u64; 512], mask: u64) -> [u64; 8] {
        let mut differing = [0; 8];
        let mut from = 0;
        while let Some(block) = self.first_unlike(copy, from) {
            let slots = block * BLOCK..(block + 1) * BLOCK;
            for (slot, old) in slots.clone().zip(&copy[slots]) {
                // SAFETY:
                // - The word lies in the table, which `new` was promised.
                let word = unsafe { AtomicU64::from_ptr(self.0.wrapping_add(slot)) };
                if (word.load(Ordering::Acquire) ^ old) & mask != 0 {
                    differing[slot / 64] |= 1 << (slot % 64);
                }
            }
            from = block + 1;
        }
        differing
    }

    /// Returns the first block from `from` on that isn't like the copy's.
    #[inline]
    fn first_unlike(self, copy: &[u64; 512], from: usize) -> Option<usize> {
        let mut at = (from * BLOCK * 8) as isize - TABLE;
        if at >= 0 {
            return None;
        }
        // SAFETY:
        // - Both tables have 4096 bytes behind their starts, and `at` runs from where it is up to 0 before their ends.
        // - The guest's is aligned as a frame is; the copy is read at any alignment.
        unsafe {
            core::arch::asm!(
                "2:",
                "movdqu {x}, [{copy}+{at}]",
                "pcmpeqd {x}, [{words}+{at}]",
                "movdqu {y}, [{copy}+{at}+16]",
                "pcmpeqd {y}, [{words}+{at}+16]",
                "pand {x}, {y}",
                "movdqu {y}, [{copy}+{at}+32]",
                "pcmpeqd {y}, [{words}+{at}+32]",
                "pand {x}, {y}",
                "movdqu {y}, [{copy}+{at}+48]",
                "pcmpeqd {y}, [{words}+{at}+48]",
                "pand {x}, {y}",
                "movdqu {y}, [{copy}+{at}+64]",
                "pcmpeqd {y}, [{words}+{at}+64]",
                "pand {x}, {y}",
                "movdqu {y}, [{copy}+{at}+80]",
                "pcmpeqd {y}, [{words}+{at}+80]",
                "pand {x}, {y}",
                "movdqu {y}, [{copy}+{at}+96]",
                "pcmpeqd {y}, [{words}+{at}+96]",
                "pand {x}, {y}",
                "movdqu {y}, [{copy}+{at}+112]",
                "pcmpeqd {y}, [{words}+{at}+112]",
                "pand {x}, {y}",
                "pmovmskb {alike:e}, {x}",
                "cmp {alike:e}, 0xffff",
                "jne 3f",
                "add {at}, 128",
                "jnz 2b",
                "3:",
                x = out(xmm_reg) _, y = out(xmm_reg) _, alike = out(reg) _,
                at = inout(reg) at,
                words = in(reg) self.0.wrapping_byte_offset(TABLE),
                copy = in(reg) copy.as_ptr().wrapping_byte_offset(TABLE),
                options(nostack, readonly)
            );
        }
        (at < 0).then(|| (at + TABLE) as usize / (BLOCK * 8))
    }
}
