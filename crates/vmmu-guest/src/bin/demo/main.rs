//! The demonstration guest: an operating system in small, with processes that fork, write, map, switch and exit.
//!
//! A first process runs the program in `program.s`, in user mode. It touches fresh memory, forks children that share its
//! pages copy-on-write, lets them write, takes turns with them, maps and unmaps memory, and waits for all to end; every process
//! checks what it reads. The kernel is here: [`memory`] (frames, and who shares them), [`space`] (address spaces), [`process`]
//! (the table of processes), [`kernel`] (system calls and page faults), [`trap`] (the way in and out).
//!
//! The first process names its phases. At each the guest writes `phase << 24 | operations` to [`Port::MARK_START`] and later the phase to
//! [`Port::MARK_END`], and says in a line on the debug console what was done:
//!
//! ```text
//! phase <number> <operations> <page faults> <what was done>
//! ```
//!
//! The run ends with 0, or with a [`Failure`].
//!
//! [`Port::MARK_START`]: vmmu_guest::machine::Port::MARK_START
//! [`Port::MARK_END`]: vmmu_guest::machine::Port::MARK_END
#![no_std]
#![no_main]

#[path = "../../freestanding/mod.rs"]
mod freestanding;
mod kernel;
mod memory;
mod phase;
mod process;
mod program;
mod space;
mod trap;

use vmmu_guest::machine::{CommandLine, end_run};

vmmu_guest::long_mode_entry!(main);

/// What a run ends with when something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A process found other bytes in its memory than it had written.
    Data = 1,
    /// A process did what it has no right to.
    Access = 2,
    /// An exception that nothing here means to raise.
    Exception = 3,
    /// All frames are in use.
    OutOfFrames = 4,
    /// Frames were still in use after the last process.
    Leak = 5,
}

/// Ends the run.
pub(crate) fn fail(failure: Failure) -> ! {
    end_run(failure as u32)
}

extern "C" fn main(_: &CommandLine) -> ! {
    trap::install();
    kernel::start()
}
