//! The bundle that the hypervisor image takes its guest from; `docs/image-protocol.md` is the contract.
//!
//! Key types: [`Bundle`], [`Config`]. [`crate::qemu`] writes one to a temporary file and gives it to QEMU
//! as `-initrd`.
//!
//! Invariants:
//! 1. Every entry starts at a multiple of 4 KiB, in the order in which it was added.
//! 2. The configuration is the first entry.

use crate::args::Feature;
use crate::number::ByteSize;

const MAGIC: &[u8; 8] = b"VMMUBDL1";
const HEADER: usize = 16;
const ENTRY: usize = 24;
const PAGE: usize = 4096;

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Config = 1,
    Kernel = 2,
    Module = 3,
    CommandLine = 4,
}

/// How the guest's pages are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Shadow page tables.
    Shadow,
    /// Nested page tables.
    Nested,
}

/// What the hypervisor image is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The engine.
    pub engine: Engine,
    /// The guest's RAM.
    pub memory: ByteSize,
    /// The guest's processors.
    pub cpus: u8,
    /// The guest's physical address width, if it shall differ from the processor's.
    pub phys_bits: Option<u8>,
    /// Features that the guest shall not see.
    pub hide: Vec<Feature>,
    /// The limit on shadow pages.
    pub max_pages: Option<u32>,
    /// Run the auditor every so many exits.
    pub audit: Option<u32>,
}

impl Config {
    fn text(&self) -> String {
        let engine = match self.engine {
            Engine::Shadow => "shadow",
            Engine::Nested => "nested",
        };
        let mut text = format!("paging={engine}\nmemory={}\n", self.memory.bytes());
        if self.cpus > 1 {
            text += &format!("cpus={}\n", self.cpus);
        }
        if let Some(bits) = self.phys_bits {
            text += &format!("phys-bits={bits}\n");
        }
        if !self.hide.is_empty() {
            let names: Vec<_> = self.hide.iter().map(|f| f.name()).collect();
            text += &format!("hide={}\n", names.join(","));
        }
        if let Some(pages) = self.max_pages {
            text += &format!("max-pages={pages}\n");
        }
        if let Some(exits) = self.audit {
            text += &format!("audit={exits}\n");
        }
        text
    }
}

/// A bundle being put together.
#[derive(Debug)]
pub struct Bundle {
    entries: Vec<(Kind, Vec<u8>)>,
}

impl Bundle {
    /// Starts a bundle with its configuration and the guest's kernel.
    #[must_use]
    pub fn new(config: &Config, kernel: Vec<u8>) -> Self {
        Self {
            entries: vec![
                (Kind::Config, config.text().into_bytes()),
                (Kind::Kernel, kernel),
            ],
        }
    }

    /// Adds a module; Linux takes the first as its initrd.
    pub fn module(&mut self, bytes: Vec<u8>) {
        self.entries.push((Kind::Module, bytes));
    }

    /// Adds the guest's command line.
    pub fn command_line(&mut self, text: &str) {
        self.entries
            .push((Kind::CommandLine, text.as_bytes().to_vec()));
    }

    /// Lays the bundle out as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        let mut offset = (HEADER + ENTRY * self.entries.len()).next_multiple_of(PAGE);
        for (kind, content) in &self.entries {
            bytes.extend_from_slice(&(*kind as u32).to_le_bytes());
            bytes.extend_from_slice(&0u32.to_le_bytes());
            bytes.extend_from_slice(&(offset as u64).to_le_bytes());
            bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
            offset = (offset + content.len()).next_multiple_of(PAGE);
        }
        for (_, content) in &self.entries {
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
            bytes.extend_from_slice(content);
        }
        bytes
    }
}

#[cfg(test)]
mod layout {
    use super::{Bundle, Config, Engine};
    use crate::args::Feature;
    use crate::number::ByteSize;

    fn config() -> Config {
        Config {
            engine: Engine::Nested,
            memory: ByteSize::from_mib(192),
            cpus: 2,
            phys_bits: Some(36),
            hide: vec![Feature::Pku, Feature::La57],
            max_pages: None,
            audit: Some(1000),
        }
    }

    fn entry(bytes: &[u8], index: usize) -> (u32, &[u8]) {
        let at = 16 + 24 * index;
        let word =
            |o: usize| u64::from_le_bytes(bytes[at + o..at + o + 8].try_into().unwrap()) as usize;
        let (offset, length) = (word(8), word(16));
        assert_eq!(offset % 4096, 0);
        (word(0) as u32, &bytes[offset..offset + length])
    }

    #[test]
    fn entries_are_page_aligned_and_read_back_in_order() {
        let mut bundle = Bundle::new(&config(), vec![7; 5000]);
        bundle.module(vec![9; 4096]);
        bundle.command_line("console=ttyS0");
        let bytes = bundle.to_bytes();
        assert_eq!(&bytes[..8], b"VMMUBDL1");
        assert_eq!(u64::from_le_bytes(bytes[8..16].try_into().unwrap()), 4);
        assert_eq!(entry(&bytes, 1), (2, &[7; 5000][..]));
        assert_eq!(entry(&bytes, 2), (3, &[9; 4096][..]));
        assert_eq!(entry(&bytes, 3), (4, &b"console=ttyS0"[..]));
    }

    #[test]
    fn the_configuration_is_one_key_a_line() {
        let bytes = Bundle::new(&config(), vec![]).to_bytes();
        let (kind, text) = entry(&bytes, 0);
        assert_eq!(kind, 1);
        let expected =
            "paging=nested\nmemory=201326592\ncpus=2\nphys-bits=36\nhide=pku,la57\naudit=1000\n";
        assert_eq!(core::str::from_utf8(text), Ok(expected));
    }

    #[test]
    fn an_empty_entry_takes_no_room_but_stays_inside_the_file() {
        let bytes = Bundle::new(&config(), vec![]).to_bytes();
        assert_eq!(entry(&bytes, 1), (2, &[][..]));
    }
}
