//! Changes of what is above the pages: tables that appear, move, are shared, copied and given back, large pages, directories
//! that change places; and who may make them.
//!
//! Key types: [`Shared`] and [`Alone`] (the structure held by those who change pages, and by the one who changes this).
//!
//! Invariants:
//! 1. Who waits to hold the structure serves the flushes that others ask for.
//! 2. A table is given back, and its frames, when no region leads to it and every processor has forgotten that one did.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use vmmu_guest::machine::Entry;

use crate::frames;
use crate::place::{
    Block, Leaf, PAGE_INDICES, PAGES, REGIONS, Region, Rights, SLOTS, SPACES, Scope,
};
use crate::random::Random;
use crate::report::{Kind, failure};
use crate::shoot_down::{self, Flush, Signal};
use crate::world::{self, DIRECTORIES, EVERY_SPACE, TABLES};

/// How many hold it to change pages; -1 if one holds it alone.
static HOLDERS: AtomicI64 = AtomicI64::new(0);
/// How many wait to hold it alone.
static WAITING: AtomicU64 = AtomicU64::new(0);

/// The structure stays as it is while this lives.
#[derive(Debug)]
pub(crate) struct Shared(());

impl Shared {
    /// Waits until nobody holds it alone, or wants to.
    pub(crate) fn hold(own: usize) -> Self {
        loop {
            let holders = HOLDERS.load(Ordering::SeqCst);
            let free = holders >= 0 && WAITING.load(Ordering::SeqCst) == 0;
            if free && exchange(holders, holders + 1) {
                return Self(());
            }
            shoot_down::wait(own);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        HOLDERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Nobody else changes anything while this lives.
#[derive(Debug)]
pub(crate) struct Alone(());

impl Alone {
    /// Waits until nobody holds it.
    pub(crate) fn hold(own: usize) -> Self {
        WAITING.fetch_add(1, Ordering::SeqCst);
        while !exchange(0, -1) {
            shoot_down::wait(own);
        }
        WAITING.fetch_sub(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        HOLDERS.store(0, Ordering::SeqCst);
    }
}

fn exchange(from: i64, to: i64) -> bool {
    HOLDERS
        .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Site {
    directory: usize,
    region: usize,
}

/// Who changes the structure, which is held alone.
struct Builder<'r> {
    processor: usize,
    random: &'r mut Random,
}

/// Changes the structure in some way.
pub(crate) fn one(processor: usize, random: &mut Random) {
    let _alone = Alone::hold(processor);
    let mut builder = Builder { processor, random };
    let site = builder.site();
    match world::region(site.directory, site.region) {
        _ if builder.random.chance(15) => builder.exchange_directories(),
        Region::None => builder.fill(site),
        Region::Table(_) if builder.random.chance(40) => builder.exchange_regions(site),
        Region::Table(_) => builder.empty(site),
        Region::Large(..) => builder.change_large(site),
    }
}

impl Builder<'_> {
    fn site(&mut self) -> Site {
        Site {
            directory: self.random.index(DIRECTORIES),
            region: self.random.index(REGIONS),
        }
    }

    /// Lets an empty region lead somewhere: no processor has anything to forget, but for a copy's original.
    fn fill(&mut self, site: Site) {
        let scope = world::scope_of(site.directory);
        match self.random.below(100) {
            0..45 => self.fill_with_new_table(site),
            45..60 => {
                if let Some(table) = self.some_table(scope) {
                    world::table(table).users.fetch_add(1, Ordering::SeqCst);
                    self.set(site, Region::Table(table));
                }
            }
            60..80 => self.fill_with_copy(site),
            _ => {
                let block = self.random.pick(&[Block::Pool, Block::Still]);
                let large = Region::Large(block, Rights::random(self.random), scope);
                self.set(site, large);
            }
        }
    }

    fn fill_with_new_table(&mut self, site: Site) {
        if let Some(number) = self.new_table() {
            self.set(site, Region::Table(number));
        }
    }

    /// Makes a table with one user.
    fn new_table(&mut self) -> Option<usize> {
        let free = |&number: &usize| world::table(number).users.load(Ordering::SeqCst) == 0;
        let number = (0..TABLES).find(free)?;
        let table = world::table(number);
        table.set_tenure(frames::take_table(self.random)?);
        table.users.store(1, Ordering::SeqCst);
        Some(number)
    }

    /// A table that may be used where `scope` is.
    fn some_table(&mut self, scope: Scope) -> Option<usize> {
        let site = self.site();
        match world::region(site.directory, site.region) {
            Region::Table(number) if world::scope_of(site.directory) == scope => Some(number),
            _ => None,
        }
    }

    /// Copies a table as fork does: what was writable is shared and read-only in both until somebody writes.
    fn fill_with_copy(&mut self, site: Site) {
        let Some(source) = self.some_table(world::scope_of(site.directory)) else {
            return;
        };
        let Some(number) = self.new_table() else {
            return;
        };
        let (source, copy) = (world::table(source), world::table(number));
        let mut changes = [const { None }; PAGES];
        for (page, change) in changes.iter_mut().enumerate() {
            let leaf = Leaf::from_word(source.leaf(page).now());
            let (true, Some(tenure)) = (leaf.is_writable() || leaf.is_shared(), leaf.tenure())
            else {
                continue;
            };
            check_untouched(self.processor, leaf);
            let shared = leaf.with(Rights::Shared);
            frames::add_user(tenure);
            frames::share(tenure);
            // With the structure held alone nobody else changes a page.
            *change = source.leaf(page).try_change();
            for (table, change) in [
                (source, change.as_ref()),
                (copy, copy.leaf(page).try_change().as_ref()),
            ] {
                if let Some(change) = change {
                    change.announce(shared.to_word());
                }
                table.exchange(page, shared.entry());
            }
        }
        self.flush(EVERY_SPACE, Scope::Global);
        for (page, change) in changes.into_iter().enumerate() {
            if let (Some(_), Some(tenure)) =
                (change, Leaf::from_word(source.leaf(page).now()).tenure())
            {
                frames::close(tenure);
            }
        }
        self.set(site, Region::Table(number));
    }

    /// Lets a region lead nowhere, and gives the table back if it was the last one.
    fn empty(&mut self, site: Site) {
        let Region::Table(number) = world::region(site.directory, site.region) else {
            return;
        };
        self.change(site, Region::None);
        let table = world::table(number);
        if table.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            for page in 0..PAGES {
                let leaf = Leaf::from_word(table.leaf(page).now());
                if let Some(change) = table.leaf(page).try_change() {
                    change.announce(Leaf::NONE.to_word());
                }
                self.release(leaf);
            }
            frames::release_table(table.tenure(), PAGE_INDICES.into_iter());
        }
    }

    fn release(&self, leaf: Leaf) {
        if let Some(tenure) = leaf.tenure() {
            check_untouched(self.processor, leaf);
            frames::release(tenure);
        }
    }

    /// Lets two regions lead to what the other one did.
    fn exchange_regions(&mut self, site: Site) {
        let other = self.site();
        let alike = world::scope_of(site.directory) == world::scope_of(other.directory);
        if !alike || site == other {
            return;
        }
        let region = |site: Site| world::region(site.directory, site.region);
        let (one, two) = (region(site), region(other));
        let changes = [(site, two), (other, one)].map(|(site, new)| {
            let change = world::region_link(site.directory, site.region).try_change();
            if let Some(change) = &change {
                change.announce(new.to_word());
            }
            self.store(site, new);
            change
        });
        let spaces = world::spaces_with(site.directory) | world::spaces_with(other.directory);
        self.flush(spaces, world::scope_of(site.directory));
        drop(changes);
    }

    /// Lets slots of two spaces lead to what the other one did.
    fn exchange_directories(&mut self) {
        let slots = [(); 2].map(|()| (self.random.index(SPACES), 1 + self.random.index(SLOTS - 1)));
        let now = slots.map(|(space, slot)| world::directory(space, slot));
        if slots[0] == slots[1] {
            return;
        }
        let changes = [(slots[0], now[1]), (slots[1], now[0])].map(|((space, slot), new)| {
            let change = world::root_link(space, slot).try_change();
            if let Some(change) = &change {
                change.announce(new as u64);
            }
            world::exchange_root(space, slot, new);
            change
        });
        self.flush(1 << slots[0].0 | 1 << slots[1].0, Scope::Local);
        drop(changes);
    }

    fn change_large(&mut self, site: Site) {
        let Region::Large(block, rights, scope) = world::region(site.directory, site.region) else {
            return;
        };
        let other_rights = match rights {
            Rights::Writable => Rights::ReadOnly,
            _ => Rights::Writable,
        };
        let other_block = match block {
            Block::Pool => Block::Still,
            Block::Still => Block::Pool,
        };
        match self.random.below(4) {
            0 => self.change(site, Region::None),
            1 => self.change(site, Region::Large(block, other_rights, scope)),
            2 => self.change(site, Region::Large(other_block, rights, scope)),
            _ => {
                let change = world::region_link(site.directory, site.region).try_change();
                let same = Region::Large(block, rights, scope);
                if let Some(change) = &change {
                    change.announce(same.to_word());
                }
                let old = world::harvest_region(site.directory, site.region);
                self.expect(site, old, same);
                self.flush(world::spaces_with(site.directory), scope);
            }
        }
    }

    /// Stores the entry of an empty region.
    fn set(&self, site: Site, new: Region) {
        let change = world::region_link(site.directory, site.region).try_change();
        if let Some(change) = &change {
            change.announce(new.to_word());
        }
        self.store(site, new);
    }

    /// Stores the entry of a region, and has everybody forget the old one.
    fn change(&mut self, site: Site, new: Region) {
        let change = world::region_link(site.directory, site.region).try_change();
        if let Some(change) = &change {
            change.announce(new.to_word());
        }
        self.store(site, new);
        self.flush(
            world::spaces_with(site.directory),
            world::scope_of(site.directory),
        );
    }

    fn store(&self, site: Site, new: Region) {
        world::exchange_region(site.directory, site.region, new);
    }

    fn expect(&self, site: Site, found: Entry, region: Region) {
        let want = world::region_entry(region).bits();
        if found.bits() & !(Entry::A | Entry::D) != want {
            failure(
                self.processor,
                Kind::WrongEntry,
                format_args!("{site:?}: {found:?}, not {want:#x}"),
            );
        }
    }

    /// Has the processors in `spaces` forget everything of `scope`.
    fn flush(&mut self, spaces: u64, scope: Scope) {
        let what = if scope == Scope::Global || self.random.chance(20) {
            Flush::Everything
        } else {
            Flush::Root
        };
        let signal = self.random.pick(&[Signal::Interrupt, Signal::Mailbox]);
        let others = world::processors_in(spaces);
        shoot_down::flush(self.processor, others, what, signal);
    }
}

/// Demands that nobody wrote to a frame that is shared.
pub(crate) fn check_untouched(processor: usize, leaf: Leaf) {
    if let Some(tenure) = leaf.tenure()
        && leaf.is_shared()
        && !frames::is_untouched(tenure)
    {
        failure(
            processor,
            Kind::Intruded,
            format_args!("frame {:?}", tenure.frame()),
        );
    }
}
