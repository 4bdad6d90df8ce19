//! What the monitor writes of each exception, and how it is read.
//!
//! Key types: [`Record`], [`Run`].

use crate::layout::{DUMPED, PAGE, RECORD_WORDS, RECORDS};

/// The words of a record that are the exception's frame and the general registers.
pub(crate) const FRAME_WORDS: usize = 22;
/// The vector's place.
pub(crate) const VECTOR: usize = 15;
/// The error code's.
pub(crate) const ERROR: usize = 16;
/// The instruction pointer's.
pub(crate) const RIP: usize = 17;
/// RFLAGS'.
pub(crate) const FLAGS: usize = 19;
/// CR2's.
pub(crate) const CR2: usize = 23;
/// CR0's.
pub(crate) const CR0: usize = 24;
/// The place of what kind of record it is.
pub(crate) const MARK: usize = 54;
/// An exception.
pub(crate) const EXCEPTION: u64 = 0x11;
/// The end of a program; a copy of the window follows.
pub(crate) const END: u64 = 0x22;

/// The names of a record's words.
pub(crate) const NAMES: [&str; MARK] = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "vector",
    "error",
    "rip",
    "cs",
    "rflags",
    "rsp",
    "ss",
    "program",
    "cr2",
    "cr0",
    "cr3",
    "cr4",
    "dr6",
    "dr7",
    "cr8",
    "ds",
    "es",
    "fs",
    "gs",
    "tr",
    "ldtr",
    "efer",
    "star",
    "lstar",
    "cstar",
    "sfmask",
    "fs base",
    "gs base",
    "kernel gs base",
    "sysenter cs",
    "sysenter esp",
    "sysenter eip",
    "pat",
    "tsc aux",
    "gdtr",
    "gdtr high",
    "idtr",
    "idtr high",
    "reserved",
];

/// An exception as recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record(pub(crate) [u64; MARK]);

/// What a program left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Its exceptions, in order; the last ended it.
    pub(crate) records: Vec<Record>,
    /// The pages of [`DUMPED`].
    pub(crate) pages: Vec<u8>,
}

impl Run {
    /// Says whether the program came to its end.
    pub(crate) const fn is_whole(&self) -> bool {
        !self.pages.is_empty()
    }
}

/// Reads what all programs left behind; a run that broke off has fewer than there are programs.
pub(crate) fn read(memory: &dyn Fn(u64, &mut [u8])) -> Vec<Run> {
    let word = |at: u64| {
        let mut bytes = [0; 8];
        memory(at, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let mut runs = Vec::new();
    let mut records = Vec::new();
    let mut at = RECORDS;
    loop {
        match word(at + 8 * MARK as u64) {
            EXCEPTION => {
                let mut words = [0; MARK];
                for (n, value) in (0..).zip(&mut words) {
                    *value = word(at + 8 * n);
                }
                records.push(Record(words));
            }
            END => {
                let mut pages = vec![0; DUMPED.len() * PAGE as usize];
                memory(at + 8 * RECORD_WORDS, &mut pages);
                at += pages.len() as u64;
                runs.push(Run {
                    records: core::mem::take(&mut records),
                    pages,
                });
            }
            _ => break,
        }
        at += 8 * RECORD_WORDS;
    }
    if !records.is_empty() {
        // The program that a processor did not survive.
        runs.push(Run {
            records,
            pages: Vec::new(),
        });
    }
    runs
}
