//! ELF files with a PVH note (x86/HVM direct boot ABI, version 1).

use vmmu::addr::Gpa;

use crate::elf::Elf;
use crate::placer::Placer;
use crate::ram::write_text;
use crate::{Bytes, Entry, Guest, GuestRam, LoadError, memory_map};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// Loads the file and writes the start info.
pub(super) fn load(
    guest: &Guest<'_>,
    elf: &Elf<'_>,
    entry: u32,
    ram: &mut impl GuestRam,
) -> Result<Entry, LoadError> {
    let mut placer = Placer::new(ram);
    elf.load(ram, &mut placer)?;
    let command_line = placer.place_low("the command line", guest.command_line.len() as u64 + 1)?;
    write_text(ram, command_line, guest.command_line)?;

    let mut modules = Bytes::default();
    for content in guest.modules {
        let at = placer.place("a module", content.len() as u64, u64::MAX)?;
        ram.write(at, content)?;
        let length = content.len() as u64;
        modules.u64(at.get()).u64(length).u64(0).u64(0);
    }
    let map = memory_map(&ram.ranges());
    let mut entries = Bytes::default();
    for part in &map {
        let kind = part.kind as u32;
        entries.u64(part.start.get()).u64(part.bytes);
        entries.u32(kind).u32(0);
    }
    let rsdp = guest.rsdp.unwrap_or(Gpa::new(0));
    let mut place = |what, bytes: &Bytes| -> Result<Gpa, LoadError> {
        let at = placer.place_low(what, bytes.get().len() as u64)?;
        ram.write(at, bytes.get())?;
        Ok(at)
    };
    let modules_at = place("the module list", &modules)?;
    let map_at = place("the memory map", &entries)?;
    let mut info = Bytes::default();
    info.u32(MAGIC).u32(VERSION).u32(0);
    info.u32(guest.modules.len() as u32).u64(modules_at.get());
    info.u64(command_line.get()).u64(rsdp.get());
    info.u64(map_at.get()).u32(map.len() as u32).u32(0);
    let info_at = place("the start info", &info)?;
    Ok(Entry::Protected {
        eip: entry,
        eax: 0,
        // Placed below 640 KiB.
        ebx: info_at.get() as u32,
    })
}

#[cfg(test)]
mod a_pvh_guest_is_told {
    use super::Gpa;
    use crate::elf::test_file::{NOTE, elf32, elf64};
    use crate::linux::test_image::load;
    use crate::{Entry, FlatRam, Guest};

    #[test]
    fn its_modules_its_memory_and_its_command_line() {
        for kernel in [
            elf32(0x20_0000, b"code", 16, NOTE),
            elf64(0x20_0000, b"code", 16, NOTE),
        ] {
            let mut ram = FlatRam::new(8 << 20);
            let guest = Guest {
                kernel: &kernel,
                modules: &[b"module"],
                command_line: "a b",
                rsdp: Some(Gpa::new(0xe_0000)),
            };
            let entry = load(&guest, &mut ram).unwrap();
            let Entry::Protected { eip, eax: 0, ebx } = entry else {
                panic!("{entry:?}")
            };
            assert_eq!(eip, 0x20_0010);
            let info = u64::from(ebx);
            assert_eq!(ram.number(info, 4), 0x336e_c578);
            assert_eq!(ram.bytes(ram.number(info + 24, 8), 4), b"a b\0");
            assert_eq!(ram.number(info + 32, 8), 0xe_0000);
            let list = ram.number(info + 16, 8);
            assert_eq!(ram.bytes(ram.number(list, 8), 6), b"module");
            assert_eq!(ram.number(list + 8, 8), 6);
            assert_eq!(ram.number(info + 48, 4), 3);
            let map = ram.number(info + 40, 8);
            assert_eq!(ram.number(map + 48, 8), 0x10_0000);
            assert_eq!(ram.number(map + 56, 8), 7 << 20);
        }
    }
}
