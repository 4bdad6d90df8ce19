//! A bzImage's setup header and the zero page (kernel documentation, "The Linux/x86 Boot Protocol"), field by field: the crates that
//! have them as structures want an operating system.

use vmmu::addr::Gpa;
use vmmu_load::linux::{BzImage, Needs, Told, ZERO_PAGE};
use vmmu_load::{Bytes, LoadError};

use crate::bundle::number;

/// Where the setup header lies, in the file as in the zero page.
const HEADER: usize = 0x1f1;
/// The oldest protocol that has everything used here: 2.12 brought the 64-bit entry's flag.
const OLDEST: u64 = 0x20c;
const RSDP: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
/// `xloadflags`: the kernel has the 64-bit entry.
const HAS_64BIT_ENTRY: u64 = 1;
/// A loader without an assigned number.
const LOADER: u8 = 0xff;

/// A bzImage and what its header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image<'a> {
    /// The setup header, as it is.
    header: &'a [u8],
    needs: Needs<'a>,
}

impl<'a> Image<'a> {
    /// Reads the header; `None` if the file ends early.
    fn parse(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
        if number(file, 0x206, 2)? < OLDEST || number(file, 0x236, 2)? & HAS_64BIT_ENTRY == 0 {
            return Some(Err(LoadError::Unsupported(
                "an entry other than Linux's 64-bit one",
            )));
        }
        // Zero stands for four, for the oldest kernels' sake.
        let sectors = match number(file, HEADER, 1)? {
            0 => 4,
            sectors => sectors as usize,
        };
        let header_end = 0x202 + number(file, 0x201, 1)? as usize;
        Some(Ok(Self {
            header: file.get(HEADER..header_end)?,
            needs: Needs {
                payload: file.get((sectors + 1) * 512..)?,
                at: Gpa::new(number(file, 0x258, 8)?),
                init_size: number(file, 0x260, 4)?,
                // Four bytes.
                initrd_last: number(file, 0x22c, 4)? as u32,
                command_line_limit: number(file, 0x238, 4)?,
            },
        }))
    }
}

impl<'a> BzImage<'a> for Image<'a> {
    fn recognise(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
        if number(file, 0x1fe, 2)? != 0xaa55 || file.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        Some(Self::parse(file).unwrap_or(Err(LoadError::CutShort("the end of the setup code"))))
    }

    fn needs(&self) -> Needs<'a> {
        self.needs
    }

    fn zero_page(&self, told: &Told) -> [u8; ZERO_PAGE] {
        let mut page = [0; ZERO_PAGE];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in page.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(HEADER, self.header);
        put(0x210, &[LOADER]);
        put(0x228, &told.command_line.to_le_bytes());
        if let Some((at, bytes)) = told.initrd {
            put(0x218, &at.to_le_bytes());
            put(0x21c, &bytes.to_le_bytes());
        }
        if let Some(rsdp) = told.rsdp {
            put(RSDP, &rsdp.get().to_le_bytes());
        }
        let mut entries = Bytes::default();
        for part in &told.map {
            entries.u64(part.start.get()).u64(part.bytes);
            entries.u32(part.kind as u32);
        }
        // At most 128.
        put(E820_ENTRIES, &[told.map.len() as u8]);
        put(E820_TABLE, entries.get());
        page
    }
}

#[cfg(test)]
mod a_bzimage_is_loaded {
    use alloc::vec::Vec;

    use vmmu_load::FlatRam;

    use super::super::{Entry, Guest, LoadError, load};
    use super::Gpa;

    fn bzimage() -> Vec<u8> {
        let mut file = alloc::vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x66]);
        put(0x202, b"HdrS");
        put(0x206, &0x20fu16.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &1u16.to_le_bytes());
        put(0x238, &64u32.to_le_bytes());
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
        let mut ram = FlatRam::new(4 << 20);
        let entry = load(&guest(&bzimage(), "quiet"), &mut ram).unwrap();
        let Entry::Long { rip, rsi, .. } = entry else {
            panic!("{entry:?}")
        };
        assert_eq!(rip, 0x10_0200);
        assert_eq!(ram.bytes(0x10_0000, 10), b"the kernel");
        assert_eq!(ram.bytes(rsi + 0x202, 4), b"HdrS");
        assert_eq!(ram.number(rsi + 0x210, 1), 0xff);
        assert_eq!(ram.bytes(ram.number(rsi + 0x228, 4), 6), b"quiet\0");
        assert_eq!(ram.bytes(ram.number(rsi + 0x218, 4), 6), b"initrd");
        assert_eq!(ram.number(rsi + 0x21c, 4), 6);
        assert_eq!(ram.number(rsi + 0x070, 8), 0xe_0000);
        assert_eq!(ram.number(rsi + 0x1e8, 1), 3);
        assert_eq!(ram.number(rsi + 0x2d0 + 40, 8), 0x10_0000);
        assert_eq!(ram.number(rsi + 0x2d0 + 48, 8), 3 << 20);
    }

    #[test]
    fn or_refused_if_it_does_not_fit() {
        let kernel = bzimage();
        assert_eq!(
            load(&guest(&kernel, ""), &mut FlatRam::new(0x10_1000)),
            Err(LoadError::NoMemory(Gpa::new(0x10_0000)))
        );
        let long = "x".repeat(65);
        assert_eq!(
            load(&guest(&kernel, &long), &mut FlatRam::new(4 << 20)),
            Err(LoadError::CommandLine {
                bytes: 65,
                limit: 64
            })
        );
    }

    #[test]
    fn or_refused_if_it_has_no_64_bit_entry_or_ends_early() {
        let mut kernel = bzimage();
        let mut ram = FlatRam::new(2 << 20);
        for length in 0..kernel.len() {
            let loaded = load(&guest(&kernel[..length], ""), &mut ram);
            if (0x206..1024).contains(&length) {
                let cut_short = matches!(loaded, Err(LoadError::CutShort(_)));
                assert!(cut_short, "{length}: {loaded:?}");
            }
        }
        kernel[0x236] = 0;
        assert!(matches!(
            load(&guest(&kernel, ""), &mut ram),
            Err(LoadError::Unsupported(_))
        ));
    }
}
