//! The bits that a processor must have set in an entry that it used.

use vmmu_guest::machine::Entry;

use crate::path::Path;
use crate::report::Kind;

use super::Program;

impl Program {
    /// Demands that the last entry, as it was in memory after an access, is accessed, and dirty after a store.
    ///
    /// Whoever clears the bits has all processors forget that they were set, and the path changes with that: so it does not
    /// matter when they were set.
    pub(super) fn expect_bits(&self, path: &Path, entry: Entry, kind: Kind) {
        let want = match kind {
            Kind::LostDirty => Entry::A | Entry::D,
            _ => Entry::A,
        };
        if !entry.has(want) {
            self.fail(kind, path, entry.bits(), want);
        }
    }
}
