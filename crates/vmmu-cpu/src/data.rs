//! Access to memory through a processor: aligned words, compare-exchange, any bytes.
//!
//! Neighbours: [`crate::cpu`] translates; this moves the data.
//!
//! Invariants:
//! 1. An access that crosses a page translates both pages before it touches either: a fault
//!    leaves memory as it was (but for accessed and dirty bits).

use smallvec::SmallVec;

use crate::access::{Access, Kind};
use crate::addr::{Hpa, PageSize, Va};
use crate::cpu::Cpu;
use crate::fault::Fault;

/// A run of bytes in one page.
#[derive(Clone, Copy, Debug)]
struct Piece {
    hpa: Hpa,
    bytes: usize,
}

/// Memory accesses. The kind of the [`Access`] given is replaced by the method's own.
impl Cpu {
    /// Reads the 64-bit word at `va`, which must be aligned.
    ///
    /// # Errors
    /// As [`Cpu::translate`].
    pub fn read(&mut self, va: Va, access: Access) -> Result<u64, Fault> {
        let at = self.translate(
            va,
            Access {
                kind: Kind::Read,
                ..access
            },
        )?;
        Ok(self.mem.peek(at.hpa))
    }

    /// Writes the 64-bit word at `va`, which must be aligned.
    ///
    /// # Errors
    /// As [`Cpu::translate`].
    pub fn write(&mut self, va: Va, value: u64, access: Access) -> Result<(), Fault> {
        let at = self.translate(
            va,
            Access {
                kind: Kind::Write,
                ..access
            },
        )?;
        self.mem.store(at.hpa, value);
        Ok(())
    }

    /// Fetches the 64-bit word at `va`, which must be aligned, as code.
    ///
    /// # Errors
    /// As [`Cpu::translate`].
    pub fn fetch(&mut self, va: Va, access: Access) -> Result<u64, Fault> {
        let at = self.translate(
            va,
            Access {
                kind: Kind::Execute,
                ..access
            },
        )?;
        Ok(self.mem.peek(at.hpa))
    }

    /// Stores `new` at `va`, which must be aligned, if the 64-bit word there is `current`: a
    /// locked CMPXCHG, which counts as a write whatever it finds. Returns what it found.
    ///
    /// # Errors
    /// As [`Cpu::translate`].
    pub fn compare_exchange(
        &mut self,
        va: Va,
        current: u64,
        new: u64,
        access: Access,
    ) -> Result<u64, Fault> {
        let at = self.translate(
            va,
            Access {
                kind: Kind::Write,
                ..access
            },
        )?;
        Ok(self
            .mem
            .compare_exchange(at.hpa, current, new)
            .unwrap_or_else(|found| found))
    }

    /// Reads any bytes at `va`, or fetches them if `access` is an instruction fetch.
    ///
    /// # Errors
    /// As [`Cpu::translate`]; `bytes` is as it was then.
    pub fn read_bytes(&mut self, va: Va, bytes: &mut [u8], access: Access) -> Result<(), Fault> {
        let kind = if access.kind == Kind::Execute {
            Kind::Execute
        } else {
            Kind::Read
        };
        let pieces = self.pieces(va, bytes.len(), Access { kind, ..access })?;
        let mut rest = bytes;
        for piece in pieces {
            let (part, after) = rest.split_at_mut(piece.bytes);
            self.mem.read_bytes(piece.hpa, part);
            rest = after;
        }
        Ok(())
    }

    /// Writes any bytes at `va`; each byte by itself is atomic.
    ///
    /// # Errors
    /// As [`Cpu::translate`]; nothing is written then.
    pub fn write_bytes(&mut self, va: Va, bytes: &[u8], access: Access) -> Result<(), Fault> {
        let pieces = self.pieces(
            va,
            bytes.len(),
            Access {
                kind: Kind::Write,
                ..access
            },
        )?;
        let mut rest = bytes;
        for piece in pieces {
            let (part, after) = rest.split_at(piece.bytes);
            self.mem.write_bytes(piece.hpa, part);
            rest = after;
        }
        Ok(())
    }

    /// Translates every page that `len` bytes at `va` touch.
    fn pieces(
        &mut self,
        va: Va,
        len: usize,
        access: Access,
    ) -> Result<SmallVec<[Piece; 2]>, Fault> {
        let mut pieces = SmallVec::new();
        let mut done = 0;
        while done < len {
            let at = va.plus(done as u64);
            let in_page = (PageSize::Size4K.bytes() - at.offset(PageSize::Size4K)) as usize;
            let bytes = in_page.min(len - done);
            pieces.push(Piece {
                hpa: self.translate(at, access)?.hpa,
                bytes,
            });
            done += bytes;
        }
        Ok(pieces)
    }
}
