//! Loading kernels: what guest memory and registers hold before the first instruction.
//!
//! | kind | module | entry |
//! |---|---|---|
//! | Linux bzImage | [`linux`] | 64-bit, with identity tables placed in guest memory |
//! | ELF with a PVH note | [`pvh`] | 32-bit protected mode, paging off, EBX names the start info |
//! | multiboot-1 ELF32 | [`multiboot`] | 32-bit protected mode, paging off, EBX names the information |
//!
//! Key types: [`Guest`], what is loaded; [`GuestRam`], into what; [`Entry`], how the bootstrap processor starts;
//! [`LoadError`]. What a firmware would leave in memory is written by [`tables::write`], before.
//!
//! Invariants:
//! 1. A file is an allegation: nothing panics on its content, nothing is written outside guest RAM.
//! 2. No two parts overlap: each is placed by a `placer::Placer`.

mod bytes;
mod elf;
pub mod linux;
mod map;
pub mod multiboot;
mod placer;
pub mod pvh;
mod ram;
pub mod tables;

use vmmu::addr::Gpa;

pub use map::{MapEntry, MapKind, memory_map};
pub use ram::{GuestRam, NoMemory};

/// How the bootstrap processor starts. Interrupts are off, direction is up, the other registers are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// 64-bit mode: CR0.PE and PG, CR4.PAE, EFER.LME and LMA are set.
    Long {
        /// The first instruction.
        rip: u64,
        /// What RSI holds: the zero page.
        rsi: u64,
        /// The root table: the first 4 GiB, one to one.
        cr3: Gpa,
        /// The descriptor table of 32 bytes, with 64-bit code at 10h (CS) and flat data at 18h (DS, ES, SS).
        gdt: Gpa,
    },
    /// 32-bit protected mode with paging off (CR0.PE alone) and flat segments: code in CS, data in the others. No descriptor
    /// table is promised; TR holds a busy 32-bit task state with a limit of 67h.
    Protected {
        /// The first instruction.
        eip: u32,
        /// What EAX holds.
        eax: u32,
        /// What EBX holds.
        ebx: u32,
    },
}

/// A guest to load.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The modules, in order; the first is Linux's initrd.
    pub modules: &'a [&'a [u8]],
    /// The command line.
    pub command_line: &'a str,
    /// ACPI's root pointer, if [`tables::write`] wrote tables.
    pub rsdp: Option<Gpa>,
}

/// Why a kernel can't be loaded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is empty.
    #[error("the kernel file is empty")]
    Empty,
    /// It is of none of the three kinds.
    #[error(
        "the file is neither a Linux bzImage, nor an ELF file with a PVH note, nor a multiboot ELF32 file"
    )]
    UnknownKind,
    /// It ends before something that its headers promise.
    #[error("the kernel file is cut short: {0} is missing")]
    CutShort(&'static str),
    /// It contradicts itself.
    #[error("the kernel file is damaged: {0}")]
    Damaged(&'static str),
    /// It needs something that isn't offered.
    #[error("the kernel needs {0}, which this machine doesn't offer")]
    Unsupported(&'static str),
    /// A part doesn't fit into guest memory.
    #[error("guest memory is too small: no room for {what} ({bytes} bytes)")]
    NoRoom {
        /// What was to be placed.
        what: &'static str,
        /// How large it is.
        bytes: u64,
    },
    /// A part of the file wants to lie where no RAM is, or no free one.
    #[error("guest memory is too small: the kernel wants to lie at {0}")]
    NoMemory(Gpa),
    /// The command line is longer than the kernel takes.
    #[error("the command line has {bytes} bytes, more than the {limit} that the kernel takes")]
    CommandLine {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: u64,
    },
    /// The command line has a zero byte in it.
    #[error("the command line has a zero byte in it")]
    ZeroInCommandLine,
}

impl From<NoMemory> for LoadError {
    fn from(error: NoMemory) -> Self {
        Self::NoMemory(error.0)
    }
}

/// Loads a guest into RAM that holds zeros.
///
/// # Errors
/// See [`LoadError`]. RAM may have been written then.
pub fn load(guest: &Guest<'_>, ram: &mut impl GuestRam) -> Result<Entry, LoadError> {
    if guest.kernel.is_empty() {
        return Err(LoadError::Empty);
    }
    if guest.command_line.contains('\0') {
        return Err(LoadError::ZeroInCommandLine);
    }
    if let Some(image) = linux::Image::recognise(guest.kernel) {
        return image?.load(guest, ram);
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
pub(crate) mod test_ram;

#[cfg(test)]
mod a_file_that_is_no_kernel_is_refused {
    use super::test_ram::TestRam;
    use super::{Guest, LoadError, load};

    fn refusal(kernel: &[u8]) -> LoadError {
        let guest = Guest {
            kernel,
            modules: &[],
            command_line: "",
            rsdp: None,
        };
        load(&guest, &mut TestRam::new(4 << 20)).unwrap_err()
    }

    #[test]
    fn whatever_it_is() {
        assert_eq!(refusal(&[]), LoadError::Empty);
        assert_eq!(refusal(b"#!/bin/sh"), LoadError::UnknownKind);
        assert_eq!(refusal(&[7; 9000]), LoadError::UnknownKind);
        assert!(matches!(
            refusal(b"\x7fELF\x01\x01"),
            LoadError::CutShort(_)
        ));
    }
}
