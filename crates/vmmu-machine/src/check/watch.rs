//! The frames that hold guest tables, and what their entries have been.
//!
//! Key types: [`Watch`], [`Log`] (under its lock). Neighbour: `past` answers the specification from the log.
//!
//! A guest table becomes watched when a walk of the judge first reads it. From then on front arrays take no entry for writing to its frame; but one
//! that has such an entry already stores unseen until it renews its array. So what a watched frame held is *known* only from the time when every
//! vCPU has renewed: then its words are read once more. Whoever asks for what was before gets an answer with a doubt.
//!
//! Invariants:
//! 1. Time counts changes of watched words. A store reaches memory before its time is counted: at a flush the past is at most too long, never too short.
//! 2. A word of a known frame changes under the lock only.
//! 3. A frame is forgotten when it was stored to [`FORGET`] times without being walked: it is a table no more.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use vmmu::addr::Gfn;
use vmmu_cpu::Hpa;
use vmmu_spec::{Candidate, Time};

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

/// Where what is known of a word comes from.
#[derive(Debug)]
pub(super) struct Known {
    /// Its values, oldest first.
    pub(super) values: Vec<Candidate>,
    /// From when on they are all of them; `None` if that is not known yet.
    pub(super) from: Option<Time>,
}

impl Log {
    /// Returns what is known of word `index` of a frame, if it is watched.
    pub(super) fn word(&self, gfn: Gfn, index: usize) -> Option<Known> {
        let watched = self.frames.get(&gfn.get())?;
        Some(Known {
            values: watched.candidates(index),
            from: watched.known,
        })
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

#[cfg(test)]
mod the_past_of_a_table {
    use core::cell::Cell;
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::{FORGET, Watch};
    use crate::check::ground::{Ground, Home};
    use crate::check::past::Past;
    use vmmu::addr::Gfn;
    use vmmu_cpu::{Frame, Hpa};
    use vmmu_spec::{History, Physical, Time, Width};

    /// Two guest frames at host frame 8 on.
    #[derive(Debug)]
    struct Two(Vec<AtomicU64>);

    impl Two {
        fn new() -> Self {
            Self((0..1024).map(|_| AtomicU64::new(0)).collect())
        }

        fn set(&self, at: u64, value: u64) {
            self.0[(at - 0x8000) as usize / 8].store(value, Ordering::SeqCst);
        }

        fn store(&self, watch: &Watch, at: u64, value: u64) {
            watch.store(self, Hpa::new(at), 8, || self.set(at, value), |_| ());
        }
    }

    impl Ground for Two {
        fn guest_frames(&self) -> u64 {
            2
        }
        fn home(&self, gfn: Gfn) -> Option<Home> {
            let frame = Frame::new(8 + gfn.get());
            (gfn.get() < 2).then_some(Home {
                frame,
                writable: true,
            })
        }
        fn guest_of(&self, frame: Frame) -> Option<Gfn> {
            let gfn = frame.get().wrapping_sub(8);
            (gfn < 2).then_some(Gfn::new(gfn))
        }
        fn word(&self, at: Hpa) -> u64 {
            self.0[(at.get() - 0x8000) as usize / 8].load(Ordering::SeqCst)
        }
    }

    /// Returns what the past has for the first word, the newest first, and whether something is not known.
    fn past(watch: &Watch, ground: &Two, from: Time) -> (Vec<u64>, bool) {
        let log = watch.lock();
        let past = Past {
            log: &log,
            ground,
            from,
            doubt: Cell::new(false),
        };
        let values = past.candidates(Physical::new(0), Width::Eight);
        let values = values.filter(|c| c.last >= from).map(|c| c.value);
        (values.collect(), past.doubt.get())
    }

    fn watched(ground: &Two) -> Watch {
        let watch = Watch::new(2);
        watch.begin(ground, &[Gfn::new(0)], || 1);
        watch.settle_pending(ground, |_| true);
        watch
    }

    #[test]
    fn is_known_only_from_when_every_processor_has_renewed_its_array() {
        let (ground, watch) = (Two::new(), Watch::new(2));
        assert!(watch.walk(Gfn::new(0)));
        watch.begin(&ground, &[Gfn::new(0)], || 7);
        assert!(!watch.walk(Gfn::new(0)));
        // A processor that has not renewed stores unseen.
        ground.set(0x8000, 5);
        watch.settle_pending(&ground, |number| number < 7);
        assert!(past(&watch, &ground, watch.now()).1);
        watch.settle_pending(&ground, |number| number == 7);
        assert_eq!(past(&watch, &ground, watch.now()), (vec![5], false));
    }

    #[test]
    fn has_what_was_replaced_since_a_flush_and_nothing_older() {
        let ground = Two::new();
        let watch = watched(&ground);
        ground.store(&watch, 0x8000, 1);
        let flush = watch.now();
        ground.store(&watch, 0x8000, 2);
        ground.store(&watch, 0x8000, 3);
        assert_eq!(past(&watch, &ground, flush), (vec![3, 2, 1], false));
        assert_eq!(past(&watch, &ground, watch.now()), (vec![3], false));
    }

    #[test]
    fn is_in_doubt_where_a_frame_is_not_watched_or_holds_something_else_now() {
        let ground = Two::new();
        let watch = watched(&ground);
        ground.store(&watch, 0x8000, 1);
        let before = watch.now();
        ground.set(0x8000, 9);
        ground.store(&watch, 0x8008, 1);
        watch.remapped(&ground, Gfn::new(0), 1);
        assert_eq!(past(&watch, &ground, watch.now()), (vec![9], false));
        assert!(past(&watch, &ground, before).1);
        assert!(past(&Watch::new(2), &ground, Time::START).1);
    }

    #[test]
    fn is_forgotten_of_a_frame_that_is_stored_to_and_not_walked() {
        let ground = Two::new();
        let watch = watched(&ground);
        watch.walk(Gfn::new(0));
        for value in 1..=u64::from(FORGET) + 1 {
            ground.store(&watch, 0x8000, value);
        }
        assert!(watch.is_watched(Gfn::new(0)), "it was walked");
        for value in 1..=u64::from(FORGET) + 1 {
            ground.store(&watch, 0x8000, value);
        }
        assert!(!watch.is_watched(Gfn::new(0)));
        assert_eq!(watch.frames(), 0);
    }
}
