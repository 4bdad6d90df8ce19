//! Linux bzImages, by the 64-bit boot protocol: zero page, identity tables, descriptor table, entry 200h past the load address.

use vmmu::addr::Gpa;

use super::{Bytes, Entry, Guest, LoadError, MapEntry, Memory, Placer, memory_map, write_text};
use crate::bundle::number;

/// Where the setup header lies, in the file as in the zero page.
const HEADER: usize = 0x1f1;
/// The oldest protocol that has everything used here: 2.12 brought the 64-bit entry's flag.
const OLDEST: u64 = 0x20c;
const E820_ENTRIES: u64 = 0x1e8;
const E820_TABLE: u64 = 0x2d0;
/// As many entries as the zero page has room for.
const E820_MOST: usize = 128;
/// `xloadflags`: the kernel has the 64-bit entry.
const HAS_64BIT_ENTRY: u64 = 1;
/// A loader without an assigned number.
const LOADER: u8 = 0xff;

/// A bzImage and what its header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image<'a> {
    file: &'a [u8],
    /// The protected-mode part of the file.
    payload: &'a [u8],
    /// Where the setup header ends.
    header_end: usize,
    load_address: u64,
    /// How much memory from the load address on the kernel needs before it reads the memory map.
    init_size: u64,
    initrd_limit: u64,
    command_line_limit: u64,
}

impl<'a> Image<'a> {
    /// Recognises a bzImage; `None` if the file is none.
    pub fn recognise(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
        if number(file, 0x1fe, 2)? != 0xaa55 || file.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        Some(Self::parse(file).unwrap_or(Err(LoadError::Damaged("the setup header ends early"))))
    }

    fn parse(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
        if number(file, 0x206, 2)? < OLDEST || number(file, 0x236, 2)? & HAS_64BIT_ENTRY == 0 {
            return Some(Err(LoadError::Unsupported(
                "an entry other than the 64-bit one",
            )));
        }
        let sectors = match number(file, HEADER, 1)? {
            0 => 4,
            sectors => sectors as usize,
        };
        let payload = file.get((sectors + 1) * 512..)?;
        let header_end = 0x202 + number(file, 0x201, 1)? as usize;
        let init_size = number(file, 0x260, 4)?.max(payload.len() as u64);
        Some(Ok(Self {
            file,
            payload,
            header_end,
            load_address: number(file, 0x258, 8)?,
            init_size,
            initrd_limit: number(file, 0x22c, 4)? + 1,
            command_line_limit: number(file, 0x238, 4)?,
        }))
    }

    /// Loads the kernel, its initrd and everything that it expects in memory.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, guest: &Guest<'_>, memory: &impl Memory) -> Result<Entry, LoadError> {
        let mut placer = Placer::new(memory);
        placer.take(self.load_address, self.init_size)?;
        memory.write(Gpa::new(self.load_address), self.payload)?;

        let length = guest.command_line.len();
        if length as u64 > self.command_line_limit {
            return Err(LoadError::CommandLine(length));
        }
        let command_line = placer.place_low("the command line", length as u64 + 1)?;
        write_text(memory, command_line, guest.command_line)?;
        let initrd = match guest.modules.first() {
            Some(content) => {
                let at = placer.place("the initrd", content.len() as u64, self.initrd_limit)?;
                memory.write(at, content)?;
                Some((at, content.len()))
            }
            None => None,
        };
        let zero_page = self.write_zero_page(memory, &mut placer, command_line, initrd)?;
        let cr3 = write_identity_tables(memory, &mut placer)?;
        let gdt = placer.place_low("the descriptor table", 32)?;
        let mut descriptors = Bytes::default();
        descriptors
            .u64(0)
            .u64(0)
            .u64(0x00af_9b00_0000_ffff)
            .u64(0x00cf_9300_0000_ffff);
        memory.write(gdt, descriptors.get())?;
        Ok(Entry::Long {
            rip: self.load_address + 0x200,
            rsi: zero_page.get(),
            cr3,
            gdt,
        })
    }

    fn write_zero_page(
        &self,
        memory: &impl Memory,
        placer: &mut Placer,
        command_line: Gpa,
        initrd: Option<(Gpa, usize)>,
    ) -> Result<Gpa, LoadError> {
        let page = placer.place_low("the zero page", 4096)?;
        let put = |at: u64, bytes: &[u8]| memory.write(page.wrapping_add(at), bytes);
        memory.zero(page, 4096)?;
        let header = self
            .file
            .get(HEADER..self.header_end)
            .ok_or(LoadError::Damaged("the setup header ends early"))?;
        put(HEADER as u64, header)?;
        put(0x210, &[LOADER])?;
        put(0x228, &(command_line.get() as u32).to_le_bytes())?;
        if let Some((at, length)) = initrd {
            put(0x218, &(at.get() as u32).to_le_bytes())?;
            put(0x21c, &(length as u32).to_le_bytes())?;
        }
        let mut entries = Bytes::default();
        let map = memory_map(&memory.ranges());
        let map = map.get(..map.len().min(E820_MOST)).unwrap_or(&[]);
        for MapEntry { start, bytes, kind } in map {
            entries.u64(*start).u64(*bytes).u32(*kind as u32);
        }
        put(E820_ENTRIES, &[map.len() as u8])?;
        put(E820_TABLE, entries.get())?;
        Ok(page)
    }
}

/// Writes tables that map the first 4 GiB one to one with 2 MiB pages, and returns their root.
fn write_identity_tables(memory: &impl Memory, placer: &mut Placer) -> Result<Gpa, LoadError> {
    let root = placer.place_low("the first page tables", 6 * 4096)?;
    memory.zero(root, 2 * 4096)?;
    let table = |index: u64| root.wrapping_add(index * 4096);
    memory.write(root, &(table(1).get() | 3).to_le_bytes())?;
    for gib in 0..4 {
        let directory = table(2 + gib);
        memory.write(
            table(1).wrapping_add(gib * 8),
            &(directory.get() | 3).to_le_bytes(),
        )?;
        let mut entries = Bytes::default();
        for slot in 0..512 {
            entries.u64(gib << 30 | slot << 21 | 0x83);
        }
        memory.write(directory, entries.get())?;
    }
    Ok(root)
}

#[cfg(test)]
mod a_bzimage_is_loaded {
    use super::super::test_memory::TestMemory;
    use super::super::{Entry, Guest, LoadError, load};
    use alloc::vec::Vec;

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

    #[test]
    fn with_its_zero_page_tables_and_initrd() {
        let memory = TestMemory::new(4 << 20);
        let guest = Guest {
            kernel: &bzimage(),
            modules: &[b"initrd"],
            command_line: "quiet",
        };
        let Ok(Entry::Long { rip, rsi, cr3, gdt }) = load(&guest, &memory) else {
            panic!("not loaded")
        };
        assert_eq!(rip, 0x10_0200);
        assert_eq!(memory.bytes(0x10_0000, 10), b"the kernel");
        assert_eq!(memory.bytes(memory.number(rsi + 0x228, 4), 6), b"quiet\0");
        assert_eq!(memory.bytes(memory.number(rsi + 0x218, 4), 6), b"initrd");
        assert_eq!(memory.number(rsi + 0x21c, 4), 6);
        assert_eq!(
            (memory.number(rsi + 0x202, 4), memory.number(rsi + 0x1e8, 1)),
            (0x5372_6448, 3)
        );
        assert_eq!(memory.number(gdt.get() + 16, 8), 0x00af_9b00_0000_ffff);
        // 3 GiB + 4 MiB through all three levels.
        let level3 = memory.number(cr3.get(), 8) & !0xfff;
        let level2 = memory.number(level3 + 3 * 8, 8) & !0xfff;
        assert_eq!(memory.number(level2 + 2 * 8, 8), 0xc040_0083);
    }

    #[test]
    fn too_little_memory_and_a_long_command_line_are_errors() {
        let guest = Guest {
            kernel: &bzimage(),
            modules: &[],
            command_line: "",
        };
        assert!(matches!(
            load(&guest, &TestMemory::new(0x10_1000)),
            Err(LoadError::NoMemory(_))
        ));
        let long = "x".repeat(65);
        let guest = Guest {
            command_line: &long,
            ..guest
        };
        assert_eq!(
            load(&guest, &TestMemory::new(4 << 20)),
            Err(LoadError::CommandLine(65))
        );
    }

    #[test]
    fn every_cut_is_handled() {
        let file = bzimage();
        for length in 0..file.len() {
            let guest = Guest {
                kernel: &file[..length],
                modules: &[],
                command_line: "",
            };
            let _ = load(&guest, &TestMemory::new(2 << 20));
        }
    }
}
