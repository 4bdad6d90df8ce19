//! Failures: counted by kind, the first few told at length.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmmu_guest::console::Console;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A load reached another frame than the tables say.
    WrongFrame,
    /// A frame is the right one, and its bytes are others than were written.
    WrongContent,
    /// What was stored isn't in the frame that the tables say.
    LostStore,
    /// An access faulted that must not.
    FaultForNothing,
    /// An access succeeded that must fault.
    NoFault,
    /// A fault had another error code or address.
    WrongFault,
    /// A page was read and its entry isn't accessed.
    LostAccessed,
    /// A page was written and its entry isn't dirty.
    LostDirty,
    /// Memory that nobody may write has changed.
    Intruded,
    /// A table's entry isn't what was stored there.
    WrongEntry,
    /// The guest itself lost count of what leads to a frame.
    WrongCount,
    /// A local APIC has something other than was written, or than INIT leaves.
    WrongApic,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::WrongFrame,
        Self::WrongContent,
        Self::LostStore,
        Self::FaultForNothing,
        Self::NoFault,
        Self::WrongFault,
        Self::LostAccessed,
        Self::LostDirty,
        Self::Intruded,
        Self::WrongEntry,
        Self::WrongCount,
        Self::WrongApic,
    ];
}

/// How many failures are told at length.
const TOLD: u32 = 20;

static COUNTS: [AtomicU32; Kind::ALL.len()] = [const { AtomicU32::new(0) }; Kind::ALL.len()];
/// Whether somebody writes to the consoles.
static SPEAKING: AtomicBool = AtomicBool::new(false);

/// Counts a failure.
pub(crate) fn failure(processor: usize, kind: Kind, details: fmt::Arguments<'_>) {
    let before = total();
    COUNTS[kind as usize].fetch_add(1, Ordering::SeqCst);
    if before < TOLD {
        say(format_args!(
            "FAIL processor {processor}: {kind:?}: {details}\n"
        ));
    }
}

/// All failures so far.
pub(crate) fn total() -> u32 {
    COUNTS
        .iter()
        .map(|count| count.load(Ordering::SeqCst))
        .sum()
}

/// Says how many there were of each kind that there were.
pub(crate) fn summary() {
    for kind in Kind::ALL {
        let count = COUNTS[kind as usize].load(Ordering::SeqCst);
        if count != 0 {
            say(format_args!("{count} {kind:?}\n"));
        }
    }
    say(format_args!("{} failures\n", total()));
}

/// Writes to both consoles, one processor at a time. Not in interrupt handlers.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    while SPEAKING.swap(true, Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    // Writing to the consoles cannot fail.
    let _ = Console.write_fmt(text);
    SPEAKING.store(false, Ordering::SeqCst);
}
