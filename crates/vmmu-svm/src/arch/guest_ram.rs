//! Guest RAM: bytes and atomic words that the guest changes at any time.
//!
//! [`GuestRam`] is reached by guest physical address, for loading and decoding, and by host frame, for the library. No Rust reference
//! to guest memory exists, except the one-word atomics made and dropped within one access.
//!
//! Invariants:
//! 1. An access that would leave guest RAM is refused, not clipped.
//! 2. The first piece starts at guest address 0; all are aligned to 2 MiB on both sides.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmmu::addr::{Gpa, Hpa, Pfn};

use super::compare::GuestTable;
use super::physical::TableWord;
use crate::layout::Piece;

/// The most bytes that [`GuestRam`] reads at once.
const SHORT: u64 = 16;

/// An access outside guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no guest memory at {0}")]
pub struct NoMemory(pub Gpa);

/// The guest's RAM.
#[derive(Clone, Debug)]
pub struct GuestRam {
    /// The piece that starts at guest address 0, which most accesses mean.
    first: Piece,
    pieces: Vec<Piece>,
}

impl GuestRam {
    /// Makes guest RAM of pieces that are RAM, mapped for good, and nobody else's.
    ///
    /// # Safety
    /// They must be just that.
    ///
    /// # Panics
    /// If there is none, or the first doesn't start at guest address 0.
    #[cfg(any(test, feature = "image"))]
    pub(super) unsafe fn new(pieces: Vec<Piece>) -> Self {
        let first = *pieces.first().expect("there is guest RAM");
        assert_eq!(first.gpa, Gpa::new(0), "guest RAM starts at 0");
        Self { first, pieces }
    }
    /// Returns the pieces, ordered by guest address.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Translates a guest physical address, if `length` bytes from it lie in one piece.
    #[inline]
    pub fn host(&self, gpa: Gpa, length: u64) -> Option<Hpa> {
        self.first
            .host(gpa, length)
            .or_else(|| self.host_elsewhere(gpa, length))
    }

    #[cold]
    fn host_elsewhere(&self, gpa: Gpa, length: u64) -> Option<Hpa> {
        self.pieces.iter().find_map(|piece| piece.host(gpa, length))
    }

    #[inline]
    fn pointer(&self, gpa: Gpa, length: u64) -> Result<*mut u8, NoMemory> {
        self.host(gpa, length)
            .map(|hpa| hpa.get() as *mut u8)
            .ok_or(NoMemory(gpa))
    }

    /// Returns the address of something of at most [`SHORT`] bytes that lies in the first piece, which starts at guest address 0.
    #[inline(always)]
    fn short(&self, gpa: Gpa) -> Option<*const u8> {
        (gpa.get() <= self.first.bytes - SHORT)
            .then(|| (self.first.hpa.get() + gpa.get()) as *const u8)
    }
    /// Loads a 64-bit word of the first piece (Acquire): what [`GuestRam::load64`] does, with one comparison.
    #[inline(always)]
    pub fn load64_low(&self, gpa: Gpa) -> Option<u64> {
        if gpa.get() & 7 != 0 {
            return None;
        }
        let pointer = self.short(gpa)?.cast_mut().cast();
        // SAFETY:
        // - The word lies in guest RAM, aligned, and is reached by atomic accesses only.
        let word = unsafe { AtomicU64::from_ptr(pointer) };
        Some(word.load(Ordering::Acquire))
    }

    /// Loads a naturally aligned 64-bit word (Acquire).
    ///
    /// # Errors
    /// [`NoMemory`], also when the address is not aligned.
    #[inline]
    pub fn load64(&self, gpa: Gpa) -> Result<u64, NoMemory> {
        Ok(self.word64(gpa)?.load(Ordering::Acquire))
    }
    /// Loads a naturally aligned 32-bit word (Acquire).
    ///
    /// # Errors
    /// As [`GuestRam::load64`].
    #[inline]
    pub fn load32(&self, gpa: Gpa) -> Result<u32, NoMemory> {
        Ok(self.word32(gpa)?.load(Ordering::Acquire))
    }
    /// Replaces `current` by `new` in an aligned 64-bit word (AcqRel); the inner result says what was there.
    ///
    /// # Errors
    /// As [`GuestRam::load64`].
    #[inline]
    pub fn compare_exchange64(
        &self,
        gpa: Gpa,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NoMemory> {
        Ok(self
            .word64(gpa)?
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }
    /// Replaces `current` by `new` in an aligned 32-bit word (AcqRel).
    ///
    /// # Errors
    /// As [`GuestRam::load64`].
    #[inline]
    pub fn compare_exchange32(
        &self,
        gpa: Gpa,
        current: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, NoMemory> {
        Ok(self
            .word32(gpa)?
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }

    #[inline]
    fn word64(&self, gpa: Gpa) -> Result<&AtomicU64, NoMemory> {
        if !gpa.get().is_multiple_of(8) {
            return Err(NoMemory(gpa));
        }
        let pointer = self.pointer(gpa, 8)?.cast();
        // SAFETY:
        // - Guest RAM is mapped for good, and the word is aligned, as the guest address is and pieces are aligned by 2 MiB.
        // - The hypervisor reaches guest RAM by atomic and volatile accesses only.
        Ok(unsafe { AtomicU64::from_ptr(pointer) })
    }
    #[inline]
    fn word32(&self, gpa: Gpa) -> Result<&AtomicU32, NoMemory> {
        if !gpa.get().is_multiple_of(4) {
            return Err(NoMemory(gpa));
        }
        let pointer = self.pointer(gpa, 4)?.cast();
        // SAFETY:
        // - As for 64 bits.
        Ok(unsafe { AtomicU32::from_ptr(pointer) })
    }

    /// Copies bytes out of guest memory.
    ///
    /// # Errors
    /// [`NoMemory`] if not all of them lie in one piece.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NoMemory> {
        let from = self.pointer(gpa, bytes.len() as u64)?;
        for (offset, byte) in bytes.iter_mut().enumerate() {
            // SAFETY:
            // - The range was checked.
            *byte = unsafe { from.wrapping_add(offset).read_volatile() };
        }
        Ok(())
    }

    /// Loads at most 8 bytes; all at once if they are as many as a word has, and aligned like it, for other processors use them too.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    pub fn load(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NoMemory> {
        if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *bytes)
            && let Ok(value) = self.load64(gpa)
        {
            *word = value.to_le_bytes();
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *bytes)
            && let Ok(value) = self.load32(gpa)
        {
            *word = value.to_le_bytes();
        } else {
            self.read(gpa, bytes)?;
        }
        Ok(())
    }
    /// Stores at most 8 bytes (Release); all at once as [`GuestRam::load`] loads them.
    ///
    /// # Errors
    /// As [`GuestRam::write`].
    pub fn store(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory> {
        if let Ok(&word) = <&[u8; 8]>::try_from(bytes)
            && let Ok(at) = self.word64(gpa)
        {
            at.store(u64::from_le_bytes(word), Ordering::Release);
        } else if let Ok(&word) = <&[u8; 4]>::try_from(bytes)
            && let Ok(at) = self.word32(gpa)
        {
            at.store(u32::from_le_bytes(word), Ordering::Release);
        } else {
            self.write(gpa, bytes)?;
        }
        Ok(())
    }

    /// Copies 16 bytes out of guest memory, at any alignment.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    #[inline]
    pub fn load16(&self, gpa: Gpa) -> Result<u128, NoMemory> {
        let from = match self.short(gpa) {
            Some(from) => from,
            None => self.pointer(gpa, SHORT)?,
        };
        let (low, high): (u64, u64);
        // SAFETY:
        // - The range was checked. In assembly, because the words may be unaligned, and the guest may change them meanwhile.
        unsafe {
            core::arch::asm!("mov {0}, [{2}]", "mov {1}, [{2}+8]", out(reg) low, lateout(reg) high, in(reg) from,
                 options(nostack, readonly, preserves_flags));
        }
        Ok(u128::from(high) << 64 | u128::from(low))
    }

    /// Copies bytes into guest memory.
    ///
    /// # Errors
    /// [`NoMemory`] if not all of them lie in guest memory; nothing is copied then.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory> {
        let to = self.pointer(gpa, bytes.len() as u64)?;
        // SAFETY:
        // - The range was checked; `bytes` is Rust's own memory or the bundle, which guest RAM doesn't overlap.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        Ok(())
    }

    /// Fills guest memory with zeros.
    ///
    /// # Errors
    /// As [`GuestRam::write`].
    pub fn zero(&self, gpa: Gpa, length: u64) -> Result<(), NoMemory> {
        let to = self.pointer(gpa, length)?;
        // SAFETY:
        // - The range was checked.
        unsafe { to.write_bytes(0, length as usize) }
        Ok(())
    }
}

impl GuestRam {
    /// Returns the address of a host frame that is guest RAM.
    #[inline]
    fn frame_pointer(&self, frame: Pfn) -> Option<*mut u8> {
        let hpa = frame.address().get();
        let inside = |piece: &Piece| hpa.wrapping_sub(piece.hpa.get()) < piece.bytes;
        (inside(&self.first) || self.pieces.iter().any(inside)).then_some(hpa as *mut u8)
    }
    /// Returns a 64-bit word of a host frame of guest RAM; `None` if the frame is another, or the offset not aligned.
    #[inline]
    pub fn frame_word64(&self, frame: Pfn, offset: u16) -> Option<TableWord<'_>> {
        if offset & 7 != 0 || offset >= 4096 {
            return None;
        }
        let pointer = self
            .frame_pointer(frame)?
            .wrapping_add(usize::from(offset))
            .cast();
        // SAFETY:
        // - The frame is guest RAM, mapped for good; the word is aligned and inside it, and reached by atomic accesses only.
        Some(TableWord::new(unsafe { AtomicU64::from_ptr(pointer) }))
    }
    #[inline]
    fn frame_word32(&self, frame: Pfn, offset: u16) -> Option<&AtomicU32> {
        if offset & 3 != 0 || offset >= 4096 {
            return None;
        }
        let pointer = self
            .frame_pointer(frame)?
            .wrapping_add(usize::from(offset))
            .cast();
        // SAFETY:
        // - As for 64 bits.
        Some(unsafe { AtomicU32::from_ptr(pointer) })
    }
    /// Loads a 32-bit word of a host frame of guest RAM (Acquire).
    #[inline]
    pub fn frame_load32(&self, frame: Pfn, offset: u16) -> Option<u32> {
        Some(self.frame_word32(frame, offset)?.load(Ordering::Acquire))
    }
    /// Replaces `current` by `new` in a 32-bit word of a host frame of guest RAM (AcqRel).
    #[inline]
    pub fn frame_compare_exchange32(
        &self,
        frame: Pfn,
        offset: u16,
        current: u32,
        new: u32,
    ) -> Option<Result<u32, u32>> {
        Some(self.frame_word32(frame, offset)?.compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        ))
    }
    /// Compares the 512 words of a host frame of guest RAM with `copy` under `mask`, and sets a bit for each that differs.
    pub fn frame_diff(&self, frame: Pfn, copy: &[u64; 512], mask: u64) -> Option<[u64; 8]> {
        let start = self.frame_pointer(frame)?.cast();
        // SAFETY:
        // - The frame is guest RAM, mapped for good, and reached by atomic accesses only.
        let table = unsafe { GuestTable::new(start) };
        Some(table.diff(copy, mask))
    }
}

#[cfg(test)]
impl GuestRam {
    /// Makes guest RAM of zeros on the test's heap, never given back.
    pub(crate) fn on_heap(blocks: usize) -> Self {
        #[derive(Clone)]
        #[repr(align(0x20_0000))]
        #[expect(dead_code, reason = "it is reached by its address")]
        struct Block([u8; 2 << 20]);
        let memory = alloc::vec![Block([0; 2 << 20]); blocks].leak();
        let piece = Piece {
            gpa: Gpa::new(0),
            hpa: Hpa::new(memory.as_mut_ptr() as u64),
            bytes: (blocks as u64) << 21,
        };
        // SAFETY:
        // - The memory was leaked just now, and its reference is gone.
        unsafe { Self::new(alloc::vec![piece]) }
    }
}

#[cfg(test)]
mod guest_ram_is_bytes_and_words {
    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let ram = GuestRam::on_heap(1);
        let end = 2 << 20;
        assert_eq!(ram.load64(Gpa::new(end - 8)), Ok(0));
        assert_eq!(ram.load64(Gpa::new(end)), Err(NoMemory(Gpa::new(end))));
        assert!(ram.load64(Gpa::new(4)).is_err());
        assert!(ram.load64(Gpa::new(u64::MAX - 7)).is_err());
        assert!(ram.load16(Gpa::new(end - 15)).is_err());
        assert!(ram.write(Gpa::new(end - 1), &[1, 2]).is_err());
        assert_eq!(ram.load64_low(Gpa::new(end - 16)), Some(0));
        assert_eq!(ram.load64_low(Gpa::new(end)), None);
        assert_eq!(ram.load64_low(Gpa::new(u64::MAX - 7)), None);
    }

    #[test]
    fn bytes_and_words_are_the_same_memory() {
        let ram = GuestRam::on_heap(1);
        ram.write(Gpa::new(0x1003), &[1, 2, 3, 4, 5]).unwrap();
        assert_eq!(ram.load64(Gpa::new(0x1000)), Ok(0x0504_0302_0100_0000));
        assert_eq!(ram.load16(Gpa::new(0x1003)), Ok(0x05_0403_0201));
        assert_eq!(
            ram.compare_exchange32(Gpa::new(0x1004), 0x0504_0302, 9),
            Ok(Ok(0x0504_0302))
        );
        assert_eq!(ram.load32(Gpa::new(0x1004)), Ok(9));
        // Aligned words, and what is neither aligned nor a word.
        for (at, length) in [
            (0x2000, 8),
            (0x2004, 4),
            (0x2003, 8),
            (0x2001, 4),
            (0x2ffd, 3),
        ] {
            let bytes: Vec<u8> = (1..=length).collect();
            let mut read = alloc::vec![0; bytes.len()];
            ram.store(Gpa::new(at), &bytes).unwrap();
            ram.load(Gpa::new(at), &mut read).unwrap();
            assert_eq!(read, bytes, "{at:#x}");
        }
    }

    #[test]
    fn each_word_that_differs_under_the_mask_is_found() {
        let ram = GuestRam::on_heap(1);
        let frame = Pfn::containing(ram.host(Gpa::new(0x3000), 4096).unwrap());
        let copy = core::array::from_fn(|i| i as u64 * 0x1_0000_0001);
        for (i, word) in (0..).zip(copy) {
            ram.frame_word64(frame, i * 8).unwrap().store(word);
        }
        assert_eq!(ram.frame_diff(frame, &copy, u64::MAX), Some([0; 8]));
        for slot in 0..512u16 {
            let word = ram.frame_word64(frame, slot * 8).unwrap();
            word.store(word.load() ^ 1 << 45);
            let mut expected = [0; 8];
            expected[usize::from(slot) / 64] = 1 << (slot % 64);
            assert_eq!(ram.frame_diff(frame, &copy, u64::MAX), Some(expected));
            assert_eq!(ram.frame_diff(frame, &copy, !(1 << 45)), Some([0; 8]));
            word.store(word.load() ^ 1 << 45);
        }
        assert_eq!(ram.frame_diff(Pfn::new(1), &copy, u64::MAX), None);
    }
}
