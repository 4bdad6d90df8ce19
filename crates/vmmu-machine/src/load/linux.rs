//! Linux bzImages, by the 64-bit boot protocol (kernel documentation, "The Linux/x86 Boot Protocol"): zero page, identity
//! tables, descriptor table, entry 200h past the load address. The structures are linux-loader's.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;
use vmmu::addr::Gpa;

use super::bytes::Bytes;
use super::placer::Placer;
use super::ram::write_text;
use super::{Entry, Guest, GuestRam, LoadError, memory_map};

/// Where the setup header lies, in the file as in the zero page.
const HEADER: usize = 0x1f1;
/// The header's length is the byte here, counted from the byte after.
const HEADER_LENGTH: usize = 0x201;
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// The oldest protocol that has everything used here: 2.12 brought the 64-bit entry's flag.
const OLDEST: u16 = 0x20c;
/// `xloadflags`: the kernel has the 64-bit entry.
const HAS_64BIT_ENTRY: u16 = 1;
/// A loader without an assigned number.
const LOADER: u8 = 0xff;
const SECTOR: usize = 512;

/// A bzImage and what its header says.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    header: setup_header,
    /// The protected-mode part of the file.
    payload: &'a [u8],
}

impl<'a> Image<'a> {
    /// Recognises a bzImage; `None` if the file is none.
    pub fn recognise(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
        let mut header = setup_header::default();
        let end = HEADER_LENGTH + 1 + usize::from(*file.get(HEADER_LENGTH)?);
        let bytes = file.get(HEADER..end.min(file.len()))?;
        let length = bytes.len().min(header.as_slice().len());
        header.as_mut_slice()[..length].copy_from_slice(&bytes[..length]);
        if header.boot_flag != BOOT_FLAG || header.header != MAGIC {
            return None;
        }
        Some(if file.len() < end {
            Err(LoadError::CutShort("the end of the setup header"))
        } else {
            Self::parse(header, file)
        })
    }

    fn parse(header: setup_header, file: &'a [u8]) -> Result<Self, LoadError> {
        if header.version < OLDEST || header.xloadflags & HAS_64BIT_ENTRY == 0 {
            return Err(LoadError::Unsupported(
                "an entry other than Linux's 64-bit one",
            ));
        }
        // Zero stands for four, for the oldest kernels' sake.
        let sectors = match header.setup_sects {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let payload = file
            .get((sectors + 1) * SECTOR..)
            .ok_or(LoadError::CutShort("the kernel after its setup code"))?;
        let compressed_end = u64::from(header.payload_offset) + u64::from(header.payload_length);
        if compressed_end > payload.len() as u64 {
            return Err(LoadError::CutShort("the end of the compressed kernel"));
        }
        Ok(Self { header, payload })
    }

    /// Loads the kernel, its initrd and everything that it expects in memory.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, guest: &Guest<'_>, ram: &mut impl GuestRam) -> Result<Entry, LoadError> {
        let mut placer = Placer::new(ram);
        let at = Gpa::new(self.header.pref_address);
        // Until it reads the memory map, the kernel uses this much.
        let needed = u64::from(self.header.init_size).max(self.payload.len() as u64);
        placer.take(at, needed)?;
        ram.write(at, self.payload)?;

        let command_line = self.write_command_line(guest, ram, &mut placer)?;
        let initrd = match guest.modules.first() {
            Some(content) => {
                let limit = u64::from(self.header.initrd_addr_max) + 1;
                let at = placer.place("the initrd", content.len() as u64, limit)?;
                ram.write(at, content)?;
                Some((at, content.len()))
            }
            None => None,
        };
        let rsdp = guest.rsdp.unwrap_or(Gpa::new(0));
        let parameters = self.parameters(ram, command_line, initrd, rsdp);
        let zero_page = placer.place_low("the zero page", 4096)?;
        ram.write(zero_page, parameters.as_slice())?;
        let cr3 = write_identity_tables(ram, &mut placer)?;
        let gdt = write_descriptors(ram, &mut placer)?;
        Ok(Entry::Long {
            rip: at.get().wrapping_add(0x200),
            rsi: zero_page.get(),
            cr3,
            gdt,
        })
    }

    fn write_command_line(
        &self,
        guest: &Guest<'_>,
        ram: &mut impl GuestRam,
        placer: &mut Placer,
    ) -> Result<Gpa, LoadError> {
        let (bytes, limit) = (guest.command_line.len(), self.header.cmdline_size.into());
        if bytes as u64 > limit {
            return Err(LoadError::CommandLine { bytes, limit });
        }
        let at = placer.place_low("the command line", bytes as u64 + 1)?;
        write_text(ram, at, guest.command_line)?;
        Ok(at)
    }

    /// Makes the zero page.
    fn parameters(
        &self,
        ram: &impl GuestRam,
        command_line: Gpa,
        initrd: Option<(Gpa, usize)>,
        rsdp: Gpa,
    ) -> boot_params {
        let mut parameters = boot_params {
            hdr: self.header,
            acpi_rsdp_addr: rsdp.get(),
            ..boot_params::default()
        };
        parameters.hdr.type_of_loader = LOADER;
        // All of these were placed below 4 GiB.
        parameters.hdr.cmd_line_ptr = command_line.get() as u32;
        if let Some((at, length)) = initrd {
            parameters.hdr.ramdisk_image = at.get() as u32;
            parameters.hdr.ramdisk_size = length as u32;
        }
        let mut table = [boot_e820_entry::default(); 128];
        let map = memory_map(&ram.ranges());
        for (entry, part) in table.iter_mut().zip(&map) {
            entry.addr = part.start.get();
            entry.size = part.bytes;
            entry.type_ = part.kind as u32;
        }
        parameters.e820_entries = map.len().min(table.len()) as u8;
        parameters.e820_table = table;
        parameters
    }
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
mod a_bzimage_is_loaded {
    use super::super::test_ram::TestRam;
    use super::super::{Entry, Guest, LoadError, load};
    use super::Gpa;

    fn bzimage() -> Vec<u8> {
        let mut file = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x66]);
        put(0x202, b"HdrS");
        put(0x206, &0x20fu16.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &1u16.to_le_bytes());
        put(0x238, &64u32.to_le_bytes());
        put(0x248, &4u32.to_le_bytes());
        put(0x24c, &13u32.to_le_bytes());
        put(0x258, &0x10_0000u64.to_le_bytes());
        put(0x260, &0x8000u32.to_le_bytes());
        file.extend(b"the kernel itself");
        file
    }

    fn guest<'a>(kernel: &'a [u8], command_line: &'a str) -> Guest<'a> {
        Guest {
            kernel,
            modules: &[b"initrd"],
            command_line,
            rsdp: Some(Gpa::new(0xe_0000)),
        }
    }

    #[test]
    fn with_its_zero_page_tables_and_initrd() {
        let mut ram = TestRam::new(8 << 20);
        let kernel = bzimage();
        let entry = load(&guest(&kernel, "quiet"), &mut ram).unwrap();
        let Entry::Long { rip, rsi, cr3, gdt } = entry else {
            panic!("{entry:?}")
        };
        assert_eq!(rip, 0x10_0200);
        assert_eq!(ram.bytes(0x10_0000, 17), b"the kernel itself");
        assert_eq!(ram.bytes(rsi + 0x202, 4), b"HdrS");
        assert_eq!(ram.number(rsi + 0x210, 1), 0xff);
        assert_eq!(ram.bytes(ram.number(rsi + 0x228, 4), 6), b"quiet\0");
        assert_eq!(ram.bytes(ram.number(rsi + 0x218, 4), 6), b"initrd");
        assert_eq!(ram.number(rsi + 0x21c, 4), 6);
        assert_eq!(ram.number(rsi + 0x070, 8), 0xe_0000);
        assert_eq!(ram.number(rsi + 0x1e8, 1), 3);
        assert_eq!(ram.number(rsi + 0x2d0 + 40, 8), 0x10_0000);
        assert_eq!(ram.number(rsi + 0x2d0 + 48, 8), 7 << 20);
        // 2 GiB + 2 MiB through the tables.
        let directories = ram.number(cr3.get(), 8) & !0xfff;
        let directory = ram.number(directories + 2 * 8, 8) & !0xfff;
        assert_eq!(ram.number(directory + 8, 8), 0x8020_0083);
        assert_eq!(ram.number(gdt.get() + 0x10, 8), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn and_nothing_lies_upon_it_even_if_it_is_larger_than_it_says() {
        let mut kernel = bzimage();
        kernel[0x260..0x264].copy_from_slice(&1u32.to_le_bytes());
        kernel.resize(1024 + 5000, 0x77);
        let mut ram = TestRam::new(0x10_2000);
        load(&guest(&kernel, ""), &mut ram).unwrap();
        assert_eq!(ram.bytes(0x10_0000, 5000), &kernel[1024..]);
    }

    #[test]
    fn or_refused_if_it_is_cut_short() {
        let kernel = bzimage();
        for length in [0x230, 0x3ff, 1024 + 16] {
            let cut = load(&guest(&kernel[..length], ""), &mut TestRam::new(8 << 20));
            assert!(matches!(cut, Err(LoadError::CutShort(_))), "{length}");
        }
        for length in 1..kernel.len() {
            let _ = load(&guest(&kernel[..length], ""), &mut TestRam::new(2 << 20));
        }
    }

    #[test]
    fn or_refused_if_it_does_not_fit() {
        let kernel = bzimage();
        assert_eq!(
            load(&guest(&kernel, ""), &mut TestRam::new(0x10_7000)),
            Err(LoadError::NoMemory(Gpa::new(0x10_0000)))
        );
        let long = "x".repeat(65);
        assert_eq!(
            load(&guest(&kernel, &long), &mut TestRam::new(8 << 20)),
            Err(LoadError::CommandLine {
                bytes: 65,
                limit: 64
            })
        );
    }

    #[test]
    fn or_refused_if_it_has_no_64_bit_entry() {
        let mut kernel = bzimage();
        kernel[0x236] = 0;
        assert!(matches!(
            load(&guest(&kernel, ""), &mut TestRam::new(8 << 20)),
            Err(LoadError::Unsupported(_))
        ));
    }

    #[test]
    fn or_refused_whatever_byte_is_wrong() {
        let mut ram = TestRam::new(2 << 20);
        for at in 0x1f1..1024 {
            for flip in [1, 0x80, 0xff] {
                let mut kernel = bzimage();
                kernel[at] ^= flip;
                let _ = load(&guest(&kernel, "quiet"), &mut ram);
            }
        }
    }
}
