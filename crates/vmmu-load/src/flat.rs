//! Guest RAM in one piece: what the loaders' tests load into.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Gpa;

use crate::{GuestRam, NoMemory};

/// What untouched memory holds, so that what isn't cleared shows.
const UNTOUCHED: u8 = 0xcc;

/// Guest RAM in a vector, from 0 on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlatRam(Vec<u8>);

impl FlatRam {
    /// Makes RAM of so many bytes, none of them zero.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(vec![UNTOUCHED; bytes])
    }

    /// Reads a little-endian number of up to 8 bytes.
    ///
    /// # Panics
    /// If it lies outside.
    #[must_use]
    pub fn number(&self, at: u64, width: usize) -> u64 {
        let bytes = self.bytes(at, width);
        bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }

    /// Returns bytes.
    ///
    /// # Panics
    /// If they lie outside.
    #[must_use]
    pub fn bytes(&self, at: u64, length: usize) -> &[u8] {
        &self.0[at as usize..][..length]
    }
}

impl GuestRam for FlatRam {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory> {
        let to = self
            .0
            .get_mut(gpa.get() as usize..)
            .and_then(|to| to.get_mut(..bytes.len()));
        to.ok_or(NoMemory(gpa))?.copy_from_slice(bytes);
        Ok(())
    }
    #[allow(
        clippy::single_range_in_vec_init,
        reason = "the list of ranges has one entry"
    )]
    fn ranges(&self) -> Vec<Range<Gpa>> {
        Vec::from([Gpa::new(0)..Gpa::new(self.0.len() as u64)])
    }
}
