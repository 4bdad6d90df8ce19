//! What guest tables have been, as the specification asks for it.
//!
//! Key type: [`Past`], a [`History`] over the log of `watch`.
//!
//! Invariant:
//! 1. An answer that may lack a value sets the doubt.

use core::cell::Cell;

use vmmu::addr::Gfn;
use vmmu_spec::{Candidate, History, Physical, Time, Width};

use super::ground::Ground;
use super::watch::Log;

/// What guest tables have been, as the specification asks for it.
#[derive(Debug)]
pub(super) struct Past<'l, G> {
    pub(super) log: &'l Log,
    pub(super) ground: &'l G,
    /// The begin of what is asked about.
    pub(super) from: Time,
    /// Set when an answer may lack something.
    pub(super) doubt: Cell<bool>,
}

impl<G: Ground> Past<'_, G> {
    /// Returns the values of an aligned word, oldest first.
    fn values(&self, word: u64) -> Vec<Candidate> {
        let gfn = Gfn::new(word >> 12);
        let Some(home) = self.ground.home(gfn) else {
            return Vec::new();
        };
        if !home.writable {
            // A and D cannot be set there, so that nothing says what a cache may hold.
            self.doubt.set(true);
        }
        let index = (word >> 3 & 511) as usize;
        if let Some(known) = self.log.word(gfn, index) {
            if known.from.is_none_or(|from| from > self.from) {
                self.doubt.set(true);
            }
            return known.values;
        }
        self.doubt.set(true);
        vec![Candidate {
            value: self.ground.word(home.frame.hpa().plus(word & 0xfff)),
            first: Time::START,
            last: Time::END,
        }]
    }
}

impl<G: Ground> History for Past<'_, G> {
    fn candidates(&self, at: Physical, width: Width) -> impl Iterator<Item = Candidate> {
        let (shift, mask) = match width {
            Width::Eight => (0, u64::MAX),
            Width::Four => ((at.get() & 4) * 8, u64::from(u32::MAX)),
        };
        let mut spans: Vec<Candidate> = Vec::new();
        for candidate in self.values(at.get() & !7) {
            let value = candidate.value >> shift & mask;
            match spans.last_mut() {
                // Only the other half changed.
                Some(last) if last.value == value => last.last = candidate.last,
                _ => spans.push(Candidate { value, ..candidate }),
            }
        }
        spans.into_iter().rev()
    }
}
