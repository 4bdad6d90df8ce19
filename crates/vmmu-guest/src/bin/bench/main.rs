//! The benchmark guest: 22 paging operations, each timed by the time-stamp counter.
//!
//! Under QEMU's `-icount shift=0,sleep=off` the counter counts executed instructions, so a hypervisor's price of an
//! operation is the difference to the same program run natively. The operations, their counts and the memory layout are
//! those of the peer's recorded figures (docs/ of the project), and so is the native cost of each loop.
//!
//! For each phase the guest writes `phase << 24 | count` to [`Port::MARK_START`], reads the counter, runs, reads the
//! counter, writes the phase to [`Port::MARK_END`], and prints one line on the debug console:
//!
//! ```text
//! P<phase> n=<count> tsc=<delta> per=<delta / count>
//! ```
//!
//! The run ends with 0, or with a [`Failure`].
//!
//! RAM: 64 MiB from 0. Bootstrap tables at 4 KiB, the image at 1 MiB, page tables from 2 MiB, data from 16 MiB.
#![no_std]
#![no_main]

mod fault;
#[path = "../../freestanding/mod.rs"]
mod freestanding;
mod loops;
mod phases;

use core::fmt::Write;

use vmmu_guest::console::DebugConsole;
use vmmu_guest::machine::register::time_stamp;
use vmmu_guest::machine::{CommandLine, Port, end_run};

vmmu_guest::long_mode_entry!(main);

/// What a run ends with when something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The copy-on-write and demand phases took another number of page faults than they must.
    FaultCount = 1,
    /// A page doesn't hold what was stored to it.
    Data = 2,
    /// An exception that no phase means to raise.
    Exception = 3,
}

extern "C" fn main(_: &CommandLine) -> ! {
    fault::install();
    match phases::run_all() {
        Ok(()) => end_run(0),
        Err(failure) => {
            // Writing to the debug console cannot fail.
            let _ = writeln!(DebugConsole, "FAIL {failure:?}");
            end_run(failure as u32)
        }
    }
}

/// Runs `body`, which performs operation `phase` `count` times, between marks, and prints what it took.
#[inline(always)]
pub(crate) fn measure(phase: u8, count: u32, body: impl FnOnce()) {
    Port::MARK_START.write_u32(u32::from(phase) << 24 | count);
    let start = time_stamp();
    body();
    let ticks = time_stamp() - start;
    Port::MARK_END.write_u32(u32::from(phase));
    report(phase, count, ticks);
}

#[inline(never)]
fn report(phase: u8, count: u32, ticks: u64) {
    // Writing to the debug console cannot fail.
    let _ = writeln!(
        DebugConsole,
        "P{phase} n={count} tsc={ticks} per={}",
        ticks / u64::from(count)
    );
}
