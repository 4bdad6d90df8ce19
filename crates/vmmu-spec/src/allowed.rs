//! Every outcome that caches of translations permit, given what the entries have been.
//!
//! Key functions: [`allowed`] and [`is_allowed`]; [`Window`] says from when on a walk may have read.
//! This is the criterion for a virtual TLB: whatever a processor with TLBs and paging-structure
//! caches may show is right, and nothing else is.
//!
//! Rules, as they bind the walk's reads, one for each level, each at a time of its own
//! 1. A read yields what memory held at that time, and a walk reads top down: times never decrease.
//!    (A cache keeps what was read for the upper levels, and the rest is read later, from the table
//!    that the kept part names: SDM section 4.10.3.2.) That is why a table which has just been
//!    linked shows its current entries, though it may have had others since the last flush.
//! 2. No read is older than the flush that the [`Window`] starts with (SDM section 4.10.4.1).
//! 3. An entry with A = 0 is in no cache: before caching, a processor sets A (SDM sections 4.10.2.3
//!    and 4.10.3.1). So it is read at the access itself, and all entries below it too.
//! 4. An entry that is not present, or sets a reserved bit, is in no cache either (same sections).
//! 5. Rights that deny an access may come from a cache: a fault of that kind may be spurious (SDM
//!    section 4.10.4.3).
//!
//! Where the manuals leave a choice the larger set is taken: a write may use a stale entry with D = 0.

use alloc::vec::Vec;
use core::ops::ControlFlow;

use crate::format::{ACCESSED, has_accessed};
use crate::history::{History, Time};
use crate::outcome::{Cause, Observation, Outcome, Unbacked};
use crate::translate::{advance, begin};
use crate::{Access, Controls, Cr3, Cr4, Linear, Path, Walk};

/// G, bit 8 of an entry that maps a page.
const GLOBAL: u64 = 1 << 8;

/// From when to when a walk's reads may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    from: Time,
    access: Time,
    until: Time,
    survives: Survives,
}

/// Which translations a window is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Survives {
    All,
    GlobalPages,
}

impl Window {
    /// The window of an access at `access`, when caches for its address were last flushed at `from`.
    ///
    /// `from` is the time of the last event that left no cached translation of the address for this processor: a
    /// CR3 load, INVLPG of it, INVPCID, a change of CR4 that flushes (SDM section 4.10.4.1), or a page fault at
    /// the address, which flushes it too. INVLPG drops all paging-structure caches besides, but other
    /// addresses' TLB entries stay, so for them it is no flush.
    #[must_use]
    pub const fn since(from: Time, access: Time) -> Self {
        Self::during(from, access, access)
    }

    /// As [`since`](Self::since), for an access that begins at `access` and ends at `until`, while other processors write.
    #[must_use]
    pub const fn during(from: Time, access: Time, until: Time) -> Self {
        Self {
            from,
            access,
            until,
            survives: Survives::All,
        }
    }

    /// The window of global translations made in an address space that was left, by a CR3 load, at `left`.
    ///
    /// `from` is the last flush of the address that spared no global translation (INVLPG, a change of CR4.PGE),
    /// or the time the space was entered, if later. Ask with that space's root; outcomes that do not come from
    /// a global translation are left out (SDM section 4.10.2.4).
    #[must_use]
    pub const fn left(from: Time, left: Time) -> Self {
        Self {
            from,
            access: Time::END,
            until: left,
            survives: Survives::GlobalPages,
        }
    }
}

/// Returns every outcome permitted for the access, the one without any cache first.
///
/// Several may look alike: compare by [`Outcome::observation`]. Accessed and dirty updates of an outcome hold if every
/// entry it used is current; bits set in a stale entry are set already.
#[must_use]
pub fn allowed<H: History>(
    controls: &Controls,
    root: Cr3,
    linear: Linear,
    access: Access,
    history: &H,
    window: Window,
) -> Vec<Outcome> {
    let mut all = Vec::new();
    let search = Search {
        access,
        history,
        window,
    };
    // The visitor never breaks, so the search always runs to its end.
    let _ = search.run(controls, root, linear, &mut |outcome| {
        if !all.contains(&outcome) {
            all.push(outcome);
        }
        ControlFlow::Continue(())
    });
    all
}

/// Says whether what an access showed is permitted.
///
/// What a walk that leaves memory shows is the platform's affair, so then every observation is.
#[must_use]
pub fn is_allowed<H: History>(
    controls: &Controls,
    root: Cr3,
    linear: Linear,
    access: Access,
    history: &H,
    window: Window,
    observed: Observation,
) -> bool {
    let search = Search {
        access,
        history,
        window,
    };
    let found = search.run(
        controls,
        root,
        linear,
        &mut |outcome| match outcome.observation() {
            Some(other) if other != observed => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        },
    );
    found.is_break()
}

/// What stays the same during a search.
struct Search<'h, H> {
    access: Access,
    history: &'h H,
    window: Window,
}

type Visit<'v> = dyn FnMut(Outcome) -> ControlFlow<()> + 'v;

impl<H: History> Search<'_, H> {
    fn run(
        &self,
        controls: &Controls,
        root: Cr3,
        linear: Linear,
        visit: &mut Visit<'_>,
    ) -> ControlFlow<()> {
        match begin(controls, root, linear, self.access) {
            Ok(walk) => self.explore(&walk, self.window.from, visit),
            Err(outcome) if self.window.survives == Survives::All => visit(outcome),
            Err(_) => ControlFlow::Continue(()),
        }
    }

    /// Tries every value of the next entry; the entry above was read at `time`.
    fn explore(&self, walk: &Walk<'_>, time: Time, visit: &mut Visit<'_>) -> ControlFlow<()> {
        let slot = walk.needs();
        let mut backed = false;
        for candidate in self.history.candidates(slot.at, slot.width) {
            backed = true;
            let mut branch = walk.clone();
            let end = advance(&mut branch, candidate.value, self.access);
            let earliest = if is_cacheable(&branch, end.as_ref()) {
                time
            } else {
                time.max(self.window.access)
            };
            let read = earliest.max(candidate.first);
            if read > candidate.last.min(self.window.until) {
                continue;
            }
            match end {
                None => self.explore(&branch, read, visit)?,
                Some(outcome) if self.is_kept(&branch, &outcome) => visit(outcome)?,
                Some(_) => {}
            }
        }
        if backed || self.window.survives == Survives::GlobalPages {
            return ControlFlow::Continue(());
        }
        let path = *walk.path();
        visit(Outcome::Unbacked(Unbacked { slot, path }))
    }

    fn is_kept(&self, walk: &Walk<'_>, outcome: &Outcome) -> bool {
        match self.window.survives {
            Survives::All => true,
            Survives::GlobalPages => is_complete(outcome) && is_global(walk),
        }
    }
}

/// Rules 3 and 4: says whether the entry just fed may have been in a cache.
fn is_cacheable(walk: &Walk<'_>, end: Option<&Outcome>) -> bool {
    end.is_none_or(is_complete) && is_last_accessed(walk.controls(), walk.path())
}

/// Says whether the walk reached a page, whatever the rights said of it.
const fn is_complete(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Translation(_) => true,
        Outcome::PageFault(fault) => matches!(fault.cause(), Cause::Denied(_)),
        Outcome::NonCanonical | Outcome::Unbacked(_) => false,
    }
}

fn is_last_accessed(controls: &Controls, path: &Path) -> bool {
    path.last().is_none_or(|step| {
        step.value & ACCESSED != 0 || !has_accessed(controls.mode(), step.slot.level)
    })
}

fn is_global(walk: &Walk<'_>) -> bool {
    let leaf = walk.path().last().map_or(0, |step| step.value);
    leaf & GLOBAL != 0 && walk.controls().cr4().contains(Cr4::PGE)
}
