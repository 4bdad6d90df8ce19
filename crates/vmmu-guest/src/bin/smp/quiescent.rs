//! A point at which no processor does anything: the tables in memory are compared with what is known of them, and the machine is
//! told, so that it can look at itself.

use vmmu_guest::machine::{Entry, Port};

use crate::frames;
use crate::place::{Leaf, PAGES, REGIONS, Region, SLOTS, SPACES};
use crate::report::{Kind, failure};
use crate::world::{self, DIRECTORIES, TABLES};

/// Compares every entry; on one processor, while the others wait.
pub(crate) fn check(round: u64) {
    for space in 0..SPACES {
        for slot in 0..SLOTS {
            let want = world::root_entry(world::directory(space, slot));
            expect(world::root_entry_now(space, slot), want, "root");
        }
    }
    let mut users = [0; TABLES];
    for directory in 0..DIRECTORIES {
        for region in 0..REGIONS {
            let known = world::region(directory, region);
            let found = world::region_entry_now(directory, region);
            expect(found, world::region_entry(known), "directory");
            if let Region::Table(number) = known {
                users[number] += 1;
            }
        }
    }
    let mut leads = [0; frames::COUNT];
    for (number, users) in users.into_iter().enumerate() {
        let table = world::table(number);
        same(table.users(), users, "users of a table");
        if users != 0 {
            for page in 0..PAGES {
                let leaf = Leaf::from_word(table.leaf(page).now());
                expect(table.entry(page), leaf.entry(), "table");
                if let Some(tenure) = leaf.tenure() {
                    leads[tenure.number] += 1;
                }
            }
            leads[table.tenure().number] += 1;
        }
    }
    for (number, leads) in leads.into_iter().enumerate() {
        same(frames::users_of(number), leads, "users of a frame");
    }
    let round = round as u32;
    Port::MARK_START.write_u32(round << 24);
    Port::MARK_END.write_u32(round & 0xff);
}

/// Demands that an entry is what is known of it, but for the bits that processors set.
fn expect(found: Entry, want: Entry, what: &str) {
    let bits = found.bits() & !(Entry::A | Entry::D);
    if bits != want.bits() & !(Entry::A | Entry::D) {
        failure(
            0,
            Kind::WrongEntry,
            format_args!("of a {what}: {found:?}, not {want:?}"),
        );
    }
}

fn same(found: u32, want: u32, what: &str) {
    if found != want {
        failure(
            0,
            Kind::WrongCount,
            format_args!("{what}: {found}, not {want}"),
        );
    }
}
