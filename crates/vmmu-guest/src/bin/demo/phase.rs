//! The phases of the story: marks for whoever counts, a line for whoever reads.
//!
//! Key type: [`Phase`].

use core::fmt::Write;

use vmmu_guest::console::DebugConsole;
use vmmu_guest::machine::Port;

/// What each phase does, in the order of their numbers, from 1 on.
const STORY: [&str; 6] = [
    "a process touched 256 pages of its heap for the first time",
    "it forked 8 children, which share its pages copy-on-write",
    "each child wrote to every fourth page and got copies of them",
    "the nine took 100 turns each, a new address space at every turn, and read what they had written",
    "the parent mapped, wrote and unmapped 64 pages, 20 times",
    "the children checked all their pages and ended; the parent checked its own",
];

/// A phase that goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    number: u32,
    operations: u32,
    faults: u32,
}

impl Phase {
    /// None goes on.
    pub(crate) const NONE: Self = Self {
        number: 0,
        operations: 0,
        faults: 0,
    };

    /// Counts a page fault.
    pub(crate) const fn fault(&mut self) {
        self.faults += 1;
    }

    /// Ends this phase and begins the next, which has `operations` operations; 0 begins none.
    pub(crate) fn next(&mut self, number: u64, operations: u64) {
        if self.number != 0 {
            Port::MARK_END.write_u32(self.number);
            self.tell();
        }
        *self = Self {
            number: number as u32 & 0xff,
            operations: operations as u32 & 0xff_ffff,
            faults: 0,
        };
        if self.number != 0 {
            Port::MARK_START.write_u32(self.number << 24 | self.operations);
        }
    }

    fn tell(&self) {
        let Self {
            number,
            operations,
            faults,
        } = self;
        let done = STORY
            .get(*number as usize - 1)
            .copied()
            .unwrap_or("something without a name");
        // Writing to the debug console cannot fail.
        let _ = writeln!(DebugConsole, "phase {number} {operations} {faults} {done}");
    }
}
