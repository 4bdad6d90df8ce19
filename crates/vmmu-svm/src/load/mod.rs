//! Loading a guest's kernel file: which kind it is, where its parts go, how its first instruction finds the processor.
//!
//! | kind | module | entry |
//! |---|---|---|
//! | Linux bzImage | [`linux`] | 64-bit, with identity tables placed in guest memory |
//! | ELF with a PVH note | [`pvh`] | 32-bit protected mode, paging off, EBX names the start info |
//! | multiboot-1 ELF32 | [`multiboot`] | 32-bit protected mode, paging off, EBX names the information |
//!
//! A guest with several processors is told of them by ACPI tables ([`acpi`]), which it looks for below 1 MiB.
//!
//! Invariants:
//! 1. A file is an allegation: nothing panics on its content, nothing is written outside guest RAM.
//! 2. No two parts overlap: each is placed by [`Placer`].

pub mod acpi;
pub mod elf;
pub mod linux;
pub mod multiboot;
pub mod pvh;

use alloc::vec::Vec;
use core::ops::Range;

use vmmu::addr::Gpa;

use crate::arch::guest_ram::{GuestRam, NoMemory};

/// Where conventional memory ends; what lies between here and 1 MiB is reported as reserved.
const LOW_END: u64 = 0x9_fc00;
/// Where RAM goes on after the legacy area.
const HIGH_START: u64 = 0x10_0000;

/// What a loader needs of guest memory.
pub trait Memory {
    /// Copies bytes into guest memory.
    ///
    /// # Errors
    /// [`NoMemory`] if they don't fit.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory>;
    /// Fills guest memory with zeros.
    ///
    /// # Errors
    /// [`NoMemory`] if the range isn't RAM.
    fn zero(&self, gpa: Gpa, length: u64) -> Result<(), NoMemory>;
    /// Returns the ranges of RAM, in order.
    fn ranges(&self) -> Vec<Range<u64>>;
}

impl Memory for GuestRam {
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory> {
        Self::write(self, gpa, bytes)
    }
    fn zero(&self, gpa: Gpa, length: u64) -> Result<(), NoMemory> {
        Self::zero(self, gpa, length)
    }
    fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for piece in self.pieces() {
            let (start, end) = (piece.gpa.get(), piece.gpa.get() + piece.bytes);
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// How the guest's processor starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// 64-bit mode with paging on.
    Long {
        /// The first instruction.
        rip: u64,
        /// What RSI holds: the zero page.
        rsi: u64,
        /// The root table.
        cr3: Gpa,
        /// The descriptor table, with 64-bit code at 10h and data at 18h.
        gdt: Gpa,
    },
    /// 32-bit protected mode with paging off and flat segments.
    Protected {
        /// The first instruction.
        eip: u32,
        /// What EAX holds.
        eax: u32,
        /// What EBX holds.
        ebx: u32,
    },
}

/// A guest to load.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The modules, in order; the first is Linux's initrd.
    pub modules: &'a [&'a [u8]],
    /// The command line.
    pub command_line: &'a str,
}

/// Why a kernel file can't be loaded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is of none of the three kinds.
    #[error(
        "the file is neither a Linux bzImage, nor an ELF file with a PVH note, nor a multiboot ELF32 file"
    )]
    UnknownKind,
    /// It contradicts itself, or ends early.
    #[error("the kernel file is damaged: {0}")]
    Damaged(&'static str),
    /// It needs an entry that isn't offered.
    #[error("the kernel needs {0}, which this hypervisor doesn't offer")]
    Unsupported(&'static str),
    /// A part doesn't fit into guest memory.
    #[error("guest memory is too small: no room for {what} ({bytes} bytes)")]
    NoRoom {
        /// What was to be placed.
        what: &'static str,
        /// How large it is.
        bytes: u64,
    },
    /// A part of the file wants to lie where no RAM is.
    #[error("guest memory is too small: the kernel wants to lie at {0}")]
    NoMemory(Gpa),
    /// The command line is longer than the kernel takes.
    #[error("the command line has {0} bytes, more than the kernel takes")]
    CommandLine(usize),
}

impl From<NoMemory> for LoadError {
    fn from(error: NoMemory) -> Self {
        Self::NoMemory(error.0)
    }
}

/// Loads a guest into memory.
///
/// # Errors
/// See [`LoadError`].
pub fn load(guest: &Guest<'_>, memory: &impl Memory) -> Result<Entry, LoadError> {
    if let Some(image) = linux::Image::recognise(guest.kernel) {
        return image?.load(guest, memory);
    }
    let elf = elf::Elf::parse(guest.kernel)?.ok_or(LoadError::UnknownKind)?;
    if let Some(entry) = pvh::entry_point(&elf) {
        return pvh::load(guest, &elf, entry, memory);
    }
    if multiboot::is_multiboot(guest.kernel) {
        return multiboot::load(guest, &elf, memory);
    }
    Err(LoadError::UnknownKind)
}

/// A range of the memory map that the guest is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// Where it starts.
    pub start: u64,
    /// How long it is.
    pub bytes: u64,
    /// Its type.
    pub kind: MapKind,
}

/// The type of a range, in the numbers that all three protocols share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// Usable RAM.
    Ram = 1,
    /// Reserved.
    Reserved = 2,
}

/// Returns the memory map for ranges of RAM.
pub fn memory_map(ranges: &[Range<u64>]) -> Vec<MapEntry> {
    let entry = |range: Range<u64>, kind| MapEntry {
        start: range.start,
        bytes: range.end - range.start,
        kind,
    };
    let mut map = Vec::new();
    for range in ranges {
        if range.start == 0 && range.end > HIGH_START {
            map.push(entry(0..LOW_END, MapKind::Ram));
            map.push(entry(LOW_END..HIGH_START, MapKind::Reserved));
            map.push(entry(HIGH_START..range.end, MapKind::Ram));
        } else {
            map.push(entry(range.clone(), MapKind::Ram));
        }
    }
    map
}

/// Finds room for parts in guest RAM.
#[derive(Debug)]
pub struct Placer {
    ranges: Vec<Range<u64>>,
    taken: Vec<Range<u64>>,
}

impl Placer {
    /// Makes a placer for RAM of which nothing is taken but its first page and the legacy area.
    pub fn new(memory: &impl Memory) -> Self {
        Self {
            ranges: memory.ranges(),
            taken: alloc::vec![0..0x1000, LOW_END & !0xfff..HIGH_START],
        }
    }
    /// Takes a range that must lie just there.
    ///
    /// # Errors
    /// [`LoadError::NoMemory`] if it isn't free RAM.
    pub fn take(&mut self, start: u64, bytes: u64) -> Result<(), LoadError> {
        let end = start
            .checked_add(bytes)
            .ok_or(LoadError::NoMemory(Gpa::new(start)))?;
        let inside = self
            .ranges
            .iter()
            .any(|range| range.start <= start && end <= range.end);
        if !inside || self.collides(&(start..end)).is_some() {
            return Err(LoadError::NoMemory(Gpa::new(start)));
        }
        self.taken.push(start..end);
        Ok(())
    }
    /// Takes the highest free pages below `limit` and 4 GiB.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub fn place(&mut self, what: &'static str, bytes: u64, limit: u64) -> Result<Gpa, LoadError> {
        let no_room = LoadError::NoRoom { what, bytes };
        let length = bytes
            .max(1)
            .checked_next_multiple_of(4096)
            .ok_or(no_room.clone())?;
        let low = self
            .ranges
            .first()
            .map_or(0, |range| range.end)
            .min(limit)
            .min(1 << 32)
            & !0xfff;
        let mut end = low;
        loop {
            let start = end.checked_sub(length).ok_or(no_room.clone())?;
            match self.collides(&(start..end)) {
                Some(taken) => end = taken & !0xfff,
                None => {
                    self.taken.push(start..end);
                    return Ok(Gpa::new(start));
                }
            }
        }
    }
    /// Takes pages below 640 KiB.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub fn place_low(&mut self, what: &'static str, bytes: u64) -> Result<Gpa, LoadError> {
        self.place(what, bytes, LOW_END)
    }
    fn collides(&self, range: &Range<u64>) -> Option<u64> {
        self.taken
            .iter()
            .filter(|taken| taken.start < range.end && range.start < taken.end)
            .map(|taken| taken.start)
            .min()
    }
}

/// Little-endian structures being put together.
#[derive(Debug, Default)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// Adds bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }
    /// Adds a 16-bit number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// Adds a 32-bit number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// Adds a 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// Returns the bytes.
    pub fn get(&self) -> &[u8] {
        &self.0
    }
}

/// Writes a text and its terminating zero.
fn write_text(memory: &impl Memory, at: Gpa, text: &str) -> Result<(), NoMemory> {
    memory.write(at, text.as_bytes())?;
    memory.write(at.wrapping_add(text.len() as u64), &[0])
}

#[cfg(test)]
pub(crate) mod test_memory {
    use super::{Gpa, Memory, NoMemory, Range, Vec};
    use core::cell::RefCell;

    /// Guest memory as a vector.
    pub(crate) struct TestMemory(pub(crate) RefCell<Vec<u8>>);

    impl TestMemory {
        pub(crate) fn new(bytes: usize) -> Self {
            Self(RefCell::new(alloc::vec![0xcc; bytes]))
        }
        pub(crate) fn number(&self, at: u64, width: usize) -> u64 {
            crate::bundle::number(&self.0.borrow(), at as usize, width).unwrap()
        }
        pub(crate) fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
            self.0.borrow()[at as usize..][..length].to_vec()
        }
    }

    impl Memory for TestMemory {
        fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoMemory> {
            let mut memory = self.0.borrow_mut();
            let to = memory
                .get_mut(gpa.get() as usize..)
                .and_then(|to| to.get_mut(..bytes.len()));
            to.ok_or(NoMemory(gpa))?.copy_from_slice(bytes);
            Ok(())
        }
        fn zero(&self, gpa: Gpa, length: u64) -> Result<(), NoMemory> {
            let mut memory = self.0.borrow_mut();
            let to = memory
                .get_mut(gpa.get() as usize..)
                .and_then(|to| to.get_mut(..length as usize));
            to.ok_or(NoMemory(gpa))?.fill(0);
            Ok(())
        }
        #[allow(
            clippy::single_range_in_vec_init,
            reason = "the list of ranges has one entry"
        )]
        fn ranges(&self) -> Vec<Range<u64>> {
            Vec::from([0..self.0.borrow().len() as u64])
        }
    }
}

#[cfg(test)]
mod parts_find_their_places {
    use super::test_memory::TestMemory;
    use super::{Gpa, LoadError, Placer, load, memory_map};

    #[test]
    fn nothing_overlaps_what_was_taken() {
        let memory = TestMemory::new(4 << 20);
        let mut placer = Placer::new(&memory);
        placer.take(0x30_0000, 0x10_0000).unwrap();
        assert_eq!(placer.place("a", 0x1001, u64::MAX), Ok(Gpa::new(0x2f_e000)));
        assert_eq!(
            placer.take(0x2f_f000, 0x10),
            Err(LoadError::NoMemory(Gpa::new(0x2f_f000)))
        );
        assert_eq!(placer.place_low("b", 1), Ok(Gpa::new(0x9_e000)));
        assert!(matches!(
            placer.place("c", 4 << 20, u64::MAX),
            Err(LoadError::NoRoom { what: "c", .. })
        ));
    }

    #[test]
    fn the_map_leaves_the_legacy_area_out() {
        let map = memory_map(&[0..64 << 20, 4 << 30..5 << 30]);
        assert_eq!(
            map.iter()
                .map(|entry| entry.kind as u32)
                .collect::<Vec<_>>(),
            [1, 2, 1, 1]
        );
        assert!(
            map.windows(2)
                .all(|pair| pair[0].start + pair[0].bytes <= pair[1].start)
        );
    }

    #[test]
    fn a_file_of_no_kind_is_refused() {
        let guest = super::Guest {
            kernel: &[7; 9000],
            modules: &[],
            command_line: "",
        };
        assert_eq!(
            load(&guest, &TestMemory::new(4096)),
            Err(LoadError::UnknownKind)
        );
    }

    use alloc::vec::Vec;
}
