//! Loading kernels: what guest memory and registers hold before the first instruction, for every embedder of [`vmmu`].
//!
//! | kind | module | entry |
//! |---|---|---|
//! | Linux bzImage | [`linux`] | 64-bit, with identity tables placed in guest memory |
//! | ELF with a PVH note | `pvh` | 32-bit protected mode, paging off, EBX names the start info |
//! | multiboot-1 ELF32 | `multiboot` | 32-bit protected mode, paging off, EBX names the information |
//!
//! Key types: [`Guest`], what is loaded; [`GuestRam`], into what; [`Entry`], how the bootstrap processor starts; [`LoadError`].
//! [`load`] does it. What Linux's header and zero page look like is the embedder's to say: it gives a [`linux::BzImage`].
//! What a firmware would leave in memory comes before: [`acpi::tables`] makes the tables, the embedder puts them somewhere.
//!
//! Invariants:
//! 1. A file is an allegation: nothing panics on its content, nothing is written outside guest RAM.
//! 2. No two parts overlap: each is placed by a `placer::Placer`.
//!
//! Known gaps: one module for Linux, its initrd; no ELF file of another byte order; no multiboot from a file that is not ELF32,
//! and none of its video modes.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
mod bytes;
mod elf;
mod error;
mod flat;
mod guest;
pub mod linux;
mod map;
mod multiboot;
mod placer;
mod pvh;
mod ram;

pub use bytes::Bytes;
pub use error::LoadError;
pub use flat::FlatRam;
pub use guest::{Entry, Guest};
pub use map::{MapEntry, MapKind, memory_map};
pub use ram::{GuestRam, NoMemory};

/// Loads a guest into RAM that holds zeros; `I` is how this embedder reads a bzImage.
///
/// # Errors
/// See [`LoadError`]. RAM may have been written then.
pub fn load<'a, I: linux::BzImage<'a>>(
    guest: &Guest<'a>,
    ram: &mut impl GuestRam,
) -> Result<Entry, LoadError> {
    if guest.kernel.is_empty() {
        return Err(LoadError::Empty);
    }
    if guest.command_line.contains('\0') {
        return Err(LoadError::ZeroInCommandLine);
    }
    if let Some(image) = I::recognise(guest.kernel) {
        return linux::load(&image?, guest, ram);
    }
    let elf = elf::Elf::parse(guest.kernel)?.ok_or(LoadError::UnknownKind)?;
    if let Some(entry) = elf.pvh_entry {
        return pvh::load(guest, &elf, entry, ram);
    }
    if let Some(header) = multiboot::Header::find(guest.kernel) {
        return multiboot::load(guest, &elf, header, ram);
    }
    Err(LoadError::UnknownKind)
}

#[cfg(test)]
mod a_file_that_is_no_kernel_is_refused {
    use super::linux::test_image::load;
    use super::{FlatRam, Guest, LoadError};

    fn refusal(kernel: &[u8], command_line: &str) -> LoadError {
        let guest = Guest {
            kernel,
            modules: &[],
            command_line,
            rsdp: None,
        };
        load(&guest, &mut FlatRam::new(4 << 20)).unwrap_err()
    }

    #[test]
    fn whatever_it_is() {
        assert_eq!(refusal(&[], ""), LoadError::Empty);
        assert_eq!(refusal(b"#!/bin/sh", ""), LoadError::UnknownKind);
        assert_eq!(refusal(&[7; 9000], ""), LoadError::UnknownKind);
        let header = refusal(b"\x7fELF\x01\x01", "");
        assert!(matches!(header, LoadError::CutShort(_)));
    }

    #[test]
    fn and_so_is_a_zero_in_its_command_line() {
        assert_eq!(refusal(b"\x7fELF", "a\0b"), LoadError::ZeroInCommandLine);
    }
}
