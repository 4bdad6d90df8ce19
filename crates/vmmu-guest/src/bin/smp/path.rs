//! What is known of the entries on the way to a place when it is about to be accessed.

use vmmu_guest::machine::Entry;

use crate::link::{Link, Seen};
use crate::place::{Block, Leaf, Place, Region, Rights};
use crate::world::{self, Table};

/// Where a way ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// In a directory: nothing is there.
    Nowhere,
    /// In a directory: a large page.
    Large(Block, Rights),
    /// In a table.
    Page(&'static Table, [Leaf; 2]),
}

/// The links on the way, as they were read.
pub(crate) struct Path {
    pub(crate) place: Place,
    pub(crate) end: End,
    directory: usize,
    links: [Option<(&'static Link, Seen)>; 3],
}

impl Path {
    /// Looks at the links; nothing while an upper one changes, or the last one is being prepared for a change.
    pub(crate) fn look(place: Place) -> Option<Self> {
        let stable = |link: &'static Link| {
            let seen = link.look().filter(|seen| seen.is_stable())?;
            Some((link, seen))
        };
        let root = stable(world::root_link(place.space, place.slot))?;
        let directory = root.1.now as usize;
        let region = stable(world::region_link(directory, place.region))?;
        let path = |end, leaf| Self {
            place,
            end,
            directory,
            links: [Some(root), Some(region), leaf],
        };
        Some(match Region::from_word(region.1.now) {
            Region::None => path(End::Nowhere, None),
            Region::Large(block, rights, _) => path(End::Large(block, rights), None),
            Region::Table(number) => {
                let table = world::table(number);
                let link = table.leaf(place.page);
                let seen = link.look()?;
                let leaves = [seen.now, seen.before].map(Leaf::from_word);
                path(End::Page(table, leaves), Some((link, seen)))
            }
        })
    }

    /// Whether all of it was true all the time since.
    pub(crate) fn still_holds(&self) -> bool {
        let mut links = self.links.iter().flatten();
        links.all(|(link, seen)| link.is_still(*seen))
    }

    /// Whether no change is under way.
    pub(crate) fn is_stable(&self) -> bool {
        let mut links = self.links.iter().flatten();
        links.all(|(_, seen)| seen.is_stable())
    }

    /// The last entry, as it is in memory.
    pub(crate) fn entry(&self) -> Entry {
        match self.end {
            End::Page(table, _) => table.entry(self.place.page),
            _ => world::region_entry_now(self.directory, self.place.region),
        }
    }
}
