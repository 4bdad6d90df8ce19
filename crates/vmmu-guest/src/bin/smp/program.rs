//! What one processor does: accesses that are checked, changes of the tables with the flushes that they need, and switches
//! between the spaces, drawn at random.

use vmmu_guest::machine::Entry;

use crate::change;
use crate::frames::{self, CONTENT, OWN, Tenure};
use crate::random::Random;
use crate::report::{Kind, failure};
use crate::shoot_down;
use crate::trap::{self, Fault};
use crate::world::{self, Leaf, Path, Place, SPACES};

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
            0..40 => self.load(),
            40..70 => self.store(),
            70..75 => self.recall(),
            75..80 => self.switch(),
            _ => {
                // Mostly where this processor is, sometimes elsewhere.
                let space = if self.random.chance(70) {
                    self.space
                } else {
                    self.any_space()
                };
                let place = Place::random_in(space, &mut self.random);
                change::one(self.number, place, &mut self.random);
            }
        }
    }

    fn any_space(&mut self) -> usize {
        self.random.below(SPACES as u64) as usize
    }

    /// Goes to another space, or to the same again.
    pub(crate) fn switch(&mut self) {
        self.space = self.any_space();
        world::enter(self.number, self.space);
    }

    fn fail(&self, kind: Kind, place: Place, got: u64, want: u64) {
        failure(
            self.number,
            kind,
            format_args!(
                "{place:?} at {:?}: {got:#x}, not {want:#x}",
                place.address()
            ),
        );
    }

    fn path(&mut self) -> Option<Path> {
        let place = Place::random_in(self.space, &mut self.random);
        let path = Path::look(place);
        self.overtaken += u64::from(path.is_none());
        path
    }

    /// Whether the path held until now, so that what was found can be compared.
    fn holds(&mut self, path: &Path) -> bool {
        let holds = path.still_holds();
        self.checked += u64::from(holds);
        self.overtaken += u64::from(!holds);
        holds
    }

    /// Loads a page's stamp and its content.
    fn load(&mut self) {
        let Some(path) = self.path() else { return };
        let (place, address) = (path.place, path.place.address());
        let found = trap::load(address);
        let content = trap::load(address.plus(8 * CONTENT as u64));
        let entry = world::table(place).entry(place.page);
        let tenures = path.leaves().map(Leaf::tenure);
        let known = tenures.map(|tenure| tenure.map(|one| one.word(CONTENT)));
        if !self.holds(&path) {
            return;
        }
        match found {
            Ok(stamp) if tenures.iter().flatten().all(|one| one.stamp() != stamp) => {
                let want = tenures.iter().flatten().map(|one| one.stamp()).next();
                self.fail(Kind::WrongFrame, place, stamp, want.unwrap_or_default());
            }
            Ok(_) if path.is_stable() && !entry.has(Entry::A) => {
                self.fail(Kind::LostAccessed, place, entry.bits(), Entry::A);
            }
            Ok(_) => {}
            Err(fault) if tenures.iter().any(Option::is_none) => self.compare(place, fault, 0),
            Err(fault) => self.fail(Kind::FaultForNothing, place, fault.code, 0),
        }
        if let Ok(content) = content
            && known.iter().flatten().all(|&known| known != content)
        {
            self.fail(
                Kind::WrongContent,
                place,
                content,
                known[0].unwrap_or_default(),
            );
        }
    }

    fn compare(&self, place: Place, fault: Fault, code: u64) {
        if fault.code != code {
            self.fail(Kind::WrongFault, place, fault.code, code);
        }
        // Both loads and stores begin in the first half of the page.
        if fault.address & !0x7ff != place.address().value() {
            self.fail(
                Kind::WrongFault,
                place,
                fault.address,
                place.address().value(),
            );
        }
    }

    /// Stores to this processor's word of a page.
    fn store(&mut self) {
        let Some(path) = self.path() else { return };
        let place = path.place;
        let own = OWN + self.number;
        self.stores += 1;
        let value = self.value();
        let done = trap::store(place.address().plus(8 * own as u64), value);
        let entry = world::table(place).entry(place.page);
        let leaves = path.leaves();
        let words = leaves.map(|leaf| leaf.tenure().map(|tenure| tenure.word(own)));
        if !self.holds(&path) {
            return;
        }
        let may = leaves.map(Leaf::is_writable);
        match done {
            Ok(()) if may == [false; 2] => self.fail(Kind::NoFault, place, entry.bits(), 0),
            Ok(()) if words.iter().flatten().all(|&word| word != value) => {
                self.fail(Kind::LostStore, place, words[0].unwrap_or_default(), value);
            }
            Ok(()) if path.is_stable() && !entry.has(Entry::A | Entry::D) => {
                self.fail(Kind::LostDirty, place, entry.bits(), Entry::A | Entry::D);
            }
            Ok(()) if path.is_stable() => self.remember(leaves[0], value),
            Ok(()) => {}
            Err(fault) if may == [true; 2] => {
                self.fail(Kind::FaultForNothing, place, fault.code, 0);
            }
            Err(fault) if path.is_stable() => {
                let present = u64::from(leaves[0].tenure().is_some());
                self.compare(place, fault, Fault::WRITE + present * Fault::PRESENT);
            }
            Err(_) => {}
        }
    }

    /// The value stored last.
    fn value(&self) -> u64 {
        (self.number as u64 + 1) << 56 | self.stores
    }

    fn remember(&mut self, leaf: Leaf, value: u64) {
        if let Some(Tenure { number, generation }) = leaf.tenure() {
            self.stored[number] = Stored { generation, value };
        }
    }

    /// Looks whether what was stored some time ago is still there.
    fn recall(&mut self) {
        let number = self.random.below(frames::COUNT as u64) as usize;
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
