//! Stores collected before the first is done: how an instruction with several is all or nothing.
//!
//! Key type: [`Writes`].

use crate::cpu::{Access, Cpu, Stop};

/// A store to come.
#[derive(Clone, Copy, Debug)]
struct Write {
    at: u64,
    value: u64,
    bytes: u8,
    access: Access,
}

/// Up to `N` stores to come, in their order.
#[derive(Debug)]
pub(crate) struct Writes<const N: usize> {
    list: [Write; N],
    count: usize,
}

impl<const N: usize> Writes<N> {
    /// Makes an empty list.
    #[inline]
    pub(crate) const fn new() -> Self {
        const NOTHING: Write = Write {
            at: 0,
            value: 0,
            bytes: 1,
            access: Access::Write,
        };
        Self {
            list: [NOTHING; N],
            count: 0,
        }
    }

    /// Adds a store; callers know how many they need, one too many is [`Stop::Unsupported`].
    #[inline]
    pub(crate) fn add(
        &mut self,
        at: u64,
        value: u64,
        bytes: usize,
        access: Access,
    ) -> Result<(), Stop> {
        let slot = self.list.get_mut(self.count).ok_or(Stop::Unsupported)?;
        *slot = Write {
            at,
            value,
            bytes: bytes as u8,
            access,
        };
        self.count += 1;
        Ok(())
    }

    /// Finds out whether every store can be done; joins neighbours that go down, as pushes do.
    ///
    /// # Errors
    /// What the first that can't would raise.
    pub(crate) fn check(&self, cpu: &mut impl Cpu) -> Result<(), Stop> {
        let mut rest = &self.list[..self.count];
        while let [first, tail @ ..] = rest {
            let (mut low, mut len) = (first.at, usize::from(first.bytes));
            let joined = rest;
            rest = tail;
            while let [next, tail @ ..] = rest {
                let below = next.at.wrapping_add(u64::from(next.bytes)) == low;
                if !below || next.access != first.access {
                    break;
                }
                low = next.at;
                len += usize::from(next.bytes);
                rest = tail;
            }
            if let Err(stop) = cpu.check_write(low, len, first.access) {
                // One of them can't be done; the address that the guest sees is that of the first in order.
                for write in &joined[..joined.len() - rest.len()] {
                    cpu.check_write(write.at, usize::from(write.bytes), write.access)?;
                }
                return Err(stop);
            }
        }
        Ok(())
    }

    /// Does the stores, which [`Writes::check`] has found possible.
    ///
    /// # Errors
    /// Those of an embedder that breaks its promise.
    pub(crate) fn commit(&self, cpu: &mut impl Cpu) -> Result<(), Stop> {
        for write in &self.list[..self.count] {
            let Write {
                at, value, access, ..
            } = *write;
            match write.bytes {
                1 => cpu.store(at, value as u8, access)?,
                2 => cpu.store(at, value as u16, access)?,
                4 => cpu.store(at, value as u32, access)?,
                _ => cpu.store(at, value, access)?,
            }
        }
        Ok(())
    }
}
