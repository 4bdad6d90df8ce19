//! What the loaders need of guest RAM.

use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Gpa;

/// An address where no RAM is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no RAM at {0}")]
pub struct NoMemory(pub Gpa);

/// Guest RAM, wherever its frames lie.
pub trait GuestRam {
    /// Copies bytes into guest memory; they may cross pages.
    ///
    /// # Errors
    /// [`NoMemory`] if they don't fit.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory>;

    /// Returns the ranges of RAM, in order and apart. The first starts at 0 and has what lies between 640 KiB and 1 MiB, as
    /// RAM that is never reported as usable.
    fn ranges(&self) -> Vec<Range<Gpa>>;

    /// Fills guest memory with zeros.
    ///
    /// # Errors
    /// [`NoMemory`] if the range isn't RAM.
    fn zero(&mut self, gpa: Gpa, length: u64) -> Result<(), NoMemory> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(ZEROS.len() as u64);
            self.write(gpa.wrapping_add(done), &ZEROS[..part as usize])?;
            done += part;
        }
        Ok(())
    }
}

/// Writes a text and its terminating zero.
pub(super) fn write_text(ram: &mut impl GuestRam, at: Gpa, text: &str) -> Result<(), NoMemory> {
    ram.write(at, text.as_bytes())?;
    ram.write(at.wrapping_add(text.len() as u64), &[0])
}
