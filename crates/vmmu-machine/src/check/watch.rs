//! The frames that hold guest tables, and what their entries have been.
//!
//! Key types: [`Watch`], [`Log`] (under its lock), [`Past`] (a [`History`] for the specification).
//!
//! A guest table becomes watched when a walk of the judge first reads it. From then on front arrays take no entry for writing to its frame; but one
//! that has such an entry already stores unseen until it renews its array. So what a watched frame held is *known* only from the time when every
//! vCPU has renewed: then its words are read once more. Whoever asks for what was before gets an answer with a doubt.
//!
//! Invariants:
//! 1. Time counts changes of watched words. A store reaches memory before its time is counted: at a flush the past is at most too long, never too short.
//! 2. A word of a known frame changes under the lock only.
//! 3. A frame is forgotten when it was stored to [`FORGET`] times without being walked: it is a table no more.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use vmmu::addr::Gfn;
use vmmu_cpu::Hpa;
use vmmu_spec::{Candidate, History, Physical, Time, Width};

use super::ground::Ground;

/// How many stores without a walk make a frame an ordinary one.
const FORGET: u32 = 2048;
/// How many replaced values of one word are kept.
const DEPTH: usize = 512;

/// A value that was replaced, and the last time at which it was there.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    value: u64,
    last: Time,
}

/// A watched frame.
#[derive(Debug)]
struct Watched {
    words: Box<[u64; 512]>,
    replaced: FxHashMap<usize, Vec<Replaced>>,
    /// From when on everything is known; `None` until every vCPU has renewed its array after `asked`.
    known: Option<Time>,
    asked: u32,
    stores: u32,
}

/// One bit for each guest frame.
#[derive(Debug)]
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(frames: u64) -> Self {
        Self(
            (0..frames.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    fn word(&self, gfn: Gfn) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(gfn.get() / 64).ok()?)
    }

    fn get(&self, gfn: Gfn) -> bool {
        self.word(gfn)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (gfn.get() % 64) & 1 != 0)
    }

    /// Sets a bit; says whether it was clear.
    fn set(&self, gfn: Gfn) -> bool {
        let bit = 1 << (gfn.get() % 64);
        self.word(gfn)
            .is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// Clears a bit; says whether it was set.
    fn clear(&self, gfn: Gfn) -> bool {
        let bit = 1 << (gfn.get() % 64);
        self.word(gfn)
            .is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0)
    }
}

/// What is known of the watched frames, under the lock.
#[derive(Debug, Default)]
pub(super) struct Log {
    frames: FxHashMap<u64, Watched>,
    /// Frames that are watched, but not known yet.
    pending: Vec<Gfn>,
}

/// A word of a watched frame that a store changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Changed {
    pub(super) at: u64,
    pub(super) old: u64,
    pub(super) new: u64,
}

/// The watched frames.
#[derive(Debug)]
pub(super) struct Watch {
    watched: Bits,
    /// Frames walked since they were last stored to [`FORGET`] times.
    walked: Bits,
    log: Mutex<Log>,
    now: AtomicU64,
    /// The time before which no walk is asked for.
    oldest: AtomicU64,
}

impl Watch {
    pub(super) fn new(frames: u64) -> Self {
        Self {
            watched: Bits::new(frames),
            walked: Bits::new(frames),
            log: Mutex::default(),
            now: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
        }
    }

    pub(super) fn now(&self) -> Time {
        Time::new(self.now.load(Ordering::Acquire))
    }

    /// Says that no walk will be asked for before `time`.
    pub(super) fn forget_before(&self, time: Time) {
        self.oldest.store(time.get(), Ordering::Relaxed);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_watched(&self, gfn: Gfn) -> bool {
        self.watched.get(gfn)
    }

    /// Notes that a frame was walked as a table; says whether it has to be watched from now on.
    pub(super) fn walk(&self, gfn: Gfn) -> bool {
        if !self.walked.get(gfn) {
            self.walked.set(gfn);
        }
        !self.watched.get(gfn)
    }

    /// Begins to watch frames; `raise` makes all vCPUs renew their arrays, and returns the number to wait for.
    pub(super) fn begin<G: Ground>(&self, ground: &G, gfns: &[Gfn], raise: impl FnOnce() -> u32) {
        let mut log = self.lock();
        let first = log.pending.len();
        for gfn in gfns {
            let Some(words) = read_frame(ground, *gfn) else {
                continue;
            };
            if !self.watched.set(*gfn) {
                continue;
            }
            let watched = Watched {
                words,
                replaced: FxHashMap::default(),
                known: None,
                asked: 0,
                stores: 0,
            };
            log.frames.insert(gfn.get(), watched);
            log.pending.push(*gfn);
        }
        if log.pending.len() == first {
            return;
        }
        // After the bits are set: an array that is renewed later takes no entry for them.
        let number = raise();
        let Log { frames, pending } = &mut *log;
        for gfn in &pending[first..] {
            if let Some(watched) = frames.get_mut(&gfn.get()) {
                watched.asked = number;
            }
        }
    }

    /// Makes those pending frames known for which `renewed` says that every vCPU has renewed its array.
    pub(super) fn settle<G: Ground>(
        &self,
        log: &mut Log,
        ground: &G,
        renewed: impl Fn(u32) -> bool,
    ) {
        let Log { frames, pending } = log;
        pending.retain(|gfn| {
            let Some(watched) = frames.get_mut(&gfn.get()) else {
                return false;
            };
            if !renewed(watched.asked) {
                return true;
            }
            let Some(words) = read_frame(ground, *gfn) else {
                return true;
            };
            watched.words = words;
            watched.replaced.clear();
            watched.known = Some(self.now());
            false
        });
    }

    /// As [`Watch::settle`], if anything is pending.
    pub(super) fn settle_pending<G: Ground>(&self, ground: &G, renewed: impl Fn(u32) -> bool) {
        let mut log = self.lock();
        if !log.pending.is_empty() {
            self.settle(&mut log, ground, renewed);
        }
    }

    /// Makes a store, and records what it changes in watched frames.
    pub(super) fn store<G: Ground, T>(
        &self,
        ground: &G,
        at: Hpa,
        len: usize,
        store: impl FnOnce() -> T,
        mut changed: impl FnMut(Changed),
    ) -> T {
        let mut log = self.lock();
        let result = store();
        let mut word = at.get() & !7;
        while word < at.get() + len as u64 {
            self.record(&mut log, ground, Hpa::new(word), &mut changed);
            word += 8;
        }
        result
    }

    fn record<G: Ground>(
        &self,
        log: &mut Log,
        ground: &G,
        at: Hpa,
        changed: &mut impl FnMut(Changed),
    ) {
        let Some(gfn) = ground.guest_of(at.frame()) else {
            return;
        };
        if !self.watched.get(gfn) {
            return;
        }
        let Some(watched) = log.frames.get_mut(&gfn.get()) else {
            return;
        };
        watched.stores += 1;
        if watched.stores > FORGET {
            watched.stores = 0;
            if !self.walked.clear(gfn) {
                log.frames.remove(&gfn.get());
                self.watched.clear(gfn);
                return;
            }
        }
        let index = (at.get() >> 3 & 511) as usize;
        let (old, new) = (watched.words[index], ground.word(at));
        if old != new {
            let before = self.now.fetch_add(1, Ordering::AcqRel);
            let oldest = Time::new(self.oldest.load(Ordering::Relaxed));
            watched.replace(index, new, Time::new(before), oldest);
            let at = gfn.address().get() | (index as u64) << 3;
            changed(Changed { at, old, new });
        }
    }

    /// Notes that guest frames may lie elsewhere, and hold something else.
    pub(super) fn remapped<G: Ground>(&self, ground: &G, base: Gfn, frames: u64) {
        let mut log = self.lock();
        let range = base.get()..base.get().saturating_add(frames);
        let now = self.now();
        log.frames.retain(|gfn, watched| {
            if !range.contains(gfn) {
                return true;
            }
            let gfn = Gfn::new(*gfn);
            let Some(words) = read_frame(ground, gfn) else {
                self.watched.clear(gfn);
                return false;
            };
            if words != watched.words {
                watched.words = words;
                watched.replaced.clear();
                watched.known = watched.known.map(|_| now);
            }
            true
        });
    }

    /// Returns how many frames are watched.
    pub(super) fn frames(&self) -> usize {
        self.lock().frames.len()
    }
}

impl Watched {
    fn replace(&mut self, index: usize, new: u64, last: Time, oldest: Time) {
        let value = core::mem::replace(&mut self.words[index], new);
        let replaced = self.replaced.entry(index).or_default();
        let gone = replaced.partition_point(|r| r.last < oldest);
        replaced.drain(..gone);
        if replaced.len() >= DEPTH {
            // What was before is not known any more.
            let first = replaced.remove(0);
            let from = Time::new(first.last.get() + 1);
            self.known = self.known.map(|known| known.max(from));
        }
        replaced.push(Replaced { value, last });
    }

    /// Returns the values of a word, oldest first.
    fn candidates(&self, index: usize) -> Vec<Candidate> {
        let replaced = self.replaced.get(&index).map_or(&[][..], Vec::as_slice);
        let mut first = Time::START;
        let mut all = Vec::with_capacity(replaced.len() + 1);
        for old in replaced {
            all.push(Candidate {
                value: old.value,
                first,
                last: old.last,
            });
            first = Time::new(old.last.get() + 1);
        }
        all.push(Candidate {
            value: self.words[index],
            first,
            last: Time::END,
        });
        all
    }
}

fn read_frame<G: Ground>(ground: &G, gfn: Gfn) -> Option<Box<[u64; 512]>> {
    let base = ground.home(gfn)?.frame.hpa();
    let mut words = Box::new([0; 512]);
    for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
        *word = ground.word(base.plus(at));
    }
    Some(words)
}

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
        if let Some(watched) = self.log.frames.get(&gfn.get()) {
            if watched.known.is_none_or(|known| known > self.from) {
                self.doubt.set(true);
            }
            return watched.candidates(index);
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
