//! The table of processes, in which they take turns.
//!
//! Key types: [`Process`], [`Processes`], [`Waiting`].

use crate::space::Space;
use crate::trap::Trap;
use crate::{Failure, fail};

/// How many there may be at once.
const MOST: usize = 16;

/// A process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    /// What it can reach.
    pub(crate) space: Space,
    /// Its registers while another runs.
    trap: Trap,
}

impl Process {
    /// Makes one that begins with these registers.
    pub(crate) const fn new(space: Space, trap: Trap) -> Self {
        Self { space, trap }
    }
}

/// Why a process does not go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiting {
    /// It lets the others go on.
    Turn,
    /// It has ended with a status.
    Ended(u64),
}

/// A place in the table.
#[derive(Clone, Copy, Debug)]
enum Place {
    Free,
    Used(Process),
    Ended(u64),
}

/// All processes.
#[derive(Debug)]
pub(crate) struct Processes {
    places: [Place; MOST],
    current: usize,
}

impl Processes {
    /// There are none.
    pub(crate) const fn new() -> Self {
        Self {
            places: [Place::Free; MOST],
            current: 0,
        }
    }

    /// Makes `process` the current one, the first of all.
    pub(crate) const fn begin(&mut self, process: Process) {
        self.places[self.current] = Place::Used(process);
    }

    /// Returns the process that runs.
    pub(crate) fn current(&self) -> &Process {
        match &self.places[self.current] {
            Place::Used(process) => process,
            Place::Free | Place::Ended(_) => fail(Failure::Access),
        }
    }

    /// Adds a process that waits for its turn; returns its number.
    pub(crate) fn add(&mut self, process: Process) -> u64 {
        let is_free = |place: &Place| matches!(place, Place::Free);
        let Some(number) = self.places.iter().position(is_free) else {
            fail(Failure::Access)
        };
        self.places[number] = Place::Used(process);
        number as u64
    }

    /// Returns how many there are beside the current one, the ended ones that nobody has asked for apart.
    pub(crate) fn others(&self) -> usize {
        let used = |place: &&Place| matches!(place, Place::Used(_));
        self.places.iter().filter(used).count() - 1
    }

    /// Returns the status of one that has ended, and forgets it.
    pub(crate) fn take_ended(&mut self) -> Option<u64> {
        self.places.iter_mut().find_map(|place| match *place {
            Place::Ended(status) => {
                *place = Place::Free;
                Some(status)
            }
            Place::Free | Place::Used(_) => None,
        })
    }

    /// Puts the current one, with these registers, aside; returns the registers of the next, which is current now.
    pub(crate) fn switch(&mut self, trap: Trap, waiting: Waiting) -> Trap {
        let place = &mut self.places[self.current];
        match (waiting, &mut *place) {
            (Waiting::Turn, Place::Used(process)) => process.trap = trap,
            (Waiting::Ended(status), _) => *place = Place::Ended(status),
            (Waiting::Turn, _) => {}
        }
        for step in 1..=MOST {
            let number = (self.current + step) % MOST;
            if let Place::Used(process) = &self.places[number] {
                self.current = number;
                return process.trap;
            }
        }
        fail(Failure::Access)
    }
}
