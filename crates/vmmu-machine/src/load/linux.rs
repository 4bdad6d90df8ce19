//! A bzImage's setup header and the zero page (kernel documentation, "The Linux/x86 Boot Protocol"), as linux-loader has them.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;
use vmmu::addr::Gpa;
use vmmu_load::LoadError;
use vmmu_load::linux::{BzImage, MAP_MOST, Needs, Told, ZERO_PAGE};

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
}

impl<'a> BzImage<'a> for Image<'a> {
    fn recognise(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
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

    fn needs(&self) -> Needs<'a> {
        Needs {
            payload: self.payload,
            at: Gpa::new(self.header.pref_address),
            init_size: self.header.init_size.into(),
            initrd_last: self.header.initrd_addr_max,
            command_line_limit: self.header.cmdline_size.into(),
        }
    }

    fn zero_page(&self, told: &Told) -> [u8; ZERO_PAGE] {
        let mut parameters = boot_params {
            hdr: self.header,
            acpi_rsdp_addr: told.rsdp.map_or(0, Gpa::get),
            ..boot_params::default()
        };
        parameters.hdr.type_of_loader = LOADER;
        parameters.hdr.cmd_line_ptr = told.command_line;
        if let Some((at, bytes)) = told.initrd {
            parameters.hdr.ramdisk_image = at;
            parameters.hdr.ramdisk_size = bytes;
        }
        let mut table = [boot_e820_entry::default(); MAP_MOST];
        for (entry, part) in table.iter_mut().zip(&told.map) {
            entry.addr = part.start.get();
            entry.size = part.bytes;
            entry.type_ = part.kind as u32;
        }
        // At most 128.
        parameters.e820_entries = told.map.len() as u8;
        parameters.e820_table = table;
        let mut page = [0; ZERO_PAGE];
        page.copy_from_slice(parameters.as_slice());
        page
    }
}

#[cfg(test)]
mod a_bzimage_is_loaded {
    use vmmu_load::FlatRam;

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
    fn with_its_zero_page_and_initrd() {
        let mut ram = FlatRam::new(8 << 20);
        let kernel = bzimage();
        let entry = load(&guest(&kernel, "quiet"), &mut ram).unwrap();
        let Entry::Long { rip, rsi, .. } = entry else {
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
    }

    #[test]
    fn or_refused_if_it_is_cut_short() {
        let kernel = bzimage();
        for length in [0x230, 0x3ff, 1024 + 16] {
            let cut = load(&guest(&kernel[..length], ""), &mut FlatRam::new(8 << 20));
            assert!(matches!(cut, Err(LoadError::CutShort(_))), "{length}");
        }
        for length in 1..kernel.len() {
            let _ = load(&guest(&kernel[..length], ""), &mut FlatRam::new(2 << 20));
        }
    }

    #[test]
    fn or_refused_if_it_does_not_fit() {
        let kernel = bzimage();
        assert_eq!(
            load(&guest(&kernel, ""), &mut FlatRam::new(0x10_7000)),
            Err(LoadError::NoMemory(Gpa::new(0x10_0000)))
        );
        let long = "x".repeat(65);
        assert_eq!(
            load(&guest(&kernel, &long), &mut FlatRam::new(8 << 20)),
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
            load(&guest(&kernel, ""), &mut FlatRam::new(8 << 20)),
            Err(LoadError::Unsupported(_))
        ));
    }

    #[test]
    fn or_refused_whatever_byte_is_wrong() {
        let mut ram = FlatRam::new(2 << 20);
        for at in 0x1f1..1024 {
            for flip in [1, 0x80, 0xff] {
                let mut kernel = bzimage();
                kernel[at] ^= flip;
                let _ = load(&guest(&kernel, "quiet"), &mut ram);
            }
        }
    }
}
