//! Multiboot-1 ELF32 files (Multiboot Specification, version 0.6.96).

use vmmu::addr::Gpa;

use super::elf::{Elf, Width};
use super::{Bytes, Entry, Guest, LoadError, Memory, Placer, memory_map, write_text};
use crate::bundle::number;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies within this much of the file.
const SEARCHED: usize = 8192;
/// Header flags below bit 16 that this loader knows: page-aligned modules, memory information.
const KNOWN: u32 = 3;

/// Finds the header's flags.
fn header_flags(file: &[u8]) -> Option<u32> {
    let searched = file.get(..SEARCHED.min(file.len()))?;
    (0..searched.len()).step_by(4).find_map(|at| {
        let word = |index: usize| number(searched, at + 4 * index, 4).map(|word| word as u32);
        let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
        (magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0)
            .then_some(flags)
    })
}

/// Tells whether a file has a multiboot header.
pub fn is_multiboot(file: &[u8]) -> bool {
    header_flags(file).is_some()
}

/// Loads the file and writes the multiboot information.
///
/// # Errors
/// See [`LoadError`].
pub fn load(guest: &Guest<'_>, elf: &Elf<'_>, memory: &impl Memory) -> Result<Entry, LoadError> {
    let flags = header_flags(guest.kernel).unwrap_or(0);
    if flags & 0xffff & !KNOWN != 0 {
        return Err(LoadError::Unsupported(
            "a multiboot feature (such as a video mode)",
        ));
    }
    let eip = u32::try_from(elf.entry)
        .map_err(|_| LoadError::Damaged("the entry point is above 4 GiB"))?;
    if elf.width != Width::Bits32 {
        return Err(LoadError::Unsupported("multiboot from a 64-bit ELF file"));
    }
    let mut placer = Placer::new(memory);
    elf.load(memory, &mut placer)?;
    let command_line = placer.place_low("the command line", guest.command_line.len() as u64 + 1)?;
    write_text(memory, command_line, guest.command_line)?;
    let no_text = command_line.wrapping_add(guest.command_line.len() as u64);

    let mut modules = Bytes::default();
    for content in guest.modules {
        let at = placer.place("a module", content.len() as u64, u64::MAX)?;
        memory.write(at, content)?;
        let end = at.get() + content.len() as u64;
        modules
            .u32(at.get() as u32)
            .u32(end as u32)
            .u32(no_text.get() as u32)
            .u32(0);
    }
    let mut map = Bytes::default();
    for range in memory_map(&memory.ranges()) {
        map.u32(20)
            .u64(range.start)
            .u64(range.bytes)
            .u32(range.kind as u32);
    }
    let upper = memory
        .ranges()
        .first()
        .map_or(0, |range| range.end.saturating_sub(1 << 20) >> 10);
    let mut place = |what, bytes: &Bytes| -> Result<Gpa, LoadError> {
        let at = placer.place_low(what, bytes.get().len() as u64)?;
        memory.write(at, bytes.get())?;
        Ok(at)
    };
    let modules_at = place("the module list", &modules)?;
    let map_at = place("the memory map", &map)?;
    // Memory sizes, command line, modules, memory map.
    let mut info = Bytes::default();
    info.u32(1 | 1 << 2 | 1 << 3 | 1 << 6)
        .u32(639)
        .u32(upper as u32)
        .u32(0)
        .u32(command_line.get() as u32);
    info.u32(guest.modules.len() as u32)
        .u32(modules_at.get() as u32)
        .u64(0)
        .u64(0);
    info.u32(map.get().len() as u32).u32(map_at.get() as u32);
    info.u64(0).u64(0).u64(0).u64(0).u64(0);
    let info_at = place("the multiboot information", &info)?;
    Ok(Entry::Protected {
        eip,
        eax: LOADER_MAGIC,
        ebx: info_at.get() as u32,
    })
}

#[cfg(test)]
mod a_multiboot_guest_is_told {
    use super::super::elf::test_file::elf32;
    use super::super::test_memory::TestMemory;
    use super::super::{Entry, Guest, LoadError, load};
    use alloc::vec::Vec;

    fn kernel(flags: u32) -> Vec<u8> {
        let header: Vec<u8> = [
            0x1bad_b002,
            flags,
            0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags),
        ]
        .iter()
        .flat_map(|w: &u32| w.to_le_bytes())
        .collect();
        elf32(0x20_0000, &header, 64, &[])
    }

    #[test]
    fn its_modules_its_memory_and_its_command_line() {
        let memory = TestMemory::new(8 << 20);
        let kernel = kernel(3);
        let guest = Guest {
            kernel: &kernel,
            modules: &[b"one", b"three"],
            command_line: "-x",
        };
        let Ok(Entry::Protected {
            eip: 0x20_0000,
            eax: 0x2bad_b002,
            ebx,
        }) = load(&guest, &memory)
        else {
            panic!("not loaded")
        };
        let info = u64::from(ebx);
        assert_eq!(memory.number(info, 4), 0x4d);
        assert_eq!(memory.number(info + 8, 4), 7 << 10);
        assert_eq!(memory.bytes(memory.number(info + 16, 4), 3), b"-x\0");
        assert_eq!(memory.number(info + 20, 4), 2);
        let second = memory.number(info + 24, 4) + 16;
        let start = memory.number(second, 4);
        assert_eq!(memory.number(second + 4, 4) - start, 5);
        assert_eq!(memory.bytes(start, 5), b"three");
        assert_eq!(start % 4096, 0);
        let (length, map) = (memory.number(info + 44, 4), memory.number(info + 48, 4));
        assert_eq!(
            (length, memory.number(map, 4), memory.number(map + 20, 4)),
            (72, 20, 1)
        );
    }

    #[test]
    fn a_video_mode_is_refused() {
        let guest = Guest {
            kernel: &kernel(4),
            modules: &[],
            command_line: "",
        };
        assert!(matches!(
            load(&guest, &TestMemory::new(8 << 20)),
            Err(LoadError::Unsupported(_))
        ));
    }
}
