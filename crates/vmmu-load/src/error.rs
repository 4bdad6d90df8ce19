//! Why loading fails.

use vmmu::addr::Gpa;

use crate::NoMemory;

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
