//! ELF executables of both widths: their segments and the PVH note.

use alloc::vec::Vec;

use object::Endianness;
use object::elf::{EM_386, EM_X86_64, FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use vmmu::addr::Gpa;

use crate::placer::Placer;
use crate::{GuestRam, LoadError};

/// The owner and type of the PVH note (x86/HVM direct boot ABI).
const PVH_OWNER: &[u8] = b"Xen";
const PVH_ENTRY: u32 = 18;

/// A segment to load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment<'a> {
    /// What the file has of it.
    bytes: &'a [u8],
    /// Where it wants to lie.
    at: Gpa,
    /// How long it is in memory: at least as long as `bytes`.
    memory_size: u64,
}

/// A parsed executable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Elf<'a> {
    /// The entry point that the header names.
    pub(super) entry: u64,
    /// The entry point that a PVH note names.
    pub(super) pvh_entry: Option<u32>,
    /// Whether it is a 32-bit file.
    pub(super) width: Width,
    segments: Vec<Segment<'a>>,
}

/// The width of an ELF file's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Width {
    /// ELF32.
    Bits32,
    /// ELF64.
    Bits64,
}

impl<'a> Elf<'a> {
    /// Parses a file; `None` if it is no ELF file at all.
    ///
    /// # Errors
    /// [`LoadError::CutShort`], [`LoadError::Damaged`] or [`LoadError::Unsupported`].
    pub(super) fn parse(file: &'a [u8]) -> Result<Option<Self>, LoadError> {
        if !file.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        match file.get(4..6) {
            Some([1, 1]) => Self::of::<FileHeader32<Endianness>>(file, Width::Bits32).map(Some),
            Some([2, 1]) => Self::of::<FileHeader64<Endianness>>(file, Width::Bits64).map(Some),
            Some(_) => Err(LoadError::Unsupported("another byte order or ELF class")),
            None => Err(LoadError::CutShort("its header")),
        }
    }

    fn of<E: FileHeader<Endian = Endianness>>(
        file: &'a [u8],
        width: Width,
    ) -> Result<Self, LoadError> {
        let header = E::parse(file).map_err(|_| LoadError::CutShort("its header"))?;
        let endian = Endianness::Little;
        if ![EM_386, EM_X86_64].contains(&header.e_machine(endian)) {
            return Err(LoadError::Unsupported("another processor"));
        }
        let headers = header
            .program_headers(endian, file)
            .map_err(|_| LoadError::CutShort("a program header"))?;
        let mut elf = Self {
            entry: header.e_entry(endian).into(),
            pvh_entry: None,
            width,
            segments: Vec::new(),
        };
        for header in headers {
            if header.p_type(endian) == PT_LOAD {
                elf.add_segment(header, file)?;
            } else if elf.pvh_entry.is_none() {
                elf.pvh_entry = pvh_entry(header, file)?;
            }
        }
        Ok(elf)
    }

    fn add_segment<P: ProgramHeader<Endian = Endianness>>(
        &mut self,
        header: &P,
        file: &'a [u8],
    ) -> Result<(), LoadError> {
        let endian = Endianness::Little;
        let bytes = header
            .data(endian, file)
            .map_err(|()| LoadError::CutShort("a segment"))?;
        let memory_size: u64 = header.p_memsz(endian).into();
        if memory_size < bytes.len() as u64 {
            return Err(LoadError::Damaged(
                "a segment is larger in the file than in memory",
            ));
        }
        if memory_size != 0 {
            self.segments.push(Segment {
                bytes,
                at: Gpa::new(header.p_paddr(endian).into()),
                memory_size,
            });
        }
        Ok(())
    }

    /// Loads all segments.
    ///
    /// # Errors
    /// [`LoadError::NoMemory`].
    pub(super) fn load(
        &self,
        ram: &mut impl GuestRam,
        placer: &mut Placer,
    ) -> Result<(), LoadError> {
        for segment in &self.segments {
            placer.take(segment.at, segment.memory_size)?;
            ram.write(segment.at, segment.bytes)?;
            let filled = segment.bytes.len() as u64;
            ram.zero(
                segment.at.wrapping_add(filled),
                segment.memory_size - filled,
            )?;
        }
        Ok(())
    }
}

/// Looks for the PVH note in a segment, if it is one of notes.
fn pvh_entry<P: ProgramHeader<Endian = Endianness>>(
    header: &P,
    file: &[u8],
) -> Result<Option<u32>, LoadError> {
    let endian = Endianness::Little;
    let cut_short = |_| LoadError::CutShort("a note");
    let Some(mut notes) = header.notes(endian, file).map_err(cut_short)? else {
        return Ok(None);
    };
    while let Some(note) = notes
        .next()
        .map_err(|_| LoadError::Damaged("a note is longer than its segment"))?
    {
        if note.name() == PVH_OWNER && note.n_type(endian) == PVH_ENTRY {
            // Four bytes, or eight of which the high ones are zero.
            let (low, high) = note
                .desc()
                .split_first_chunk()
                .ok_or(LoadError::Damaged("its PVH note is too short"))?;
            if high.iter().any(|&byte| byte != 0) {
                return Err(LoadError::Damaged("its PVH entry is above 4 GiB"));
            }
            return Ok(Some(u32::from_le_bytes(*low)));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(super) mod test_file {
    use super::Vec;

    /// Makes an ELF32 file with one segment and one note.
    pub(crate) fn elf32(physical: u32, content: &[u8], memory_size: u32, note: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        for field in [2u16, 3] {
            file.extend(field.to_le_bytes());
        }
        for field in [1u32, physical, 52, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        for field in [52u16, 32, 2, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let (first, second) = (4096, 4096 + content.len() as u32);
        let content_size = content.len() as u32;
        for field in [
            [
                1,
                first,
                physical,
                physical,
                content_size,
                memory_size,
                7,
                4096,
            ],
            [4, second, 0, 0, note.len() as u32, 0, 4, 4],
        ]
        .concat()
        {
            file.extend(field.to_le_bytes());
        }
        file.resize(4096, 0);
        file.extend(content);
        file.extend(note);
        file
    }

    /// Makes an ELF64 file with one segment and one note.
    pub(crate) fn elf64(physical: u64, content: &[u8], memory_size: u64, note: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for field in [2u16, 62] {
            file.extend(field.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for field in [physical, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for field in [64u16, 56, 2, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let (first, second) = (4096, 4096 + content.len() as u64);
        for (kind, fields) in [
            (
                1u32,
                [
                    first,
                    physical,
                    physical,
                    content.len() as u64,
                    memory_size,
                    4096,
                ],
            ),
            (4, [second, 0, 0, note.len() as u64, 0, 4]),
        ] {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for field in fields {
                file.extend(field.to_le_bytes());
            }
        }
        file.resize(4096, 0);
        file.extend(content);
        file.extend(note);
        file
    }

    /// A PVH note.
    pub(crate) const NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x10\0\x20\0";
}

#[cfg(test)]
mod an_elf_file_is_an_allegation {
    use super::test_file::{NOTE, elf32, elf64};
    use super::{Elf, LoadError, Placer};
    use crate::FlatRam;

    #[test]
    fn segments_are_loaded_and_their_rest_cleared() {
        for file in [
            elf32(0x20_0000, b"code", 16, NOTE),
            elf64(0x20_0000, b"code", 16, NOTE),
        ] {
            let mut ram = FlatRam::new(4 << 20);
            let mut placer = Placer::new(&ram);
            let elf = Elf::parse(&file).unwrap().unwrap();
            assert_eq!(elf.pvh_entry, Some(0x20_0010));
            elf.load(&mut ram, &mut placer).unwrap();
            assert_eq!(
                ram.bytes(0x20_0000, 17),
                b"code\0\0\0\0\0\0\0\0\0\0\0\0\xcc"
            );
        }
    }

    #[test]
    fn a_file_that_ends_early_is_cut_short() {
        let file = elf64(0x20_0000, b"code", 16, NOTE);
        for length in [8, 63, 100, 4097, 4100] {
            assert!(
                matches!(Elf::parse(&file[..length]), Err(LoadError::CutShort(_))),
                "{length}"
            );
        }
    }

    #[test]
    fn a_segment_larger_than_its_memory_is_damage() {
        let file = elf32(0x20_0000, b"code", 3, &[]);
        assert!(matches!(Elf::parse(&file), Err(LoadError::Damaged(_))));
    }

    #[test]
    fn every_flipped_byte_is_handled() {
        let mut ram = FlatRam::new(4 << 20);
        for good in [
            elf32(0x20_0000, b"code", 16, NOTE),
            elf64(0x20_0000, b"code", 16, NOTE),
        ] {
            for at in (0..192).chain(4096..good.len()) {
                for flip in [1, 0x80, 0xff] {
                    let mut file = good.clone();
                    file[at] ^= flip;
                    if let Ok(Some(elf)) = Elf::parse(&file) {
                        let mut placer = Placer::new(&ram);
                        let _ = elf.load(&mut ram, &mut placer);
                    }
                }
            }
        }
    }
}
