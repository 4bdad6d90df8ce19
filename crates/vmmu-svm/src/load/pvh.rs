//! ELF files with a PVH note (x86/HVM direct boot ABI, version 1).

use vmmu::addr::Gpa;

use super::elf::Elf;
use super::{Bytes, Entry, Guest, LoadError, Memory, Placer, memory_map, write_text};
use crate::bundle::number;

const ENTRY_NOTE: u64 = 18;
const MAGIC: u32 = 0x336e_c578;

/// Returns the entry point that a PVH note names.
pub fn entry_point(elf: &Elf<'_>) -> Option<u32> {
    let content = elf.note(b"Xen", ENTRY_NOTE)?;
    u32::try_from(number(content, 0, content.len().min(8))?).ok()
}

/// Loads the file and writes the start info.
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    guest: &Guest<'_>,
    elf: &Elf<'_>,
    entry: u32,
    memory: &impl Memory,
) -> Result<Entry, LoadError> {
    let mut placer = Placer::new(memory);
    elf.load(memory, &mut placer)?;
    let command_line = placer.place_low("the command line", guest.command_line.len() as u64 + 1)?;
    write_text(memory, command_line, guest.command_line)?;

    let mut modules = Bytes::default();
    for content in guest.modules {
        let at = placer.place("a module", content.len() as u64, u64::MAX)?;
        memory.write(at, content)?;
        modules
            .u64(at.get())
            .u64(content.len() as u64)
            .u64(0)
            .u64(0);
    }
    let map = memory_map(&memory.ranges());
    let mut entries = Bytes::default();
    for range in &map {
        entries
            .u64(range.start)
            .u64(range.bytes)
            .u32(range.kind as u32)
            .u32(0);
    }
    let mut place = |what, bytes: &Bytes| -> Result<Gpa, LoadError> {
        let at = placer.place_low(what, bytes.get().len() as u64)?;
        memory.write(at, bytes.get())?;
        Ok(at)
    };
    let modules_at = place("the module list", &modules)?;
    let map_at = place("the memory map", &entries)?;
    let mut info = Bytes::default();
    info.u32(MAGIC)
        .u32(1)
        .u32(0)
        .u32(guest.modules.len() as u32)
        .u64(modules_at.get())
        .u64(command_line.get())
        .u64(0);
    info.u64(map_at.get()).u32(map.len() as u32).u32(0);
    let info_at = place("the start info", &info)?;
    Ok(Entry::Protected {
        eip: entry,
        eax: 0,
        ebx: info_at.get() as u32,
    })
}

#[cfg(test)]
mod a_pvh_guest_is_told {
    use super::super::elf::test_file::elf32;
    use super::super::test_memory::TestMemory;
    use super::super::{Entry, Guest, load};

    #[test]
    fn its_modules_its_memory_and_its_command_line() {
        let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x10\0\x20\0";
        let kernel = elf32(0x20_0000, b"code", 16, note);
        let memory = TestMemory::new(8 << 20);
        let guest = Guest {
            kernel: &kernel,
            modules: &[b"module"],
            command_line: "a b",
        };
        let Ok(Entry::Protected {
            eip: 0x20_0010,
            eax: 0,
            ebx,
        }) = load(&guest, &memory)
        else {
            panic!("not loaded")
        };
        let info = u64::from(ebx);
        assert_eq!(memory.number(info, 4), 0x336e_c578);
        assert_eq!(memory.bytes(memory.number(info + 24, 8), 4), b"a b\0");
        let list = memory.number(info + 16, 8);
        assert_eq!(memory.bytes(memory.number(list, 8), 6), b"module");
        assert_eq!(memory.number(list + 8, 8), 6);
        assert_eq!(memory.number(info + 48, 4), 3);
        let map = memory.number(info + 40, 8);
        assert_eq!(
            (memory.number(map + 48, 8), memory.number(map + 56, 8)),
            (0x10_0000, 7 << 20)
        );
    }
}
