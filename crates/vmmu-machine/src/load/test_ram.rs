//! Guest RAM for the loaders' tests: a vector that starts at 0, filled so that what isn't cleared shows.

use core::ops::Range;

use vmmu::addr::Gpa;

use super::{GuestRam, NoMemory};

/// What untouched memory holds.
pub(crate) const UNTOUCHED: u8 = 0xcc;

pub(crate) struct TestRam(Vec<u8>);

impl TestRam {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(vec![UNTOUCHED; bytes])
    }
    pub(crate) fn number(&self, at: u64, width: usize) -> u64 {
        let bytes = self.bytes(at, width);
        bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }
    pub(crate) fn bytes(&self, at: u64, length: usize) -> &[u8] {
        &self.0[at as usize..][..length]
    }
}

impl GuestRam for TestRam {
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
