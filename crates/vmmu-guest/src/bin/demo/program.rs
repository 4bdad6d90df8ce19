//! The program that processes run, as bytes.
//!
//! Key item: [`PROGRAM`].
#![allow(unsafe_code)]

use core::arch::global_asm;

use crate::kernel::{AREA_ADDRESS, HEAP_ADDRESS, call};

global_asm!(
    ".pushsection .rodata.demo_program, \"a\"",
    ".balign 8",
    include_str!("program.s"),
    ".balign 8",
    "demo_program_padded_end:",
    ".popsection",
    heap = const HEAP_ADDRESS,
    area = const AREA_ADDRESS,
    phase = const call::PHASE,
    fork = const call::FORK,
    turn = const call::TURN,
    map = const call::MAP,
    unmap = const call::UNMAP,
    wait = const call::WAIT,
    exit = const call::EXIT,
);

unsafe extern "C" {
    static demo_program: u64;
    static demo_program_padded_end: u64;
}

/// The program in the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program;

/// The one that there is.
pub(crate) const PROGRAM: Program = Program;

impl Program {
    /// Returns its words. It fits into a page, which the frame it is copied to checks.
    pub(crate) fn words(self) -> impl Iterator<Item = u64> {
        let (start, end) = (&raw const demo_program, &raw const demo_program_padded_end);
        let words = (end as usize - start as usize) / 8;
        // SAFETY: the words between the two labels are read-only data of this image.
        (0..words).map(move |index| unsafe { start.wrapping_add(index).read() })
    }
}
