//! ELF executables of both widths: their segments and notes.

use alloc::vec::Vec;

use vmmu::addr::Gpa;

use super::{LoadError, Memory, Placer};
use crate::bundle::number;

const LOAD: u64 = 1;
const NOTE: u64 = 4;
/// More program headers than any kernel has.
const MOST: u64 = 256;

/// A program header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    kind: u64,
    /// What the file has of it.
    pub bytes: &'a [u8],
    /// Where it wants to lie.
    pub physical: u64,
    /// How long it is in memory.
    pub memory_size: u64,
}

/// A parsed executable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elf<'a> {
    /// The entry point that the header names.
    pub entry: u64,
    /// Whether it is a 32-bit file.
    pub width: Width,
    segments: Vec<Segment<'a>>,
}

/// The width of an ELF file's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// ELF32.
    Bits32,
    /// ELF64.
    Bits64,
}

impl<'a> Elf<'a> {
    /// Parses a file; `None` if it is no ELF file at all.
    ///
    /// # Errors
    /// [`LoadError::Damaged`] or [`LoadError::Unsupported`].
    pub fn parse(file: &'a [u8]) -> Result<Option<Self>, LoadError> {
        if file.get(..4) != Some(b"\x7fELF") {
            return Ok(None);
        }
        let width = match (file.get(4), file.get(5)) {
            (Some(1), Some(1)) => Width::Bits32,
            (Some(2), Some(1)) => Width::Bits64,
            _ => return Err(LoadError::Unsupported("another byte order or ELF class")),
        };
        Self::parse_headers(file, width)
            .ok_or(LoadError::Damaged("a program header lies outside the file"))
            .map(Some)
    }

    fn parse_headers(file: &'a [u8], width: Width) -> Option<Self> {
        let wide = width == Width::Bits64;
        let field = |narrow: (usize, usize), long: (usize, usize)| {
            let (at, bytes) = if wide { long } else { narrow };
            number(file, at, bytes)
        };
        let (entry, table) = (field((24, 4), (24, 8))?, field((28, 4), (32, 8))?);
        let (size, count) = (field((42, 2), (54, 2))?, field((44, 2), (56, 2))?);
        let mut segments = Vec::new();
        for index in 0..count.min(MOST) {
            let at = usize::try_from(table.checked_add(index * size)?).ok()?;
            segments.push(Segment::parse(file, at, wide)?);
        }
        Some(Self {
            entry,
            width,
            segments,
        })
    }

    /// Returns the segments to load.
    pub fn loads(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == LOAD && segment.memory_size != 0)
    }

    /// Finds the content of a note by its owner and type.
    pub fn note(&self, owner: &[u8], kind: u64) -> Option<&'a [u8]> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == NOTE)
            .find_map(|segment| find_note(segment.bytes, owner, kind))
    }

    /// Loads all segments.
    ///
    /// # Errors
    /// Those of memory and placer.
    pub fn load(&self, memory: &impl Memory, placer: &mut Placer) -> Result<(), LoadError> {
        for segment in self.loads() {
            placer.take(segment.physical, segment.memory_size)?;
            memory.write(Gpa::new(segment.physical), segment.bytes)?;
            let filled = segment.bytes.len() as u64;
            memory.zero(
                Gpa::new(segment.physical + filled),
                segment.memory_size - filled,
            )?;
        }
        Ok(())
    }
}

impl<'a> Segment<'a> {
    fn parse(file: &'a [u8], at: usize, wide: bool) -> Option<Self> {
        let field = |narrow: usize, long: usize| {
            if wide {
                number(file, at.checked_add(long)?, 8)
            } else {
                number(file, at.checked_add(narrow)?, 4)
            }
        };
        let kind = number(file, at, 4)?;
        let (offset, physical) = (field(4, 8)?, field(12, 24)?);
        let (file_size, memory_size) = (field(16, 32)?, field(20, 40)?);
        let bytes = if kind == LOAD || kind == NOTE {
            let end = usize::try_from(offset.checked_add(file_size)?).ok()?;
            file.get(usize::try_from(offset).ok()?..end)?
        } else {
            &[]
        };
        (kind != LOAD || file_size <= memory_size).then_some(Self {
            kind,
            bytes,
            physical,
            memory_size,
        })
    }
}

fn find_note<'a>(mut notes: &'a [u8], owner: &[u8], kind: u64) -> Option<&'a [u8]> {
    loop {
        let (name_size, content_size) =
            (number(notes, 0, 4)? as usize, number(notes, 4, 4)? as usize);
        let name = notes.get(12..12usize.checked_add(name_size)?)?;
        let start = 12 + name_size.next_multiple_of(4);
        let content = notes.get(start..start.checked_add(content_size)?)?;
        if number(notes, 8, 4)? == kind && name.strip_suffix(&[0]).unwrap_or(name) == owner {
            return Some(content);
        }
        notes = notes.get(start + content_size.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
pub(crate) mod test_file {
    use super::{LOAD, NOTE, Vec};

    /// Makes an ELF32 file with one segment and one note.
    pub(crate) fn elf32(physical: u32, content: &[u8], memory_size: u32, note: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(24, 0);
        for field in [physical, 52, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        for field in [52u16, 32, 2, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let (first, second) = (4096u32, 4096 + content.len() as u32);
        let header = |kind: u64, offset: u32, file_size: u32, memory_size: u32| {
            [
                kind as u32,
                offset,
                physical,
                physical,
                file_size,
                memory_size,
                7,
                4096,
            ]
        };
        for field in header(LOAD, first, content.len() as u32, memory_size) {
            file.extend(field.to_le_bytes());
        }
        for field in header(NOTE, second, note.len() as u32, 0) {
            file.extend(field.to_le_bytes());
        }
        file.resize(4096, 0);
        file.extend(content);
        file.extend(note);
        file
    }
}

#[cfg(test)]
mod an_elf_file_is_an_allegation {
    use super::super::test_memory::TestMemory;
    use super::test_file::elf32;
    use super::{Elf, Placer};

    #[test]
    fn segments_are_loaded_and_their_rest_cleared() {
        let memory = TestMemory::new(4 << 20);
        let file = elf32(0x20_0000, b"code", 16, &[]);
        let elf = Elf::parse(&file).unwrap().unwrap();
        elf.load(&memory, &mut Placer::new(&memory)).unwrap();
        assert_eq!(
            memory.bytes(0x20_0000, 17),
            *b"code\0\0\0\0\0\0\0\0\0\0\0\0\xcc"
        );
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_handled() {
        let file = elf32(
            0x20_0000,
            b"code",
            16,
            b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x20\0",
        );
        for length in 0..file.len() {
            let _ = Elf::parse(&file[..length]);
        }
        for at in (0..128).chain(4096..file.len()) {
            for flip in [1, 0x80, 0xff] {
                let mut file = file.clone();
                file[at] ^= flip;
                let memory = TestMemory::new(4 << 20);
                if let Ok(Some(elf)) = Elf::parse(&file) {
                    let _ = elf.note(b"Xen", 18);
                    let _ = elf.load(&memory, &mut Placer::new(&memory));
                }
            }
        }
    }
}
