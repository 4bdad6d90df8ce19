//! The accessed and dirty bits that processors have set in leaves: what ageing has yet to tell, and what no change of an entry may lose.
//!
//! Key type: [`Usage`].
//!
//! Invariant:
//! 1. A slot is noted from the walk that used its leaf until the leaf is removed. Nothing else runs between the walk's last access and the note.

use std::collections::BTreeMap;

/// The use of one leaf.
#[derive(Debug)]
struct Use {
    gfn: u64,
    /// It has not been told yet.
    is_news: bool,
    is_written: bool,
}

/// The leaves that were used, by table and slot.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    leaves: BTreeMap<(u64, usize), Use>,
}

impl Usage {
    /// Notes a walk through a leaf to a guest frame.
    pub(crate) fn walked(&mut self, slot: (u64, usize), gfn: u64, writes: bool) {
        let was_written = self.leaves.get(&slot).is_some_and(|leaf| leaf.is_written);
        let used = Use {
            gfn,
            is_news: true,
            is_written: writes || was_written,
        };
        self.leaves.insert(slot, used);
    }

    /// Notes that a leaf is gone.
    pub(crate) fn removed(&mut self, slot: (u64, usize)) {
        self.leaves.remove(&slot);
    }

    /// Notes that a leaf cannot be written any more: its dirty bit goes with the right.
    pub(crate) fn narrowed(&mut self, slot: (u64, usize)) {
        if let Some(leaf) = self.leaves.get_mut(&slot) {
            leaf.is_written = false;
        }
    }

    /// Notes that a frame was told; tells whether that was news. A walk since its bit was cleared is forgotten with it: that one will be told too, but is
    /// not asked for.
    pub(crate) fn told(&mut self, gfn: u64) -> bool {
        let leaves = self.leaves.values_mut();
        leaves
            .filter(|leaf| leaf.gfn == gfn)
            .fold(false, |was_news, leaf| {
                core::mem::take(&mut leaf.is_news) || was_news
            })
    }

    /// Checks, while nobody runs and everything was aged: no use is left to be told, and no dirty bit is lost. `load` reads an entry, `dirty` is its dirty bit.
    pub(crate) fn judge(&self, load: impl Fn((u64, usize)) -> u64, dirty: u64) {
        for (slot, leaf) in &self.leaves {
            let gfn = leaf.gfn;
            assert!(
                !leaf.is_news,
                "the use of {gfn:#x} by {slot:x?} is not told"
            );
            let is_kept = !leaf.is_written || load(*slot) & dirty != 0;
            assert!(is_kept, "the dirty bit of {slot:x?} is lost");
        }
    }
}
