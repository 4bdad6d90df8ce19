//! Repackages an ELF64 file as ELF32: the same segments under 32-bit headers.
//!
//! Multiboot-1 loaders take 32-bit ELF files only, and the toolchain of a 64-bit host writes none. A guest made of
//! 32-bit code is linked as ELF64 all the same; [`Elf32`] then gives it the headers that it should have had.
//!
//! 1. Only loaded segments (`PT_LOAD`) are kept; section headers, symbols and notes are not.
//! 2. The first segment's bytes begin 4 KiB into the file, so a multiboot header at the segment's start stays within
//!    the first 8 KiB of the file, as its specification demands.
//! 3. The input is only a claim: every offset is checked, nothing panics.

/// Bytes of an ELF32 file header and of one program header of it.
const HEADER: usize = 52;
const PROGRAM_HEADER: usize = 32;
/// Where the first segment's bytes begin; every segment begins at a multiple.
const ALIGNMENT: usize = 4096;
/// The most segments that a file may have.
const MAX_SEGMENTS: usize = 8;

/// Why a file cannot be repackaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Elf32Error {
    /// The file does not begin as a little-endian x86-64 ELF64 executable does.
    #[error("the file is no x86-64 ELF64 executable")]
    NotElf64,
    /// A header or a segment lies outside the file.
    #[error("the file ends before the {0} bytes at offset {1:#x}")]
    Truncated(u64, u64),
    /// An address does not fit in 32 bits.
    #[error("the address {0:#x} is above 4 GiB")]
    AddressTooHigh(u64),
    /// There is nothing to load, or more than this module is made for.
    #[error("the file has {0} loaded segments, not 1 to 8")]
    SegmentCount(usize),
    /// The buffer given to [`Elf32::write`] is too small.
    #[error("the buffer has {0} bytes, the file needs {1}")]
    BufferTooSmall(usize, usize),
}

/// A loaded segment: its bytes, and the numbers of its program header.
#[derive(Clone, Copy, Debug, Default)]
struct Segment<'a> {
    bytes: &'a [u8],
    virtual_address: u32,
    physical_address: u32,
    memory_size: u32,
    flags: u32,
}

/// An ELF64 file, ready to be written as ELF32.
///
/// ```
/// use vmmu_guest::elf32::{Elf32, Elf32Error};
///
/// fn repackage(elf64: &[u8]) -> Result<Vec<u8>, Elf32Error> {
///     let file = Elf32::from_elf64(elf64)?;
///     let mut out = vec![0; file.size()];
///     file.write(&mut out)?;
///     Ok(out)
/// }
/// assert_eq!(repackage(b"no ELF"), Err(Elf32Error::NotElf64));
/// ```
#[derive(Clone, Debug)]
pub struct Elf32<'a> {
    entry: u32,
    segments: [Segment<'a>; MAX_SEGMENTS],
    count: usize,
}

impl<'a> Elf32<'a> {
    /// Reads the headers of `file`.
    ///
    /// # Errors
    /// If it is no ELF64 executable for x86-64, is truncated, or has anything above 4 GiB.
    pub fn from_elf64(file: &'a [u8]) -> Result<Self, Elf32Error> {
        const IDENT: &[u8] = b"\x7fELF\x02\x01\x01";
        const EXECUTABLE: u64 = 2;
        const X86_64: u64 = 62;
        if !file.starts_with(IDENT)
            || number(file, 16, 2)? != EXECUTABLE
            || number(file, 18, 2)? != X86_64
        {
            return Err(Elf32Error::NotElf64);
        }
        let (table, size, headers) = (
            number(file, 32, 8)?,
            number(file, 54, 2)?,
            number(file, 56, 2)?,
        );
        let mut this = Self {
            entry: narrow(number(file, 24, 8)?)?,
            segments: Default::default(),
            count: 0,
        };
        for header in 0..headers {
            let at = table.wrapping_add(header * size);
            const PT_LOAD: u64 = 1;
            if number(file, at, 4)? == PT_LOAD {
                this.add(segment(file, at)?)?;
            }
        }
        if this.count == 0 {
            Err(Elf32Error::SegmentCount(0))
        } else {
            Ok(this)
        }
    }

    fn add(&mut self, segment: Segment<'a>) -> Result<(), Elf32Error> {
        *self
            .segments
            .get_mut(self.count)
            .ok_or(Elf32Error::SegmentCount(MAX_SEGMENTS + 1))? = segment;
        self.count += 1;
        Ok(())
    }

    /// The segments, each with its offset in the ELF32 file.
    fn placed(&self) -> impl Iterator<Item = (usize, &Segment<'a>)> {
        let mut next = ALIGNMENT;
        self.segments[..self.count].iter().map(move |segment| {
            let offset = next;
            next = (offset + segment.bytes.len()).next_multiple_of(ALIGNMENT);
            (offset, segment)
        })
    }

    /// Bytes of the ELF32 file.
    #[must_use]
    pub fn size(&self) -> usize {
        self.placed()
            .map(|(offset, segment)| offset + segment.bytes.len())
            .max()
            .unwrap_or(ALIGNMENT)
    }

    /// Writes the ELF32 file to the start of `out`.
    ///
    /// # Errors
    /// If `out` is smaller than [`Elf32::size`].
    pub fn write(&self, out: &mut [u8]) -> Result<(), Elf32Error> {
        let given = out.len();
        let out = out
            .get_mut(..self.size())
            .ok_or(Elf32Error::BufferTooSmall(given, self.size()))?;
        out.fill(0);
        self.write_header(&mut out[..HEADER]);
        for (number, (offset, segment)) in self.placed().enumerate() {
            let header = HEADER + number * PROGRAM_HEADER;
            segment.write_header(offset as u32, &mut out[header..header + PROGRAM_HEADER]);
            out[offset..offset + segment.bytes.len()].copy_from_slice(segment.bytes);
        }
        Ok(())
    }

    fn write_header(&self, out: &mut [u8]) {
        const EXECUTABLE: u32 = 2;
        const I386: u32 = 3;
        out[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
        let halves = |low: u32, high: usize| low | (high as u32) << 16;
        let words = [
            halves(EXECUTABLE, I386 as usize),
            1, // version
            self.entry,
            HEADER as u32, // offset of the program headers
            0,             // no section headers
            0,             // no flags
            halves(HEADER as u32, PROGRAM_HEADER),
            halves(self.count as u32, 0),
            0,
        ];
        put_words(&mut out[16..], &words);
    }
}

impl Segment<'_> {
    fn write_header(&self, offset: u32, out: &mut [u8]) {
        const PT_LOAD: u32 = 1;
        let words = [
            PT_LOAD,
            offset,
            self.virtual_address,
            self.physical_address,
            self.bytes.len() as u32,
            self.memory_size,
            self.flags,
            ALIGNMENT as u32,
        ];
        put_words(out, &words);
    }
}

fn put_words(out: &mut [u8], words: &[u32]) {
    for (place, word) in out.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// The segment whose ELF64 program header is at offset `at`.
fn segment(file: &[u8], at: u64) -> Result<Segment<'_>, Elf32Error> {
    let field = |offset, size| number(file, at.wrapping_add(offset), size);
    let (virtual_address, memory_size) = (field(16, 8)?, field(40, 8)?);
    let end = virtual_address.saturating_add(memory_size);
    narrow(end.saturating_sub(1))?;
    Ok(Segment {
        bytes: slice(file, field(8, 8)?, field(32, 8)?)?,
        virtual_address: narrow(virtual_address)?,
        physical_address: narrow(field(24, 8)?)?,
        memory_size: narrow(memory_size)?,
        flags: narrow(field(4, 4)?)?,
    })
}

/// The little-endian number of `size` bytes at `offset`.
fn number(file: &[u8], offset: u64, size: u64) -> Result<u64, Elf32Error> {
    let bytes = slice(file, offset, size)?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// The `size` bytes at `offset`.
fn slice(file: &[u8], offset: u64, size: u64) -> Result<&[u8], Elf32Error> {
    let range = || {
        let start = usize::try_from(offset).ok()?;
        file.get(start..start.checked_add(usize::try_from(size).ok()?)?)
    };
    range().ok_or(Elf32Error::Truncated(size, offset))
}

/// `value`, if it fits in 32 bits.
fn narrow(value: u64) -> Result<u32, Elf32Error> {
    u32::try_from(value).map_err(|_| Elf32Error::AddressTooHigh(value))
}

#[cfg(test)]
mod repackaging {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::{Elf32, Elf32Error, HEADER, PROGRAM_HEADER};

    /// An ELF64 with these segments: (type, address, bytes, size in memory).
    fn elf64(segments: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2_u16.to_le_bytes());
        file.extend(62_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(0x10_0010_u64.to_le_bytes());
        file.extend(64_u64.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        file.extend(0_u32.to_le_bytes());
        for half in [64, 56, segments.len() as u16, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut data = 64 + 56 * segments.len();
        for (kind, address, bytes, memory) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for word in [
                data as u64,
                *address,
                *address,
                bytes.len() as u64,
                *memory,
                4096,
            ] {
                file.extend(word.to_le_bytes());
            }
            data += bytes.len();
        }
        segments
            .iter()
            .for_each(|(_, _, bytes, _)| file.extend(*bytes));
        file
    }

    fn repackage(elf64: &[u8]) -> Result<Vec<u8>, Elf32Error> {
        let file = Elf32::from_elf64(elf64)?;
        let mut out = vec![0xff; file.size()];
        file.write(&mut out)?;
        Ok(out)
    }

    fn word(file: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(file[offset..offset + 4].try_into().expect("four bytes"))
    }

    #[test]
    fn keeps_entry_addresses_and_bytes_of_loaded_segments() {
        let out = repackage(&elf64(&[
            (1, 0x10_0000, b"first", 5),
            (4, 0x20_0000, b"note", 4),
            (1, 0x30_0000, b"second", 0x1000),
        ]))
        .expect("a sound file");
        assert_eq!(&out[..7], b"\x7fELF\x01\x01\x01");
        assert_eq!((word(&out, 16), word(&out, 24)), (3 << 16 | 2, 0x10_0010));
        assert_eq!(word(&out, 44), 2, "program headers");
        let second = HEADER + PROGRAM_HEADER;
        assert_eq!(
            [
                word(&out, second + 8),
                word(&out, second + 16),
                word(&out, second + 20)
            ],
            [0x30_0000, 6, 0x1000]
        );
        let (first_at, second_at) = (
            word(&out, HEADER + 4) as usize,
            word(&out, second + 4) as usize,
        );
        assert_eq!(
            (&out[first_at..first_at + 5], &out[second_at..]),
            (&b"first"[..], &b"second"[..])
        );
        assert!(
            first_at <= 8192 - 32,
            "a multiboot header at its start is within the first 8 KiB"
        );
    }

    #[test]
    fn refuses_every_truncation_without_a_panic() {
        let whole = elf64(&[(1, 0x10_0000, b"text", 4)]);
        assert!(repackage(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(repackage(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn refuses_addresses_above_four_gib() {
        let high = elf64(&[(1, 1 << 32, b"text", 4)]);
        assert_eq!(
            repackage(&high),
            Err(Elf32Error::AddressTooHigh((1 << 32) + 3))
        );
        let crossing = elf64(&[(1, 0xffff_f000, b"text", 0x1001)]);
        assert_eq!(
            repackage(&crossing),
            Err(Elf32Error::AddressTooHigh(1 << 32))
        );
    }

    #[test]
    fn refuses_files_with_no_or_too_many_segments() {
        assert_eq!(
            repackage(&elf64(&[(4, 0, b"", 0)])),
            Err(Elf32Error::SegmentCount(0))
        );
        assert_eq!(
            repackage(&elf64(&[(1, 0, &b"x"[..], 1); 9])),
            Err(Elf32Error::SegmentCount(9))
        );
    }

    #[test]
    fn refuses_a_buffer_that_is_too_small() {
        let file = elf64(&[(1, 0x10_0000, b"text", 4)]);
        let file = Elf32::from_elf64(&file).expect("a sound file");
        let size = file.size();
        assert_eq!(
            file.write(&mut vec![0; size - 1]),
            Err(Elf32Error::BufferTooSmall(size - 1, size))
        );
    }
}
