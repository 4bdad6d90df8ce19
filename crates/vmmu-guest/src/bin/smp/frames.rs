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

use crate::doubt;
use crate::random::Random;

/// How many there are.
pub(crate) const COUNT: usize = 160;
/// The first one, at a multiple of 2 MiB.
pub(crate) const FIRST: Frame = Frame::at(0x100_0000);
/// The first of 2 MiB of frames that keep their stamps.
pub(crate) const STILL: Frame = Frame::at(0x120_0000);
/// What is mapped where no table is any more.
const TRAP: Frame = Frame::at(0xbf_f000);
/// The word of a frame that holds its stamp.
const STAMP: usize = 0;
/// The word that a copy keeps.
pub(crate) const CONTENT: usize = 1;
/// The first of the words that are one processor's each.
pub(crate) const OWN: usize = 16;
/// A word that nobody reads: neither of data nor an entry in use.
pub(crate) const UNREAD: usize = 64;
/// The stamp of a frame that nobody uses.
const UNUSED: u64 = 0xde00_0000_0000_0000;
/// The stamp of the frame that tables lead to after their end.
const TRAPPED: u64 = 0x7a00_0000_0000_0000;
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

    /// Word `index` of the frame, read where all memory is mapped one to one.
    pub(crate) fn word(self, index: usize) -> u64 {
        self.frame().get(index).bits()
    }

    /// Whether the frame hasn't been given back.
    pub(crate) fn is_current(self) -> bool {
        GENERATIONS[self.number].load(Ordering::SeqCst) == self.generation
            && !matches!(USERS[self.number].load(Ordering::SeqCst), 0 | BUSY)
    }
}

/// How many entries lead to each frame, or 1 for a table; 0 if it is free, [`BUSY`] in between.
static USERS: [AtomicU32; COUNT] = [const { AtomicU32::new(0) }; COUNT];
/// Of a frame that is being filled or emptied.
const BUSY: u32 = u32::MAX;
static GENERATIONS: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];

/// The generation in which a frame is shared and must not be written; else 0.
static SHARED: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];
/// The processors' words of a shared frame.
static CLOSED: [[AtomicU64; OWN]; COUNT] = [const { [const { AtomicU64::new(0) }; OWN] }; COUNT];

/// The stamp of the frame with number `number` among those that keep theirs.
pub(crate) const fn still_stamp(number: usize) -> u64 {
    0x5700_0000_0000_0000 | number as u64
}

/// The tenure that the frame `number` is in, if it is used.
pub(crate) fn current(number: usize) -> Option<Tenure> {
    let generation = GENERATIONS[number].load(Ordering::SeqCst);
    let tenure = Tenure { number, generation };
    tenure.is_current().then_some(tenure)
}

/// Whether a stamp is one of data or of a frame that nobody uses: one that tells frames apart.
pub(crate) const fn is_stamp(word: u64) -> bool {
    matches!(word & 0xff << 56, USED | UNUSED)
}

/// Marks every frame as unused.
pub(crate) fn prepare() {
    for number in 0..COUNT {
        poison(FIRST.next(number as u64));
    }
    for number in 0..512 {
        let frame = STILL.next(number as u64);
        frame.set(STAMP, Entry::raw(still_stamp(number)));
    }
    TRAP.set(STAMP, Entry::raw(TRAPPED));
}

fn poison(frame: Frame) {
    for index in (0..2 * OWN).chain(508..512) {
        frame.set(index, Entry::raw(UNUSED | frame.address()));
    }
}

/// Takes a frame at random; its words are as they were. It is busy until [`ready`].
fn take(random: &mut Random) -> Option<Tenure> {
    let first = random.below(COUNT as u64) as usize;
    (first..first + COUNT)
        .map(|number| number % COUNT)
        .find_map(|number| {
            USERS[number]
                .compare_exchange(0, BUSY, Ordering::SeqCst, Ordering::SeqCst)
                .ok()?;
            let generation = GENERATIONS[number].fetch_add(1, Ordering::SeqCst) + 1;
            Some(Tenure { number, generation })
        })
}

/// Says that a frame is filled, and has one user.
fn ready(tenure: Tenure) -> Tenure {
    USERS[tenure.number].store(1, Ordering::SeqCst);
    tenure
}

/// Takes a frame for data, with one user. There may be none left.
pub(crate) fn take_data(random: &mut Random) -> Option<Tenure> {
    let tenure = take(random)?;
    let frame = tenure.frame();
    (OWN..2 * OWN).for_each(|index| frame.set(index, Entry::EMPTY));
    frame.set(CONTENT, Entry::raw(random.next()));
    frame.set(STAMP, Entry::raw(tenure.stamp()));
    Some(ready(tenure))
}

/// Takes a frame for a table. There may be none left.
pub(crate) fn take_table(random: &mut Random) -> Option<Tenure> {
    let tenure = take(random)?;
    tenure.frame().clear();
    Some(ready(tenure))
}

/// Takes a frame for a copy of `source`, which nobody writes. There may be none left.
pub(crate) fn take_copy(source: Tenure, random: &mut Random) -> Option<Tenure> {
    let tenure = take(random)?;
    tenure.frame().copy_from(source.frame());
    tenure.frame().set(STAMP, Entry::raw(tenure.stamp()));
    Some(ready(tenure))
}

/// Makes a table that is no longer used lead to the trap, then gives its frame back.
pub(crate) fn release_table(tenure: Tenure, entries: impl Iterator<Item = usize>) {
    USERS[tenure.number].store(BUSY, Ordering::SeqCst);
    let trap = Entry::new(TRAP, Entry::P | Entry::W | Entry::U | Entry::A | Entry::D);
    poison(tenure.frame());
    entries.for_each(|index| tenure.frame().set(index, trap));
    USERS[tenure.number].store(0, Ordering::SeqCst);
}

/// Says that one more entry leads to the frame.
pub(crate) fn add_user(tenure: Tenure) {
    USERS[tenure.number].fetch_add(1, Ordering::SeqCst);
}

/// How many entries lead to it.
pub(crate) fn users(tenure: Tenure) -> u32 {
    users_of(tenure.number)
}

/// How many entries lead to the frame `number`, or 1 if it is a table.
pub(crate) fn users_of(number: usize) -> u32 {
    USERS[number].load(Ordering::SeqCst)
}

/// Says that nobody may write to the frame from now on; those who still may are asked to forget it before [`close`].
pub(crate) fn share(tenure: Tenure) {
    SHARED[tenure.number].store(tenure.generation, Ordering::SeqCst);
}

/// Says that the frame may be written.
pub(crate) fn unshare(tenure: Tenure) {
    SHARED[tenure.number].store(0, Ordering::SeqCst);
}

/// Whether nobody may write to the frame.
pub(crate) fn is_shared(tenure: Tenure) -> bool {
    SHARED[tenure.number].load(Ordering::SeqCst) == tenure.generation
}

/// Notes what a shared frame holds, when nobody can write to it any more.
pub(crate) fn close(tenure: Tenure) {
    for (word, index) in CLOSED[tenure.number].iter().zip(OWN..) {
        word.store(tenure.word(index), Ordering::SeqCst);
    }
}

/// Whether a shared frame still holds what it did at [`close`], but for stores that went astray.
pub(crate) fn is_untouched(tenure: Tenure) -> bool {
    let mut words = CLOSED[tenure.number].iter().zip(OWN..);
    words.all(|(word, index)| {
        let found = tenure.word(index);
        found == word.load(Ordering::SeqCst) || doubt::is_in_doubt(found)
    })
}

/// Says that one entry less leads to the frame; the last one gives it back.
pub(crate) fn release(tenure: Tenure) {
    let users = &USERS[tenure.number];
    let change = |from, to| users.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    let mut count = users.load(Ordering::SeqCst);
    loop {
        let less = if count == 1 { BUSY } else { count - 1 };
        match change(count, less) {
            Ok(_) if less == BUSY => {
                poison(tenure.frame());
                users.store(0, Ordering::SeqCst);
                return;
            }
            Ok(_) => return,
            Err(now) => count = now,
        }
    }
}
