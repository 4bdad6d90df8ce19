//! How much was judged.
//!
//! Key type: [`Judged`].

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many things were judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Judged {
    /// Translations.
    pub used: u64,
    /// Faults that the guest saw.
    pub refused: u64,
    /// Emulated accesses.
    pub emulated: u64,
    /// Of all these, those that the present tables do not explain, but a cache does.
    pub stale: u64,
    /// Those that nothing known explains, where something is not known: let pass.
    pub uncertain: u64,
    /// Guest tables watched at present.
    pub tables: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) used: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) emulated: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) uncertain: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counts {
    pub(super) fn read(&self) -> Judged {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Judged {
            used: read(&self.used),
            refused: read(&self.refused),
            emulated: read(&self.emulated),
            stale: read(&self.stale),
            uncertain: read(&self.uncertain),
            tables: 0,
        }
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} translations, {} faults, {} emulated accesses judged; {} stale as a cache may be, {} let pass",
            self.used, self.refused, self.emulated, self.stale, self.uncertain
        )
    }
}
