//! Which values each entry of the paging structures has had, and when.
//!
//! Key types: [`History`], asked by `allowed`; [`WriteLog`], a history that records writes as they
//! reach memory; [`Candidate`], one value and the span of its life.
//!
//! Invariants
//! 1. [`Time`] counts writes: at time `t` memory shows the first `t` writes.
//! 2. The spans of an entry's candidates neither overlap nor leave a gap.
//! 3. What the processor itself writes, accessed and dirty bits, is in the history like the guest's writes.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::{Memory, Physical, Width};

/// A point in the order in which writes reach memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// Before the first write.
    pub const START: Self = Self(0);
    /// After the last.
    pub const END: Self = Self(u64::MAX);

    /// Makes the time after the given number of writes.
    #[must_use]
    pub const fn new(writes: u64) -> Self {
        Self(writes)
    }

    /// Returns the number of writes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A value of an entry, and when memory held it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The value.
    pub value: u64,
    /// The first time at which a read yields it.
    pub first: Time,
    /// The last such time; [`Time::END`] if it is there still.
    pub last: Time,
}

/// The past and present values of paging-structure entries.
pub trait History {
    /// Iterates over the values of an entry, the current one first; empty where there is no memory.
    fn candidates(&self, at: Physical, width: Width) -> impl Iterator<Item = Candidate>;
}

/// A memory that remembers: initial content under a record of all writes.
///
/// It is [`Memory`] with the current values, and [`History`] with all of them. An eight-byte write is
/// one event; a guest that writes half an entry at a time is recorded half by half, as it should be.
#[derive(Clone, Debug)]
pub struct WriteLog<M> {
    initial: M,
    now: Time,
    /// By address of the aligned eight bytes: what they held from when on, oldest first.
    words: BTreeMap<u64, Vec<(Time, u64)>>,
}

impl<M: Memory> WriteLog<M> {
    /// Makes a log over the initial content.
    pub const fn new(initial: M) -> Self {
        Self {
            initial,
            now: Time::START,
            words: BTreeMap::new(),
        }
    }

    /// Returns the time after the last write.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    /// Records that a write reaches memory, and returns the time from which reads see it.
    ///
    /// `at` is aligned to the width; a longer write is several events, in the order in which they reach memory.
    /// Where the initial content has no memory, nothing is recorded.
    pub fn write(&mut self, at: Physical, width: Width, value: u64) -> Time {
        let (word, shift) = place(at, width);
        let Some(old) = self.current(word) else {
            return self.now;
        };
        self.now = Time(self.now.0 + 1);
        let mask = value_mask(width) << shift;
        let new = old & !mask | value << shift & mask;
        self.words.entry(word).or_default().push((self.now, new));
        self.now
    }

    /// Forgets the values that had been replaced by `time`: no walk will be asked for before it.
    pub fn forget_before(&mut self, time: Time) {
        for versions in self.words.values_mut() {
            let replaced = versions.partition_point(|(first, _)| *first <= time);
            versions.drain(..replaced.saturating_sub(1));
        }
    }

    fn current(&self, word: u64) -> Option<u64> {
        match self.words.get(&word).and_then(|versions| versions.last()) {
            Some((_, value)) => Some(*value),
            None => self.initial.read(Physical::new(word), Width::Eight),
        }
    }

    /// Returns all values of eight bytes with the time from which they were there, oldest first.
    fn versions(&self, word: u64) -> Vec<(Time, u64)> {
        let written = self.words.get(&word).map_or(&[][..], Vec::as_slice);
        let initial = self.initial.read(Physical::new(word), Width::Eight);
        initial
            .map(|value| (Time::START, value))
            .into_iter()
            .chain(written.iter().copied())
            .collect()
    }
}

impl<M: Memory> Memory for WriteLog<M> {
    fn read(&self, at: Physical, width: Width) -> Option<u64> {
        let (word, shift) = place(at, width);
        self.current(word)
            .map(|value| value >> shift & value_mask(width))
    }
}

impl<M: Memory> History for WriteLog<M> {
    fn candidates(&self, at: Physical, width: Width) -> impl Iterator<Item = Candidate> {
        let (word, shift) = place(at, width);
        let mut spans: Vec<Candidate> = Vec::new();
        for (first, word_value) in self.versions(word) {
            let value = word_value >> shift & value_mask(width);
            match spans.last_mut() {
                // The other half changed, or the same value was stored again.
                Some(last) if last.value == value => continue,
                Some(last) => last.last = Time(first.0 - 1),
                None => {}
            }
            spans.push(Candidate {
                value,
                first,
                last: Time::END,
            });
        }
        spans.into_iter().rev()
    }
}

/// Returns the aligned eight bytes that hold an entry, and by how many bits it is shifted in them.
const fn place(at: Physical, width: Width) -> (u64, u32) {
    let word = at.get() & !7;
    let shift = match width {
        Width::Eight => 0,
        Width::Four => (at.get() as u32 & 4) * 8,
    };
    (word, shift)
}

const fn value_mask(width: Width) -> u64 {
    match width {
        Width::Eight => u64::MAX,
        Width::Four => u32::MAX as u64,
    }
}

#[cfg(test)]
mod recording {
    use alloc::vec::Vec;

    use super::{Candidate, History, Time, WriteLog};
    use crate::{Memory, Physical, Width};

    fn zeroed(at: Physical, _: Width) -> Option<u64> {
        (at.get() < 0x1000).then_some(0)
    }

    fn spans(log: &impl History, at: u64, width: Width) -> Vec<(u64, u64, u64)> {
        log.candidates(Physical::new(at), width)
            .map(|Candidate { value, first, last }| (value, first.get(), last.get()))
            .collect()
    }

    #[test]
    fn every_value_is_kept_with_its_span_current_first() {
        let mut log = WriteLog::new(zeroed);
        log.write(Physical::new(8), Width::Eight, 5);
        log.write(Physical::new(16), Width::Eight, 1);
        log.write(Physical::new(8), Width::Eight, 6);
        let end = Time::END.get();
        assert_eq!(
            spans(&log, 8, Width::Eight),
            [(6, 3, end), (5, 1, 2), (0, 0, 0)]
        );
        assert_eq!(log.read(Physical::new(8), Width::Eight), Some(6));
    }

    #[test]
    fn halves_of_a_word_have_lives_of_their_own() {
        let mut log = WriteLog::new(zeroed);
        log.write(Physical::new(12), Width::Four, 7);
        log.write(Physical::new(8), Width::Four, 9);
        let end = Time::END.get();
        assert_eq!(spans(&log, 12, Width::Four), [(7, 1, end), (0, 0, 0)]);
        assert_eq!(spans(&log, 8, Width::Four), [(9, 2, end), (0, 0, 1)]);
        let whole = [(7 << 32 | 9, 2, end), (7 << 32, 1, 1), (0, 0, 0)];
        assert_eq!(spans(&log, 8, Width::Eight), whole);
    }

    #[test]
    fn where_there_is_no_memory_there_is_no_candidate() {
        let mut log = WriteLog::new(zeroed);
        assert_eq!(
            log.write(Physical::new(0x1000), Width::Eight, 1),
            Time::START
        );
        assert_eq!(spans(&log, 0x1000, Width::Eight), []);
    }

    #[test]
    fn forgetting_keeps_what_is_visible_from_then_on() {
        let mut log = WriteLog::new(zeroed);
        for value in 1..=4 {
            log.write(Physical::new(0), Width::Eight, value);
        }
        log.forget_before(Time::new(3));
        let kept = spans(&log, 0, Width::Eight);
        assert!(kept.contains(&(3, 3, 3)) && kept.contains(&(4, 4, Time::END.get())));
        assert!(!kept.iter().any(|(value, ..)| matches!(value, 1 | 2)));
    }
}
