//! Changes of a table's entries, with the flushes that the architecture demands, while other processors use them.

use vmmu_guest::machine::Entry;

use crate::frames::{self, Tenure};
use crate::link::Change;
use crate::random::Random;
use crate::report::{Kind, failure};
use crate::shoot_down::{self, Flush, Signal};
use crate::world::{self, Leaf, Place, Table};

/// What is done to a page that is present.
#[derive(Clone, Copy)]
enum Action {
    Unmap,
    Remap,
    Protect,
    Harvest,
}

/// A change under way: where, and who makes it.
struct Site<'c> {
    processor: usize,
    place: Place,
    table: &'static Table,
    change: Change<'c>,
}

/// Changes the page at `place` in some way, unless another processor is just changing it.
pub(crate) fn one(processor: usize, place: Place, random: &mut Random) {
    let table = world::table(place);
    let Some(change) = table.leaf(place.page).try_change() else {
        return;
    };
    let site = Site {
        processor,
        place,
        table,
        change,
    };
    let unused = site.act(random);
    // Who compares an access with the old entry reads the frame: not before that is over may the frame change.
    drop(site);
    unused.into_iter().for_each(frames::release);
}

impl Site<'_> {
    /// Changes it in some way; returns the frame that it led to, if it does no longer.
    fn act(&self, random: &mut Random) -> Option<Tenure> {
        const ACTIONS: [Action; 4] = [
            Action::Unmap,
            Action::Remap,
            Action::Protect,
            Action::Harvest,
        ];
        let leaf = Leaf::from_word(self.change.now());
        let Some(tenure) = leaf.tenure() else {
            self.map(random);
            return None;
        };
        match random.pick(&ACTIONS) {
            Action::Unmap => {
                self.replace(leaf, Leaf::NONE, random);
                Some(tenure)
            }
            Action::Remap => {
                let other = frames::take_data(random)?;
                self.replace(leaf, Leaf::new(other, random.chance(70)), random);
                Some(tenure)
            }
            Action::Protect => {
                self.replace(leaf, Leaf::new(tenure, !leaf.is_writable()), random);
                None
            }
            Action::Harvest => {
                self.change.announce(leaf.to_word());
                let old = self.table.harvest(self.place.page);
                self.expect(old, leaf);
                self.flush(random);
                None
            }
        }
    }

    /// Maps a page where none was: no processor has anything to forget.
    fn map(&self, random: &mut Random) {
        let Some(tenure) = frames::take_data(random) else {
            return;
        };
        let leaf = Leaf::new(tenure, random.chance(70));
        self.change.announce(leaf.to_word());
        let old = self.table.exchange(self.place.page, leaf.entry());
        self.expect(old, Leaf::NONE);
    }

    /// Stores the entry of `new` over that of `old`, and has everybody forget it.
    fn replace(&self, old: Leaf, new: Leaf, random: &mut Random) {
        self.change.announce(new.to_word());
        let found = self.table.exchange(self.place.page, new.entry());
        self.expect(found, old);
        self.flush(random);
    }

    /// Demands that the entry was the one of `leaf`, but for the bits that processors set.
    fn expect(&self, found: Entry, leaf: Leaf) {
        let want = leaf.entry().bits();
        if found.bits() & !(Entry::A | Entry::D) != want {
            failure(
                self.processor,
                Kind::WrongEntry,
                format_args!("{:?}: {found:?}, not {want:#x}", self.place),
            );
        }
    }

    fn flush(&self, random: &mut Random) {
        let what = if random.chance(70) {
            Flush::Page(self.place.address())
        } else {
            Flush::Root
        };
        let signal = random.pick(&[Signal::Interrupt, Signal::Mailbox]);
        let others = world::processors_that_reach(self.place);
        shoot_down::flush(self.processor, others, what, signal);
    }
}
