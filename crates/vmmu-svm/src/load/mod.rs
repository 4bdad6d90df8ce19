//! Loading a guest: `vmmu-load` does it, into [`GuestRam`].
//!
//! Key functions: [`load`]; [`acpi::write`], by which a guest with several processors is told of them. [`linux`] has a bzImage's
//! structures.

pub mod acpi;
pub mod linux;

use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Gpa;
pub use vmmu_load::{Entry, Guest, LoadError};

use crate::arch::guest_ram::{self, GuestRam};

impl From<guest_ram::NoMemory> for vmmu_load::NoMemory {
    fn from(error: guest_ram::NoMemory) -> Self {
        Self(error.0)
    }
}

/// For loading, before the guest runs.
impl vmmu_load::GuestRam for &GuestRam {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), vmmu_load::NoMemory> {
        Ok(GuestRam::write(self, gpa, bytes)?)
    }
    fn zero(&mut self, gpa: Gpa, length: u64) -> Result<(), vmmu_load::NoMemory> {
        Ok(GuestRam::zero(self, gpa, length)?)
    }
    fn ranges(&self) -> Vec<Range<Gpa>> {
        let mut ranges: Vec<Range<Gpa>> = Vec::new();
        for piece in self.pieces() {
            let (start, end) = (piece.gpa, piece.gpa.wrapping_add(piece.bytes));
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// Loads a guest into memory.
///
/// # Errors
/// See [`LoadError`].
pub fn load(guest: &Guest<'_>, ram: &mut impl vmmu_load::GuestRam) -> Result<Entry, LoadError> {
    vmmu_load::load::<linux::Image<'_>>(guest, ram)
}
