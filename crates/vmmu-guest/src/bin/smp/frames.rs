//! The frames that tables and data share: few, so that each is soon used again for something else.
//!
//! Every frame in use carries a stamp that names it and its generation, which moves on whenever the frame is taken. A frame
//! that was given back says so, whatever reads it.
//!
//! Invariants:
//! 1. A frame is given back when no processor can have a translation that leads to it.
//! 2. The stamp and the content stay as they are from [`take_data`] on until the frame is given back.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmmu_guest::machine::{Entry, Frame};

use crate::random::Random;

/// How many there are.
pub(crate) const COUNT: usize = 160;
/// The first one.
const FIRST: Frame = Frame::at(0x100_0000);
/// The word of a frame that holds its stamp.
const STAMP: usize = 0;
/// The word that a copy keeps.
pub(crate) const CONTENT: usize = 1;
/// The first of the words that are one processor's each.
pub(crate) const OWN: usize = 16;
/// The stamp of a frame that nobody uses.
const UNUSED: u64 = 0xdead_0000_0000_0000;
/// The stamp of a frame in use, without its number and generation.
const USED: u64 = 0x5a00_0000_0000_0000;

/// A frame and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure {
    pub(crate) number: usize,
    /// 32 bits.
    pub(crate) generation: u64,
}

impl Tenure {
    pub(crate) fn frame(self) -> Frame {
        FIRST.next(self.number as u64)
    }

    /// The word that says which frame this is, and for the how-manieth time.
    pub(crate) const fn stamp(self) -> u64 {
        USED | self.generation << 16 | self.number as u64
    }

    /// The address of word `index` of the frame where all memory is mapped one to one.
    pub(crate) fn word(self, index: usize) -> u64 {
        self.frame().get(index).bits()
    }

    /// Whether the frame hasn't been given back.
    pub(crate) fn is_current(self) -> bool {
        GENERATIONS[self.number].load(Ordering::SeqCst) == self.generation
            && USERS[self.number].load(Ordering::SeqCst) != 0
    }
}

/// How many entries lead to each frame, or 1 for a table; 0 if it is free.
static USERS: [AtomicU32; COUNT] = [const { AtomicU32::new(0) }; COUNT];
static GENERATIONS: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];

/// Marks every frame as unused.
pub(crate) fn prepare() {
    for number in 0..COUNT {
        poison(FIRST.next(number as u64));
    }
}

fn poison(frame: Frame) {
    for index in (0..2 * OWN).chain(508..512) {
        frame.set(index, Entry::raw(UNUSED | frame.address()));
    }
}

/// Takes a frame at random; its words are as they were.
fn take(random: &mut Random) -> Option<Tenure> {
    let first = random.below(COUNT as u64) as usize;
    (first..first + COUNT)
        .map(|number| number % COUNT)
        .find_map(|number| {
            USERS[number]
                .compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst)
                .ok()?;
            let generation = GENERATIONS[number].fetch_add(1, Ordering::SeqCst) + 1;
            Some(Tenure { number, generation })
        })
}

/// Takes a frame for data, with one user. There may be none left.
pub(crate) fn take_data(random: &mut Random) -> Option<Tenure> {
    let tenure = take(random)?;
    let frame = tenure.frame();
    (OWN..2 * OWN).for_each(|index| frame.set(index, Entry::EMPTY));
    frame.set(CONTENT, Entry::raw(random.next()));
    frame.set(STAMP, Entry::raw(tenure.stamp()));
    Some(tenure)
}

/// Takes a frame for a table. There may be none left.
pub(crate) fn take_table(random: &mut Random) -> Option<Tenure> {
    let tenure = take(random)?;
    tenure.frame().clear();
    Some(tenure)
}

/// Says that one entry less leads to the frame; the last one gives it back.
pub(crate) fn release(tenure: Tenure) {
    let users = &USERS[tenure.number];
    let mut count = users.load(Ordering::SeqCst);
    loop {
        if count == 1 {
            // The last user: nobody else reads or takes it.
            poison(tenure.frame());
        }
        match users.compare_exchange(count, count - 1, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return,
            Err(now) => count = now,
        }
    }
}
