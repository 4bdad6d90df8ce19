//! Tells a kernel file's kind and how much memory it needs before anything is started.
//!
//! Key types: [`Kernel`], [`Kind`]. The hypervisor image judges the file again and binds; here the point is a
//! quick and clear answer.
//!
//! Invariants:
//! 1. The file is untrusted: every offset is checked, and nothing panics on any content.

use std::path::{Path, PathBuf};

use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use object::{Endianness, elf};

use crate::error::{Error, Result};
use crate::number::ByteSize;

/// The kinds of kernel that vmmu starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Linux's own format.
    BzImage,
    /// An ELF with the note that names a 32-bit entry point.
    Pvh,
    /// An ELF32 with a multiboot-1 header.
    Multiboot,
}

/// A kernel file that was read and recognised.
#[derive(Debug)]
pub struct Kernel {
    /// Where it came from.
    pub path: PathBuf,
    /// Its kind.
    pub kind: Kind,
    /// Its bytes, as they are on disk.
    pub bytes: Vec<u8>,
    /// Guest memory up to this address is the kernel's.
    end: u64,
}

/// The name and type of the PVH note, as Xen's public headers define it.
const PVH_NOTE_NAME: &[u8] = b"Xen";
const PVH_NOTE_TYPE: u32 = 18;
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
/// The multiboot header lies within the first 8 KiB (multiboot specification 0.6.96, section 3.1).
const MULTIBOOT_SEARCH: usize = 8192;

impl Kernel {
    /// Reads a kernel file.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it can't be read, [`Error::NotAKernel`] when it is of no known kind.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
        match recognise(&bytes) {
            Ok((kind, end)) => Ok(Self {
                path: path.to_owned(),
                kind,
                bytes,
                end,
            }),
            Err(reason) => Err(Error::NotAKernel {
                path: path.to_owned(),
                reason,
            }),
        }
    }

    /// Returns the least guest memory that holds the kernel and `modules` bytes of modules.
    #[must_use]
    pub fn least_memory(&self, modules: u64) -> ByteSize {
        ByteSize::from_bytes(self.end.saturating_add(modules)).round_up(ByteSize::from_mib(2))
    }
}

fn recognise(bytes: &[u8]) -> core::result::Result<(Kind, u64), String> {
    if let Some(end) = bzimage(bytes)? {
        return Ok((Kind::BzImage, end));
    }
    if bytes.starts_with(&elf::ELFMAG) {
        return match bytes.get(4) {
            Some(&elf::ELFCLASS32) => elf_kernel::<elf::FileHeader32<Endianness>>(bytes),
            _ => elf_kernel::<elf::FileHeader64<Endianness>>(bytes),
        };
    }
    Err("it has neither a Linux boot header nor an ELF header".to_owned())
}

/// Returns where the running kernel ends, or nothing if this is no bzImage
/// (kernel documentation, "The Linux/x86 Boot Protocol").
fn bzimage(bytes: &[u8]) -> core::result::Result<Option<u64>, String> {
    if bytes.get(0x202..0x206) != Some(b"HdrS") {
        return Ok(None);
    }
    let header = bytes.get(..0x268).ok_or("it ends inside its header")?;
    let word = |at: usize, size: usize| {
        header[at..at + size]
            .iter()
            .rev()
            .fold(0u64, |n, &b| n << 8 | u64::from(b))
    };
    let version = word(0x206, 2);
    if version < 0x020c {
        return Err(format!(
            "its boot protocol {}.{:02} is older than 2.12",
            version >> 8,
            version & 0xff
        ));
    }
    let load_64 = word(0x236, 2) & 1 == 1;
    if !load_64 {
        return Err("it is a 32-bit Linux; vmmu starts 64-bit ones".to_owned());
    }
    let (preferred, size) = (word(0x258, 8), word(0x260, 4));
    Ok(Some(preferred.saturating_add(size)))
}

fn elf_kernel<E: FileHeader<Endian = Endianness>>(
    bytes: &[u8],
) -> core::result::Result<(Kind, u64), String> {
    let damaged = |e: object::Error| format!("its ELF headers are damaged: {e}");
    let file = ElfFile::<E>::parse(bytes).map_err(damaged)?;
    let endian = file.endian();
    let machine = file.elf_header().e_machine(endian);
    if machine != elf::EM_X86_64 && machine != elf::EM_386 {
        return Err("it is an ELF for another processor".to_owned());
    }
    let mut end = 0;
    let mut pvh = false;
    for segment in file.elf_program_headers() {
        if segment.p_type(endian) == elf::PT_LOAD {
            let (start, size): (u64, u64) = (
                segment.p_paddr(endian).into(),
                segment.p_memsz(endian).into(),
            );
            end = end.max(start.saturating_add(size));
        }
        let Ok(Some(mut notes)) = segment.notes(endian, bytes) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            pvh |= note.name() == PVH_NOTE_NAME && note.n_type(endian) == PVH_NOTE_TYPE;
        }
    }
    if pvh {
        Ok((Kind::Pvh, end))
    } else if !file.elf_header().is_class_64() && has_multiboot_header(bytes) {
        Ok((Kind::Multiboot, end))
    } else {
        Err("it is an ELF with neither a PVH note nor a multiboot-1 header".to_owned())
    }
}

fn has_multiboot_header(bytes: &[u8]) -> bool {
    let word = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    bytes[..bytes.len().min(MULTIBOOT_SEARCH)]
        .windows(12)
        .step_by(4)
        .any(|header| {
            let (magic, flags, checksum) = (word(header), word(&header[4..]), word(&header[8..]));
            magic == MULTIBOOT_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0
        })
}

#[cfg(test)]
mod recognising {
    use super::{Kind, has_multiboot_header, recognise};

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 0x300];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        bytes[0x236] = 1;
        bytes[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        bytes[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_bzimage_needs_memory_up_to_its_end() {
        assert_eq!(recognise(&bzimage()), Ok((Kind::BzImage, 0x120_0000)));
    }

    #[test]
    fn a_32_bit_linux_is_named_as_such() {
        let mut bytes = bzimage();
        bytes[0x236] = 0;
        assert!(recognise(&bytes).unwrap_err().contains("32-bit"));
    }

    #[test]
    fn truncated_files_are_refused_at_every_length() {
        let whole = bzimage();
        for length in 0..0x268 {
            assert!(recognise(&whole[..length]).is_err(), "{length}");
        }
        let elf = crate::port::elf(crate::port::Program::Exit);
        for length in 0..=elf.len() {
            assert!(recognise(&elf[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_multiboot_header_counts_only_with_its_checksum_and_place() {
        let mut bytes = vec![0; 9000];
        bytes[8..12].copy_from_slice(&0x1bad_b002u32.to_le_bytes());
        assert!(!has_multiboot_header(&bytes));
        bytes[16..20].copy_from_slice(&0x1bad_b002u32.wrapping_neg().to_le_bytes());
        assert!(has_multiboot_header(&bytes));
        bytes.rotate_right(8192);
        assert!(!has_multiboot_header(&bytes));
    }
}
