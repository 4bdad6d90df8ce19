//! What an access may show, by the specification, and what a harvest has to report.
//!
//! An access shows what some walk may have read since the processor last flushed the address (`vmmu_spec::is_allowed`): a write to a table that an emulator
//! makes counts from its store on, though it is reported later (docs/concurrency.md, "A write in flight").

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;

use vmmu::paging::PagingState;
use vmmu_spec::{Access, Cr3, Linear, Observation, Time, Window, is_allowed};
use vmmu_tests::convert;

use crate::state::State;

/// What the schedules of one test had to show.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Accesses judged.
    pub(crate) judged: AtomicU64,
    /// Leaves of 2 MiB that the library installed.
    pub(crate) large: AtomicU64,
    /// Written frames in harvests, and uses that ageing told.
    pub(crate) harvested: AtomicU64,
    pub(crate) aged: AtomicU64,
    /// Tables that the limit on pages has cost.
    pub(crate) reclaimed: AtomicU64,
}

/// Adds to a count.
pub(crate) fn count(what: &AtomicU64, n: u64) {
    what.fetch_add(n, Ordering::Relaxed);
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (&self.judged, "accesses judged"),
            (&self.large, "large leaves"),
            (&self.harvested, "written frames harvested"),
            (&self.aged, "uses told"),
            (&self.reclaimed, "tables reclaimed"),
        ];
        for (at, (count, what)) in counts.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} {what}", count.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

/// When a processor's cached translations went.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    all: Time,
    pages: BTreeMap<u64, Time>,
}

impl Flushes {
    /// Notes a flush of everything.
    pub(crate) fn flush(&mut self, at: Time) {
        *self = Self {
            all: at,
            pages: BTreeMap::new(),
        };
    }

    /// Notes a flush of one address.
    pub(crate) fn flush_page(&mut self, va: u64, at: Time) {
        self.pages.insert(va >> 12, at);
    }

    fn since(&self, va: u64) -> Time {
        self.pages.get(&(va >> 12)).copied().unwrap_or(self.all)
    }
}

/// An access that begins.
#[derive(Debug)]
pub(crate) struct Begun {
    at: Time,
}

impl Begun {
    pub(crate) fn now(state: &State) -> Self {
        Self {
            at: state.log.now(),
        }
    }

    /// Judges what the access has shown.
    pub(crate) fn judge(
        &self,
        state: &State,
        paging: &PagingState,
        flushes: &Flushes,
        (va, access): (u64, Access),
        seen: Observation,
        counts: &Counts,
    ) {
        let since = flushes.since(va);
        count(&counts.judged, 1);
        let window = Window::during(since, self.at, state.log.now());
        let (controls, root) = (convert::controls(paging), Cr3::new(paging.cr3.get()));
        let linear = Linear::new(va);
        assert!(
            is_allowed(&controls, root, linear, access, &state.log, window, seen),
            "{access:?} at {va:#x} showed {seen:?}, flushed at {since:?}, now {:?}",
            state.log.now()
        );
    }
}

/// Notes what was copied after a harvest.
pub(crate) fn copy(state: &mut State, dirty: &[u64], counts: &Counts) {
    for gfn in dirty {
        let version = state.versions.get(gfn).copied().unwrap_or(0);
        state.copied.insert(*gfn, version);
    }
    count(&counts.harvested, dirty.len() as u64);
}

/// Checks, while nobody runs, that what was written and not copied is in the harvest of now.
pub(crate) fn judge_harvest(state: &State, dirty: &[u64], logged: core::ops::Range<u64>) {
    for (gfn, version) in state.versions.range(logged) {
        let copied = state.copied.get(gfn).copied().unwrap_or(0);
        let is_known = copied == *version || dirty.contains(gfn);
        assert!(is_known, "a write to {gfn:#x} is in no harvest");
    }
}
