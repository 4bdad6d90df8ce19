//! What a processor remembers of its stores, to find it again later.

use crate::doubt;
use crate::frames::{self, OWN, Tenure};
use crate::place::Leaf;
use crate::report::{Kind, failure};

use super::{Program, Stored};

impl Program {
    /// The value stored last: no two stores of all processors have the same.
    pub(super) fn value(&self) -> u64 {
        doubt::value(self.number, self.stores)
    }

    pub(super) fn remember(&mut self, leaf: Leaf, value: u64) {
        if let Some(Tenure { number, generation }) = leaf.tenure() {
            self.stored[number] = Stored { generation, value };
        }
    }

    /// Looks whether what was stored some time ago is still there.
    pub(super) fn recall(&mut self) {
        let number = self.random.index(frames::COUNT);
        let Stored { generation, value } = self.stored[number];
        let tenure = Tenure { number, generation };
        if generation == 0 || !tenure.is_current() {
            return;
        }
        let found = tenure.word(OWN + self.number);
        // A store whose frame wasn't known for sure may have come since.
        let since = value..=self.value();
        if tenure.is_current() && !since.contains(&found) {
            failure(
                self.number,
                Kind::LostStore,
                format_args!("frame {:?}: {found:#x}, not {value:#x}", tenure.frame()),
            );
        }
    }
}
