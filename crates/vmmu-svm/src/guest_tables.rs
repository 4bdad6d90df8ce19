//! The guest's own tables, as the library's walker reaches them.

use vmmu::addr::Gpa;
use vmmu::walk::{CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth};

use crate::arch::guest_ram::GuestRam;

/// Guest RAM as the walker reaches it.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a>(pub &'a GuestRam);

impl GpteMemory for Tables<'_> {
    #[inline]
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError> {
        let raw = match width {
            GpteWidth::Bytes4 => self.0.load32(at).map(u64::from),
            GpteWidth::Bytes8 => self.0.load64(at),
        };
        raw.map(Gpte::new).map_err(|_| GpteError::Missing)
    }
    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        let won = match width {
            GpteWidth::Bytes4 => self
                .0
                .compare_exchange32(at, current.raw() as u32, new.raw() as u32)
                .map(|result| result.is_ok()),
            GpteWidth::Bytes8 => self
                .0
                .compare_exchange64(at, current.raw(), new.raw())
                .map(|result| result.is_ok()),
        };
        match won {
            Ok(true) => Ok(CasOutcome::Done),
            Ok(false) => Ok(CasOutcome::Lost),
            Err(_) => Err(GpteError::Missing),
        }
    }
}
