//! Multiboot-1 ELF32 files (Multiboot Specification, version 0.6.96).

use vmmu::addr::Gpa;

use crate::elf::{Elf, Width};
use crate::map::{HIGH_START, LOW_END};
use crate::placer::Placer;
use crate::ram::write_text;
use crate::{Bytes, Entry, Guest, GuestRam, LoadError, memory_map};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies within this much of the file, at a multiple of four (section 3.1).
const SEARCHED: usize = 8192;
/// Header flags that a loader must know lie in these bits (section 3.1.2).
const REQUIRED: u32 = 0xffff;
/// Of them known here: page-aligned modules, memory information.
const KNOWN: u32 = 0x3;
/// What the information tells (section 3.3): memory sizes, command line, modules, memory map.
const TOLD: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6;

/// The header of a multiboot file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    flags: u32,
}

impl Header {
    /// Looks for the header: magic number, flags and checksum add up to zero.
    pub(super) fn find(file: &[u8]) -> Option<Self> {
        let searched = file.get(..SEARCHED.min(file.len()))?;
        let (words, _) = searched.as_chunks::<4>();
        words.windows(3).find_map(|three| {
            let [magic, flags, checksum] = [0, 1, 2].map(|at| u32::from_le_bytes(three[at]));
            let sum = magic.wrapping_add(flags).wrapping_add(checksum);
            (magic == HEADER_MAGIC && sum == 0).then_some(Self { flags })
        })
    }
}

/// Loads the file and writes the multiboot information.
pub(super) fn load(
    guest: &Guest<'_>,
    elf: &Elf<'_>,
    header: Header,
    ram: &mut impl GuestRam,
) -> Result<Entry, LoadError> {
    if header.flags & REQUIRED & !KNOWN != 0 {
        return Err(LoadError::Unsupported(
            "a multiboot feature (such as a video mode)",
        ));
    }
    if elf.width != Width::Bits32 {
        return Err(LoadError::Unsupported("multiboot from a 64-bit ELF file"));
    }
    let mut placer = Placer::new(ram);
    elf.load(ram, &mut placer)?;
    let command_line = placer.place_low("the command line", guest.command_line.len() as u64 + 1)?;
    write_text(ram, command_line, guest.command_line)?;
    let no_text = command_line.wrapping_add(guest.command_line.len() as u64);
    let modules = write_modules(guest, no_text, ram, &mut placer)?;
    let map = map_bytes(ram);
    let mut place = |what, bytes: &Bytes| -> Result<u32, LoadError> {
        let at = placer.place_low(what, bytes.get().len() as u64)?;
        ram.write(at, bytes.get())?;
        // Placed below 640 KiB.
        Ok(at.get() as u32)
    };
    let modules_at = place("the module list", &modules)?;
    let map_at = place("the memory map", &map)?;

    let mut info = Bytes::default();
    info.u32(TOLD).u32((LOW_END >> 10) as u32);
    info.u32(0).u32(0).u32(command_line.get() as u32);
    info.u32(guest.modules.len() as u32).u32(modules_at);
    info.bytes(&[0; 16]);
    info.u32(map.get().len() as u32).u32(map_at);
    info.bytes(&[0; 40]);
    let ebx = place("the multiboot information", &info)?;
    let upper = ram
        .ranges()
        .first()
        .map_or(0, |range| range.end.get().saturating_sub(HIGH_START) >> 10);
    let upper_at = Gpa::new(u64::from(ebx) + 8);
    // The first range of RAM ends below 4 GiB: the number of KiB fits.
    ram.write(upper_at, &(upper as u32).to_le_bytes())?;
    Ok(Entry::Protected {
        // The entry of a 32-bit file.
        eip: elf.entry as u32,
        eax: LOADER_MAGIC,
        ebx,
    })
}

/// Places the modules and returns the list of them.
fn write_modules(
    guest: &Guest<'_>,
    text: Gpa,
    ram: &mut impl GuestRam,
    placer: &mut Placer,
) -> Result<Bytes, LoadError> {
    let mut list = Bytes::default();
    for content in guest.modules {
        let at = placer.place("a module", content.len() as u64, u64::MAX)?;
        ram.write(at, content)?;
        let end = at.get() + content.len() as u64;
        // Below 4 GiB, where modules are placed.
        list.u32(at.get() as u32).u32(end as u32);
        list.u32(text.get() as u32).u32(0);
    }
    Ok(list)
}

/// Returns the memory map: entries that begin with their own size, less that field.
fn map_bytes(ram: &impl GuestRam) -> Bytes {
    let mut map = Bytes::default();
    for part in memory_map(&ram.ranges()) {
        map.u32(20).u64(part.start.get()).u64(part.bytes);
        map.u32(part.kind as u32);
    }
    map
}

#[cfg(test)]
mod a_multiboot_guest_is_told {
    use alloc::vec;
    use alloc::vec::Vec;

    use crate::elf::test_file::{elf32, elf64};
    use crate::linux::test_image::load;
    use crate::{Entry, FlatRam, Guest, LoadError};

    fn header(flags: u32) -> Vec<u8> {
        let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
        [0x1bad_b002, flags, checksum]
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect()
    }

    fn guest<'a>(kernel: &'a [u8], modules: &'a [&'a [u8]]) -> Guest<'a> {
        Guest {
            kernel,
            modules,
            command_line: "-x",
            rsdp: None,
        }
    }

    #[test]
    fn its_modules_its_memory_and_its_command_line() {
        let mut ram = FlatRam::new(8 << 20);
        let kernel = elf32(0x20_0000, &header(3), 64, &[]);
        let entry = load(&guest(&kernel, &[b"one", b"three"]), &mut ram).unwrap();
        let Entry::Protected { eip, eax, ebx } = entry else {
            panic!("{entry:?}")
        };
        assert_eq!((eip, eax), (0x20_0000, 0x2bad_b002));
        let info = u64::from(ebx);
        assert_eq!(ram.number(info, 4), 0x4d);
        assert_eq!(ram.number(info + 4, 4), 639);
        assert_eq!(ram.number(info + 8, 4), 7 << 10);
        assert_eq!(ram.bytes(ram.number(info + 16, 4), 3), b"-x\0");
        assert_eq!(ram.number(info + 20, 4), 2);
        let second = ram.number(info + 24, 4) + 16;
        let start = ram.number(second, 4);
        assert_eq!(ram.number(second + 4, 4) - start, 5);
        assert_eq!(ram.bytes(start, 5), b"three");
        assert_eq!(start % 4096, 0);
        let (length, map) = (ram.number(info + 44, 4), ram.number(info + 48, 4));
        assert_eq!(length, 72);
        assert_eq!((ram.number(map, 4), ram.number(map + 20, 4)), (20, 1));
    }

    #[test]
    fn that_a_video_mode_or_64_bit_file_is_refused() {
        for kernel in [
            elf32(0x20_0000, &header(4), 64, &[]),
            elf64(0x20_0000, &header(3), 64, &[]),
        ] {
            let refused = load(&guest(&kernel, &[]), &mut FlatRam::new(8 << 20));
            assert!(matches!(refused, Err(LoadError::Unsupported(_))));
        }
    }

    #[test]
    fn nothing_without_a_right_checksum() {
        let mut wrong = header(3);
        wrong[8] ^= 1;
        let kernel = elf32(0x20_0000, &wrong, 64, &[]);
        let refused = load(&guest(&kernel, &[]), &mut FlatRam::new(8 << 20));
        assert_eq!(refused, Err(LoadError::UnknownKind));
    }

    #[test]
    fn that_modules_do_not_fit() {
        let kernel = elf32(0x20_0000, &header(3), 64, &[]);
        let module = vec![0; 8 << 20];
        let refused = load(&guest(&kernel, &[&module]), &mut FlatRam::new(8 << 20));
        assert!(matches!(refused, Err(LoadError::NoRoom { .. })));
    }
}
