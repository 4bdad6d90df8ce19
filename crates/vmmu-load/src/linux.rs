//! Linux bzImages, by the 64-bit boot protocol (kernel documentation, "The Linux/x86 Boot Protocol"): zero page, identity
//! tables, descriptor table, entry 200h past the load address.
//!
//! Key types: [`BzImage`], what an embedder reads of a file and writes into the zero page; [`Needs`], what the header asks for;
//! [`Told`], what the zero page has to say.

use alloc::vec::Vec;

use vmmu::addr::Gpa;

use crate::placer::Placer;
use crate::ram::write_text;
use crate::{Bytes, Entry, Guest, GuestRam, LoadError, MapEntry, memory_map};

/// How long the zero page is, in bytes.
pub const ZERO_PAGE: usize = 4096;
/// As many entries as the zero page has room for.
pub const MAP_MOST: usize = 128;
/// From the load address to the 64-bit entry, in bytes.
const ENTRY: u64 = 0x200;

/// What an embedder knows of bzImages: how to read the setup header, and how to fill the zero page.
pub trait BzImage<'a>: Sized {
    /// Recognises a bzImage with a 64-bit entry; `None` if the file is no bzImage.
    fn recognise(file: &'a [u8]) -> Option<Result<Self, LoadError>>;

    /// Returns what the header asks for.
    fn needs(&self) -> Needs<'a>;

    /// Makes the zero page.
    fn zero_page(&self, told: &Told) -> [u8; ZERO_PAGE];
}

/// What a bzImage's header asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needs<'a> {
    /// The protected-mode part of the file.
    pub payload: &'a [u8],
    /// Where it wants to lie.
    pub at: Gpa,
    /// How much memory from there on the kernel uses before it reads the memory map, in bytes.
    pub init_size: u64,
    /// The last address that the initrd may occupy.
    pub initrd_last: u32,
    /// How long the command line may be, in bytes.
    pub command_line_limit: u64,
}

/// What the zero page tells. All of it lies below 4 GiB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// Where the command line is.
    pub command_line: u32,
    /// Where the initrd is, and how long, in bytes.
    pub initrd: Option<(u32, u32)>,
    /// ACPI's root pointer.
    pub rsdp: Option<Gpa>,
    /// The memory map: at most [`MAP_MOST`] entries.
    pub map: Vec<MapEntry>,
}

/// Loads the kernel, its initrd and everything that it expects in memory.
pub(crate) fn load<'a>(
    image: &impl BzImage<'a>,
    guest: &Guest<'_>,
    ram: &mut impl GuestRam,
) -> Result<Entry, LoadError> {
    let needs = image.needs();
    let mut placer = Placer::new(ram);
    placer.take(needs.at, needs.init_size.max(needs.payload.len() as u64))?;
    ram.write(needs.at, needs.payload)?;

    let command_line = write_command_line(guest, needs.command_line_limit, ram, &mut placer)?;
    let initrd = match guest.modules.first() {
        Some(content) => Some(write_initrd(content, needs.initrd_last, ram, &mut placer)?),
        None => None,
    };
    let mut map = memory_map(&ram.ranges());
    map.truncate(MAP_MOST);
    let told = Told {
        command_line,
        initrd,
        rsdp: guest.rsdp,
        map,
    };
    let zero_page = placer.place_low("the zero page", ZERO_PAGE as u64)?;
    ram.write(zero_page, &image.zero_page(&told))?;
    let cr3 = write_identity_tables(ram, &mut placer)?;
    let gdt = write_descriptors(ram, &mut placer)?;
    Ok(Entry::Long {
        rip: needs.at.get().wrapping_add(ENTRY),
        rsi: zero_page.get(),
        cr3,
        gdt,
    })
}

fn write_command_line(
    guest: &Guest<'_>,
    limit: u64,
    ram: &mut impl GuestRam,
    placer: &mut Placer,
) -> Result<u32, LoadError> {
    let bytes = guest.command_line.len();
    if bytes as u64 > limit {
        return Err(LoadError::CommandLine { bytes, limit });
    }
    let at = placer.place_low("the command line", bytes as u64 + 1)?;
    write_text(ram, at, guest.command_line)?;
    // Placed below 640 KiB.
    Ok(at.get() as u32)
}

fn write_initrd(
    content: &[u8],
    last: u32,
    ram: &mut impl GuestRam,
    placer: &mut Placer,
) -> Result<(u32, u32), LoadError> {
    let bytes = content.len() as u64;
    let at = placer.place("the initrd", bytes, u64::from(last) + 1)?;
    ram.write(at, content)?;
    // Placed below 4 GiB, all of it.
    Ok((at.get() as u32, bytes as u32))
}

/// Writes tables that map the first 4 GiB one to one with 2 MiB pages, and returns their root.
fn write_identity_tables(ram: &mut impl GuestRam, placer: &mut Placer) -> Result<Gpa, LoadError> {
    const LINK: u64 = 0x3;
    const LARGE_LEAF: u64 = 0x83;
    let root = placer.place_low("the first page tables", 6 * 4096)?;
    ram.zero(root, 2 * 4096)?;
    let table = |index: u64| root.wrapping_add(index * 4096);
    let link = |to: Gpa| (to.get() | LINK).to_le_bytes();
    ram.write(root, &link(table(1)))?;
    for gib in 0..4 {
        let directory = table(2 + gib);
        ram.write(table(1).wrapping_add(gib * 8), &link(directory))?;
        let mut entries = Bytes::default();
        for slot in 0..512 {
            entries.u64(gib << 30 | slot << 21 | LARGE_LEAF);
        }
        ram.write(directory, entries.get())?;
    }
    Ok(root)
}

/// Writes the descriptor table of the protocol: 64-bit code at 10h, data at 18h.
fn write_descriptors(ram: &mut impl GuestRam, placer: &mut Placer) -> Result<Gpa, LoadError> {
    let gdt = placer.place_low("the descriptor table", 32)?;
    let mut descriptors = Bytes::default();
    descriptors
        .u64(0)
        .u64(0)
        .u64(0x00af_9b00_0000_ffff)
        .u64(0x00cf_9300_0000_ffff);
    ram.write(gdt, descriptors.get())?;
    Ok(gdt)
}

#[cfg(test)]
pub(crate) mod test_image {
    use super::{BzImage, Gpa, Needs, Told, ZERO_PAGE};
    use crate::{Bytes, Entry, Guest, GuestRam, LoadError};

    /// What makes a file an image to the tests; its payload follows.
    pub(crate) const MAGIC: &[u8] = b"tests' image";
    pub(crate) const AT: Gpa = Gpa::new(0x10_0000);
    pub(crate) const INIT_SIZE: u64 = 0x8000;
    pub(crate) const COMMAND_LINE_LIMIT: u64 = 64;

    /// An image without a header. Its zero page has the command line's address, the initrd's and its length, the root pointer, the
    /// number of entries of the map.
    struct Image<'a>(&'a [u8]);

    impl<'a> BzImage<'a> for Image<'a> {
        fn recognise(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
            file.strip_prefix(MAGIC).map(|payload| Ok(Self(payload)))
        }
        fn needs(&self) -> Needs<'a> {
            Needs {
                payload: self.0,
                at: AT,
                init_size: INIT_SIZE,
                initrd_last: 0x3f_ffff,
                command_line_limit: COMMAND_LINE_LIMIT,
            }
        }
        fn zero_page(&self, told: &Told) -> [u8; ZERO_PAGE] {
            let rsdp = told.rsdp.map_or(0, Gpa::get);
            let (at, length) = told.initrd.unwrap_or_default();
            let mut bytes = Bytes::default();
            bytes.u32(told.command_line).u32(at).u32(length).u64(rsdp);
            bytes.u32(told.map.len() as u32);
            let mut page = [0; ZERO_PAGE];
            page[..bytes.get().len()].copy_from_slice(bytes.get());
            page
        }
    }

    pub(crate) fn load(guest: &Guest<'_>, ram: &mut impl GuestRam) -> Result<Entry, LoadError> {
        crate::load::<Image<'_>>(guest, ram)
    }
}

#[cfg(test)]
mod a_linux_kernel_is_loaded {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::Gpa;
    use super::test_image::{AT, COMMAND_LINE_LIMIT, INIT_SIZE, MAGIC, load};
    use crate::{Entry, FlatRam, Guest, LoadError};

    fn kernel(payload: &[u8]) -> Vec<u8> {
        [MAGIC, payload].concat()
    }

    fn guest<'a>(kernel: &'a [u8], command_line: &'a str) -> Guest<'a> {
        Guest {
            kernel,
            modules: &[b"initrd", b"ignored"],
            command_line,
            rsdp: Some(Gpa::new(0xe_0000)),
        }
    }

    #[test]
    fn with_its_zero_page_tables_and_initrd() {
        let mut ram = FlatRam::new(8 << 20);
        let kernel = kernel(b"the kernel itself");
        let entry = load(&guest(&kernel, "quiet"), &mut ram).unwrap();
        let Entry::Long { rip, rsi, cr3, gdt } = entry else {
            panic!("{entry:?}")
        };
        assert_eq!(rip, 0x10_0200);
        assert_eq!(ram.bytes(AT.get(), 17), b"the kernel itself");
        assert_eq!(ram.bytes(ram.number(rsi, 4), 6), b"quiet\0");
        let initrd = ram.number(rsi + 4, 4);
        assert_eq!((initrd, ram.bytes(initrd, 6)), (0x3f_f000, &b"initrd"[..]));
        assert_eq!(ram.number(rsi + 8, 4), 6);
        assert_eq!(ram.number(rsi + 12, 8), 0xe_0000);
        assert_eq!(ram.number(rsi + 20, 4), 3);
        // 3 GiB + 4 MiB through the tables.
        let directories = ram.number(cr3.get(), 8) & !0xfff;
        let directory = ram.number(directories + 3 * 8, 8) & !0xfff;
        assert_eq!(ram.number(directory + 2 * 8, 8), 0xc040_0083);
        assert_eq!(ram.number(gdt.get() + 0x10, 8), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn and_nothing_lies_upon_it_even_if_it_is_larger_than_it_says() {
        let payload = vec![0x77; INIT_SIZE as usize + 5000];
        // The payload ends within the last page.
        let mut ram = FlatRam::new(AT.get() as usize + 0xa000);
        load(&guest(&kernel(&payload), ""), &mut ram).unwrap();
        assert_eq!(ram.bytes(AT.get(), payload.len()), payload);
    }

    #[test]
    fn or_refused_if_it_does_not_fit() {
        let kernel = kernel(b"the kernel itself");
        let end = (AT.get() + INIT_SIZE) as usize;
        assert_eq!(
            load(&guest(&kernel, ""), &mut FlatRam::new(end - 1)),
            Err(LoadError::NoMemory(AT))
        );
        let long = "x".repeat(65);
        assert_eq!(
            load(&guest(&kernel, &long), &mut FlatRam::new(8 << 20)),
            Err(LoadError::CommandLine {
                bytes: 65,
                limit: COMMAND_LINE_LIMIT
            })
        );
    }
}
