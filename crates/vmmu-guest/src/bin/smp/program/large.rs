//! Accesses through large pages: over memory that keeps its stamps, and over all the frames that tables and data share, which
//! others take and give back meanwhile.

use vmmu_guest::machine::register::Control;
use vmmu_guest::machine::{Entry, Va};

use crate::doubt;
use crate::frames::{self, OWN, Tenure};
use crate::path::{End, Path};
use crate::place::{Block, Rights};
use crate::report::Kind;
use crate::trap::{self, Fault};

use super::Program;

/// Bytes of a frame.
const FRAME_SIZE: u64 = 4096;

impl Program {
    /// Loads a frame's stamp.
    pub(super) fn load_large(&mut self, path: &Path) {
        let End::Large(block, _) = path.end else {
            return;
        };
        let number = self.random.index(frames::COUNT);
        let address = address(path, number, 0);
        let before = word(block, number);
        let found = trap::load(address);
        let entry = path.entry();
        let after = word(block, number);
        if !self.holds(path) {
            return;
        }
        match found {
            Ok(_) if !entry.has(Entry::A) => {
                self.expect_bits(path, entry, Kind::LostAccessed);
            }
            Ok(stamp) if before == after && frames::is_stamp(before) || block == Block::Still => {
                if stamp != before {
                    self.fail(Kind::WrongFrame, path, stamp, before);
                }
            }
            Ok(_) => {}
            Err(fault) => self.fail(Kind::FaultForNothing, path, fault.code, 0),
        }
    }

    /// Stores to this processor's word of a frame, unless that is shared. What is a table now is written too, where none of its
    /// entries are used.
    pub(super) fn store_large(&mut self, path: &Path) {
        let End::Large(block, rights) = path.end else {
            return;
        };
        let number = self.random.index(frames::COUNT);
        let own = OWN + self.number;
        let tenure = frames::current(number);
        if block == Block::Pool && tenure.is_some_and(frames::is_shared) {
            return;
        }
        let value = self.value();
        let address = address(path, number, own);
        let may = rights == Rights::Writable || !Control::current().contains(Control::WP);
        doubt::note(value);
        let done = trap::store(address, value);
        let entry = path.entry();
        let found = block.frame().next(number as u64).get(own).bits();
        let same = tenure.is_some_and(Tenure::is_current) || block == Block::Still;
        if !self.holds(path) {
            return;
        }
        doubt::take_back(value);
        match done {
            Ok(()) if !may => self.fail(Kind::NoFault, path, entry.bits(), 0),
            Ok(()) if same && found != value => self.fail(Kind::LostStore, path, found, value),
            Ok(()) => self.expect_bits(path, entry, Kind::LostDirty),
            Err(fault) if may => self.fail(Kind::FaultForNothing, path, fault.code, 0),
            Err(fault) => self.compare(path, fault, Fault::WRITE | Fault::PRESENT, address),
        }
    }
}

/// The address of word `index` of frame `number` in a large page.
fn address(path: &Path, number: usize, index: usize) -> Va {
    let offset = number as u64 * FRAME_SIZE + 8 * index as u64;
    path.place.region_address().plus(offset)
}

/// The stamp of frame `number` of `block`, read where all memory is mapped one to one.
fn word(block: Block, number: usize) -> u64 {
    block.frame().next(number as u64).get(0).bits()
}
