//! Changes of pages: entries of tables, with the flushes that the architecture demands, while other processors use them.

use vmmu_guest::machine::Entry;

use crate::frames::{self, Tenure};
use crate::link::Change;
use crate::place::{Leaf, Place, Region, Rights, Scope};
use crate::random::Random;
use crate::report::{Kind, failure};
use crate::shoot_down::{self, Flush, Signal};
use crate::structure::{Shared, check_untouched};
use crate::world::{self, Table};

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
    number: usize,
    page: usize,
    table: &'static Table,
    change: Change<'c>,
}

/// Changes the page at `place` in some way, unless it has no table, or another processor is just changing it.
pub(crate) fn one(processor: usize, place: Place, random: &mut Random) {
    let shared = Shared::hold(processor);
    let Some(site) = Site::at(processor, place) else {
        return;
    };
    let unused = site.act(random);
    // Who compares an access with the old entry reads the frame: not before that is over may the frame change.
    drop(site);
    unused.into_iter().for_each(frames::release);
    drop(shared);
}

/// Gives the page at `place` a frame of its own, if it has a shared one.
pub(crate) fn unshare(processor: usize, place: Place, random: &mut Random) {
    let shared = Shared::hold(processor);
    let Some(site) = Site::at(processor, place) else {
        return;
    };
    let leaf = Leaf::from_word(site.change.now());
    let unused = if leaf.is_shared() {
        site.unshare(leaf, random)
    } else {
        None
    };
    drop(site);
    unused.into_iter().for_each(frames::release);
    drop(shared);
}

impl Site<'_> {
    /// Begins a change; the structure is held.
    fn at(processor: usize, place: Place) -> Option<Self> {
        let directory = world::directory(place.space, place.slot);
        let Region::Table(number) = world::region(directory, place.region) else {
            return None;
        };
        let table = world::table(number);
        let change = table.leaf(place.page).try_change()?;
        Some(Self {
            processor,
            number,
            page: place.page,
            table,
            change,
        })
    }

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
                check_untouched(self.processor, leaf);
                Some(tenure)
            }
            Action::Remap => {
                let other = frames::take_data(random)?;
                self.replace(leaf, self.leaf(other, random), random);
                check_untouched(self.processor, leaf);
                Some(tenure)
            }
            Action::Protect if leaf.is_shared() => self.unshare(leaf, random),
            Action::Protect => {
                let rights = if leaf.is_writable() {
                    Rights::ReadOnly
                } else {
                    Rights::Writable
                };
                self.replace(leaf, leaf.with(rights), random);
                None
            }
            Action::Harvest => {
                self.change.announce(leaf.to_word());
                let old = self.table.harvest(self.page);
                self.expect(old, leaf);
                self.flush(random);
                None
            }
        }
    }

    /// A leaf for a fresh frame.
    fn leaf(&self, tenure: Tenure, random: &mut Random) -> Leaf {
        let scope = if self.is_global() && random.chance(40) {
            Scope::Global
        } else {
            Scope::Local
        };
        Leaf::new(tenure, Rights::random(random), scope)
    }

    /// Whether the table is in directory 0.
    fn is_global(&self) -> bool {
        world::places_of(self.number, self.page).any(|place| place.slot == 0)
    }

    /// Maps a page where none was: no processor has anything to forget.
    fn map(&self, random: &mut Random) {
        let Some(tenure) = frames::take_data(random) else {
            return;
        };
        let leaf = self.leaf(tenure, random);
        self.change.announce(leaf.to_word());
        let old = self.table.exchange(self.page, leaf.entry());
        self.expect(old, Leaf::NONE);
    }

    /// Gives the page a frame of its own; returns the shared one, if it does not keep that.
    fn unshare(&self, leaf: Leaf, random: &mut Random) -> Option<Tenure> {
        let tenure = leaf.tenure()?;
        check_untouched(self.processor, leaf);
        if frames::users(tenure) == 1 {
            frames::unshare(tenure);
            self.replace(leaf, leaf.with(Rights::Writable), random);
            return None;
        }
        let copy = frames::take_copy(tenure, random)?;
        self.replace(
            leaf,
            Leaf::new(copy, Rights::Writable, leaf.scope()),
            random,
        );
        Some(tenure)
    }

    /// Stores the entry of `new` over that of `old`, and has everybody forget it.
    fn replace(&self, old: Leaf, new: Leaf, random: &mut Random) {
        self.change.announce(new.to_word());
        let found = self.table.exchange(self.page, new.entry());
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
                format_args!(
                    "table {} page {}: {found:?}, not {want:#x}",
                    self.number, self.page
                ),
            );
        }
    }

    /// Has everybody who can reach the table forget the page, or more.
    fn flush(&self, random: &mut Random) {
        let mut spaces = 0;
        let mut address = None;
        let mut addresses = 0;
        let mut is_global = false;
        for place in world::places_of(self.number, self.page) {
            spaces |= 1 << place.space;
            is_global |= place.slot == 0;
            if address != Some(place.address()) {
                address = Some(place.address());
                addresses += 1;
            }
        }
        let what = match address {
            Some(address) if addresses == 1 && random.chance(80) => Flush::Page(address),
            _ if is_global || random.chance(20) => Flush::Everything,
            _ => Flush::Root,
        };
        let signal = random.pick(&[Signal::Interrupt, Signal::Mailbox]);
        let others = world::processors_in(spaces);
        shoot_down::flush(self.processor, others, what, signal);
    }
}
