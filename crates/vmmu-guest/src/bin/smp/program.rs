//! What one processor does: accesses that are checked, changes of the tables with the flushes that they need, and switches
//! between the spaces, drawn at random.

use vmmu_guest::machine::Va;
use vmmu_guest::machine::register::Control;

use crate::frames::{self, CONTENT, OWN, UNREAD};
use crate::path::{End, Path};
use crate::place::{Leaf, PAGES, Place, REGIONS, SLOTS, SPACES};
use crate::random::Random;
use crate::report::{Kind, failure};
use crate::trap::{self, Fault};
use crate::{change, doubt, shoot_down, structure, world};

/// What a processor stored last in its word of a frame.
#[derive(Clone, Copy)]
struct Stored {
    generation: u64,
    value: u64,
}

/// One processor's program.
pub(crate) struct Program {
    pub(crate) number: usize,
    pub(crate) random: Random,
    space: usize,
    stored: [Stored; frames::COUNT],
    stores: u64,
    /// Accesses whose result was compared.
    pub(crate) checked: u64,
    /// Accesses that a change overtook: anything may have come of them.
    pub(crate) overtaken: u64,
}

impl Program {
    /// The program of processor `number`.
    pub(crate) fn new(number: usize, seed: u64) -> Self {
        Self {
            number,
            random: Random::new(seed, number as u64),
            space: 0,
            stored: [Stored {
                generation: 0,
                value: 0,
            }; frames::COUNT],
            stores: 0,
            checked: 0,
            overtaken: 0,
        }
    }

    /// Does one thing.
    pub(crate) fn step(&mut self) {
        shoot_down::serve(self.number);
        match self.random.below(100) {
            0..70 => {
                let place = Place::random_in(self.space, &mut self.random);
                self.access(place);
            }
            70..75 => self.recall(),
            75..80 => self.switch(),
            80..82 => self.toggle_protection(),
            82..85 => structure::one(self.number, &mut self.random),
            _ => {
                // Mostly where this processor is, sometimes elsewhere.
                let here = self.random.chance(70);
                let space = if here {
                    self.space
                } else {
                    self.random.index(SPACES)
                };
                let place = Place::random_in(space, &mut self.random);
                change::one(self.number, place, &mut self.random);
            }
        }
    }

    /// Loads from every page of every space.
    pub(crate) fn sweep(&mut self) {
        for space in 0..SPACES {
            self.enter(space);
            for number in 0..SLOTS * REGIONS * PAGES {
                let place = Place {
                    space,
                    slot: number / (REGIONS * PAGES),
                    region: number / PAGES % REGIONS,
                    page: number % PAGES,
                };
                if let Some(path) = Path::look(place) {
                    self.load(&path);
                }
            }
        }
    }

    /// Goes to another space, or to the same again.
    pub(crate) fn switch(&mut self) {
        let space = self.random.index(SPACES);
        self.enter(space);
    }

    fn enter(&mut self, space: usize) {
        self.space = space;
        world::enter(self.number, space);
    }

    /// Changes CR0.WP.
    fn toggle_protection(&mut self) {
        Control::current().symmetric_difference(Control::WP).load();
    }

    fn fail(&self, kind: Kind, path: &Path, got: u64, want: u64) {
        let place = path.place;
        failure(
            self.number,
            kind,
            format_args!("{place:?}: {got:#x}, not {want:#x}"),
        );
    }

    fn access(&mut self, place: Place) {
        let load = self.random.chance(55);
        // A store that goes by what it knows of the page's sharing, which nobody may change in between.
        trap::disable_interrupts();
        let path = Path::look(place);
        let shared = match &path {
            Some(path) if load => {
                trap::enable_interrupts();
                self.load(path);
                false
            }
            Some(path) => {
                self.store(path);
                matches!(path.end, End::Page(_, leaves) if leaves[0].is_shared())
            }
            None => {
                self.overtaken += 1;
                false
            }
        };
        trap::enable_interrupts();
        if shared && self.random.chance(60) {
            change::unshare(self.number, place, &mut self.random);
        }
    }

    /// Whether the path held until now, so that what was found can be compared.
    fn holds(&mut self, path: &Path) -> bool {
        let holds = path.still_holds();
        self.checked += u64::from(holds);
        self.overtaken += u64::from(!holds);
        holds
    }

    /// Demands that a fault has the error code `code` and says where it was.
    fn compare(&self, path: &Path, fault: Fault, code: u64, address: Va) {
        if fault.code != code {
            self.fail(Kind::WrongFault, path, fault.code, code);
        }
        if fault.address != address.value() {
            self.fail(Kind::WrongFault, path, fault.address, address.value());
        }
    }

    fn load(&mut self, path: &Path) {
        match path.end {
            End::Page(_, leaves) => self.load_page(path, leaves),
            End::Nowhere => {
                let address = path.place.address();
                let found = trap::load(address);
                self.nothing(path, found.map(|_| ()), 0, address);
            }
            End::Large(..) => self.load_large(path),
        }
    }

    fn store(&mut self, path: &Path) {
        self.stores += 1;
        match path.end {
            End::Page(_, leaves) => self.store_page(path, leaves),
            End::Nowhere => {
                // A change may overtake it, and it then comes to any page, even a shared one.
                let address = path.place.address().plus(8 * UNREAD as u64);
                let done = trap::store(address, 0);
                self.nothing(path, done, Fault::WRITE, address);
            }
            End::Large(..) => self.store_large(path),
        }
    }

    /// Judges an access where a directory has nothing.
    fn nothing(&mut self, path: &Path, done: Result<(), Fault>, code: u64, address: Va) {
        if !self.holds(path) {
            return;
        }
        match done {
            Ok(()) => self.fail(Kind::NoFault, path, 0, code),
            Err(fault) => self.compare(path, fault, code, address),
        }
    }

    /// Loads a page's stamp and its content.
    fn load_page(&mut self, path: &Path, leaves: [Leaf; 2]) {
        let address = path.place.address();
        let found = trap::load(address);
        let content = trap::load(address.plus(8 * CONTENT as u64));
        let entry = path.entry();
        let tenures = leaves.map(Leaf::tenure);
        let known = tenures.map(|tenure| tenure.map(|one| one.word(CONTENT)));
        if !self.holds(path) {
            return;
        }
        match found {
            Ok(stamp) if tenures.iter().flatten().all(|one| one.stamp() != stamp) => {
                let want = tenures.iter().flatten().map(|one| one.stamp()).next();
                self.fail(Kind::WrongFrame, path, stamp, want.unwrap_or_default());
            }
            Ok(_) if path.is_stable() => self.expect_bits(path, entry, Kind::LostAccessed),
            Ok(_) => {}
            Err(fault) if tenures.iter().any(Option::is_none) => {
                self.compare(path, fault, 0, address);
            }
            Err(fault) => self.fail(Kind::FaultForNothing, path, fault.code, 0),
        }
        if let Ok(content) = content
            && known.iter().flatten().all(|&known| known != content)
        {
            self.fail(
                Kind::WrongContent,
                path,
                content,
                known[0].unwrap_or_default(),
            );
        }
    }

    /// Stores to this processor's word of a page.
    fn store_page(&mut self, path: &Path, leaves: [Leaf; 2]) {
        let ignores_protection = !Control::current().contains(Control::WP);
        if ignores_protection && leaves.iter().any(|leaf| leaf.is_shared()) {
            return;
        }
        let own = OWN + self.number;
        let value = self.value();
        let address = path.place.address().plus(8 * own as u64);
        doubt::note(value);
        let done = trap::store(address, value);
        let entry = path.entry();
        let words = leaves.map(|leaf| leaf.tenure().map(|tenure| tenure.word(own)));
        if !self.holds(path) {
            return;
        }
        doubt::take_back(value);
        let may =
            leaves.map(|leaf| leaf.is_writable() || ignores_protection && leaf.tenure().is_some());
        match done {
            Ok(()) if may == [false; 2] => self.fail(Kind::NoFault, path, entry.bits(), 0),
            Ok(()) if words.iter().flatten().all(|&word| word != value) => {
                self.fail(Kind::LostStore, path, words[0].unwrap_or_default(), value);
            }
            Ok(()) if path.is_stable() => {
                self.expect_bits(path, entry, Kind::LostDirty);
                self.remember(leaves[0], value);
            }
            Ok(()) => {}
            Err(fault) if may == [true; 2] => {
                self.fail(Kind::FaultForNothing, path, fault.code, 0);
            }
            Err(fault) if path.is_stable() => {
                let present = u64::from(leaves[0].tenure().is_some());
                self.compare(
                    path,
                    fault,
                    Fault::WRITE + present * Fault::PRESENT,
                    address,
                );
            }
            Err(_) => {}
        }
    }
}

mod bits;
mod large;
mod memory;
