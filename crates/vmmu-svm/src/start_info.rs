//! What the PVH loader hands over: modules and the memory map.
//!
//! The structures are those of the x86/HVM direct boot ABI, version 1. They lie in low memory and are copied out before anything
//! else is written.

use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Hpa;

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
/// More entries than any loader makes: a count above it is garbage.
const MOST: u32 = 1024;

/// The start info, copied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StartInfo {
    /// Where modules lie.
    pub modules: Vec<Range<Hpa>>,
    /// Ranges of RAM, of which the first few pages may hold the structures themselves.
    pub ram: Vec<Range<Hpa>>,
}

/// Why a start info is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartInfoError {
    /// The magic number is wrong.
    #[error("the start info has magic {0:#x}")]
    Magic(u32),
    /// Version 0 has no memory map.
    #[error("the start info has no memory map")]
    NoMemoryMap,
}

impl StartInfo {
    /// Parses the start info at `at`, with `copy` to read memory.
    ///
    /// # Errors
    /// See [`StartInfoError`].
    pub fn parse(at: Hpa, copy: impl Fn(Hpa, &mut [u8])) -> Result<Self, StartInfoError> {
        let word = |at: u64| {
            let mut bytes = [0; 8];
            copy(Hpa::new(at), &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let at = at.get();
        let magic = word(at) as u32;
        if magic != MAGIC {
            return Err(StartInfoError::Magic(magic));
        }
        let version = (word(at) >> 32) as u32;
        let (map, entries) = (word(at + 40), word(at + 48) as u32);
        if version == 0 || entries == 0 || entries > MOST {
            return Err(StartInfoError::NoMemoryMap);
        }
        let (modules, list) = ((word(at + 8) >> 32) as u32, word(at + 16));
        let range = |at: u64| Hpa::new(word(at))..Hpa::new(word(at).saturating_add(word(at + 8)));
        Ok(Self {
            modules: (0..u64::from(modules.min(MOST)))
                .map(|i| range(list + i * 32))
                .collect(),
            ram: (0..u64::from(entries))
                .map(|i| map + i * 24)
                .filter(|&entry| word(entry + 16) as u32 == TYPE_RAM)
                .map(range)
                .collect(),
        })
    }
}

#[cfg(test)]
mod a_start_info_is_copied {
    use super::*;

    fn image() -> Vec<u8> {
        let mut bytes = alloc::vec![0; 0x200];
        let mut put = |at: usize, value: u64, width: usize| {
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width])
        };
        put(0, u64::from(MAGIC), 4);
        put(4, 1, 4);
        put(12, 1, 4);
        put(16, 0x80, 8);
        put(40, 0x100, 8);
        put(48, 2, 4);
        put(0x80, 0x5000, 8);
        put(0x88, 0x123, 8);
        put(0x100, 0x10_0000, 8);
        put(0x108, 0x20_0000, 8);
        put(0x110, 1, 4);
        put(0x118, 0xf000_0000, 8);
        put(0x120, 0x1000, 8);
        put(0x128, 2, 4);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<StartInfo, StartInfoError> {
        StartInfo::parse(Hpa::new(0), |at, to| {
            to.copy_from_slice(&bytes[at.get() as usize..][..to.len()])
        })
    }

    #[test]
    fn modules_and_ram_are_found_and_reserved_ranges_left_out() {
        let info = parse(&image()).unwrap();
        assert_eq!(info.modules, [Hpa::new(0x5000)..Hpa::new(0x5123)]);
        assert_eq!(info.ram, [Hpa::new(0x10_0000)..Hpa::new(0x30_0000)]);
    }

    #[test]
    fn a_wrong_magic_number_is_refused() {
        let mut bytes = image();
        bytes[0] = 0;
        assert!(matches!(parse(&bytes), Err(StartInfoError::Magic(_))));
    }
}
