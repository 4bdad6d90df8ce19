//! When the auditor checks the library's structure: every so many exits, at each mark of the guest, and at the end.
//!
//! Key type: [`Audits`]. Whoever is told that an audit is due runs it at a quiet point ([`crate::vmm::quiet`]).

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmmu::host::Host;
use vmmu::{Mmu, Strictness};

use crate::cpu::exit::{Exit, Pause};
use crate::vmm::end::End;

/// The audits of a run.
#[derive(Debug)]
pub struct Audits {
    every: Option<NonZeroU64>,
    exits: AtomicU64,
    /// The guest has made a mark since the last one.
    marked: AtomicBool,
    done: AtomicU64,
}

impl Audits {
    /// Makes it: an audit every so many exits of all processors together, or none before the end.
    #[must_use]
    pub const fn new(every: Option<NonZeroU64>) -> Self {
        Self {
            every,
            exits: AtomicU64::new(0),
            marked: AtomicBool::new(false),
            done: AtomicU64::new(0),
        }
    }

    /// Notes that the guest has made a mark: the next exit that is counted, which is the mark's own, finds an audit due.
    pub fn note_mark(&self) {
        // Relaxed: the thread that notes it counts the exit.
        self.marked.store(true, Ordering::Relaxed);
    }

    /// Counts an exit; tells whether an audit is due. Kicks do not count: an audit makes some itself, and might lead to the next.
    #[must_use]
    pub fn counts(&self, exit: Exit) -> bool {
        let every = self.every.filter(|_| exit != Exit::Pause(Pause::Kick));
        every.is_some_and(|every| {
            // Relaxed: numbers, which order nothing.
            let exits = self.exits.fetch_add(1, Ordering::Relaxed) + 1;
            let marked =
                self.marked.load(Ordering::Relaxed) && self.marked.swap(false, Ordering::Relaxed);
            marked || exits.is_multiple_of(every.get())
        })
    }

    /// Audits, at a quiet point; returns the end of the run if a rule is broken.
    pub fn run<H: Host>(&self, mmu: &Mmu<H>) -> Option<End> {
        self.done.fetch_add(1, Ordering::Relaxed);
        let failure = mmu.audit(Strictness::Structure).err()?;
        Some(End::Broken(format!(
            "the auditor found broken rules: {failure}"
        )))
    }

    /// Returns how many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}
