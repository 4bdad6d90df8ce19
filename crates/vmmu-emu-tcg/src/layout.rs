//! Where everything lies in the memory of the machine that runs the programs.
//!
//! The *window* is what a program sees: descriptor tables, page tables, its code, data and stacks. It is made anew for each program. All of it lies below
//! 1 MiB, so that every mode reaches it. The rest is the monitor's: it starts programs, takes their exceptions, and writes records.

/// The size of a page.
pub(crate) const PAGE: u64 = 0x1000;

/// The machine's memory.
pub(crate) const MEMORY: u64 = 256 << 20;
/// The size of the ROM, which ends at 4 GiB.
pub(crate) const ROM: u64 = 0x1_0000;
/// The port that ends the run.
pub(crate) const EXIT_PORT: u16 = 0xf4;

/// The global descriptor table, a page.
pub(crate) const GDT: u64 = 0x1000;
/// The interrupt table.
pub(crate) const IDT: u64 = 0x2000;
/// The task state, and behind it the local descriptor table and a second task state.
pub(crate) const TASK: u64 = 0x3000;
/// The local descriptor table.
pub(crate) const LDT: u64 = TASK + 0x400;
/// A second task state.
pub(crate) const OTHER_TASK: u64 = TASK + 0x800;
/// Four page tables: of levels 4, 3, 2, and the one of the window.
pub(crate) const TABLES: u64 = 0x4000;
/// The page table of the window.
pub(crate) const WINDOW_TABLE: u64 = TABLES + 3 * PAGE;
/// What is behind the tables.
pub(crate) const TABLES_END: u64 = TABLES + 6 * PAGE;

/// The program: slots of [`SLOT`] bytes.
pub(crate) const CODE: u64 = 0x1_0000;
/// A slot.
pub(crate) const SLOT: u64 = 64;
/// How many slots a program has.
pub(crate) const SLOTS: u64 = PAGE / SLOT;
/// Handlers that belong to programs.
pub(crate) const HANDLERS: u64 = CODE + PAGE;
/// Two pages that can be written.
pub(crate) const DATA: u64 = CODE + 2 * PAGE;
/// A page that can only be read.
pub(crate) const READ_ONLY: u64 = CODE + 4 * PAGE;
/// A page that is not present until it is used.
pub(crate) const DEMAND: u64 = CODE + 5 * PAGE;
/// A page of the inner levels.
pub(crate) const SUPERVISOR: u64 = CODE + 6 * PAGE;
/// A page that can't be executed.
pub(crate) const NO_EXECUTE: u64 = CODE + 7 * PAGE;
/// The program's stack page.
pub(crate) const STACK: u64 = CODE + 8 * PAGE;
/// The inner levels' stack page.
pub(crate) const INNER_STACK: u64 = CODE + 9 * PAGE;
/// The end of the program's part of the window.
pub(crate) const WINDOW_END: u64 = CODE + 10 * PAGE;
/// How far above the window its pages are mapped again, for the inner levels alone.
pub(crate) const ALIAS: u64 = 0x2_0000;

/// Where the first 2 MiB are mapped for the monitor, whatever a program did to the window.
pub(crate) const MONITOR_VIEW: u64 = 0x4000_0000;
/// The monitor.
pub(crate) const MONITOR: u64 = 0x20_0000;
/// The monitor's variables: the current program, where the next record goes, events so far.
pub(crate) const CURRENT: u64 = 0x21_0000;
/// Where the next record goes.
pub(crate) const CURSOR: u64 = CURRENT + 8;
/// How many exceptions the program had.
pub(crate) const EVENTS: u64 = CURRENT + 16;
/// How many programs there are.
pub(crate) const COUNT: u64 = CURRENT + 24;
/// The top of the stack for exceptions.
pub(crate) const MONITOR_STACK: u64 = 0x22_1000;
/// A copy of the first pages, as a program finds them.
pub(crate) const PRISTINE: u64 = 0x30_0000;

/// The first program.
pub(crate) const PROGRAMS: u64 = 0x80_0000;
/// A program: a page with its registers, its code, its data.
pub(crate) const PROGRAM: u64 = 3 * PAGE;
/// The first record.
pub(crate) const RECORDS: u64 = 64 << 20;

/// A record's size in words of 64 bits.
pub(crate) const RECORD_WORDS: u64 = 64;
/// How many exceptions a program may have.
pub(crate) const MOST_EVENTS: u64 = 48;
/// The vector that ends a program.
pub(crate) const END_VECTOR: u8 = 0x2f;

/// The pages that are copied behind a program's last record.
pub(crate) const DUMPED: [u64; 9] = [
    GDT,
    TASK,
    WINDOW_TABLE,
    DATA,
    DATA + PAGE,
    DEMAND,
    SUPERVISOR,
    STACK,
    INNER_STACK,
];

/// How many programs fit: by what a program's records take at most.
pub(crate) const MOST_PROGRAMS: u64 =
    (MEMORY - RECORDS) / (MOST_EVENTS * RECORD_WORDS * 8 + (DUMPED.len() as u64 + 1) * PAGE);
