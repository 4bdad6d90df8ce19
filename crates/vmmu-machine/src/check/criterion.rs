//! What an access may show: the criterion, for accesses that the present tables alone do not explain.
//!
//! Key types: [`Case`] (what was done), [`Answer`] (every outcome that the specification allows).
//!
//! 1. An access reaches a guest frame that a walk since the processor's last flush of the address leads to, with rights that it gave.
//! 2. Of the outcomes that look like what was seen, at least one has left its accessed and dirty bits in memory, unless it used an entry that has
//!    changed since.
//! 3. The entry behind it grants no access that no such walk grants, and lets writes through only if one found the dirty bit set.

use core::cell::Cell;

use vmmu::addr::Gfn;
use vmmu::host::VcpuId;
use vmmu::walk::PageFaultCode;
use vmmu_cpu::Va;
use vmmu_spec::{
    Access, Controls, ErrorCode, Linear, Observation, Outcome, Time, Translation, Window, allowed,
};

use super::convert;
use super::ground::{self, Ground};
use super::judge::Judge;
use super::mismatch::Wrong;
use super::past::Past;
use super::view::View;

/// D, in an entry that maps a page.
const DIRTY: u64 = 1 << 6;
/// A and D.
const STATUS: u64 = 0x60;

/// Something that was done at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) vcpu: VcpuId,
    pub(super) va: Va,
    pub(super) access: Access,
    pub(super) start: Time,
    /// A global translation was used, which loads of CR3 spare.
    pub(super) global: bool,
}

/// What the specification allows.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcomes: Vec<Outcome>,
    /// Something is not known: more may be allowed.
    pub(super) doubt: bool,
}

/// Returns an error code as the specification has it.
pub(super) const fn code(code: PageFaultCode) -> ErrorCode {
    ErrorCode::from_bits_truncate(code.bits())
}

/// Says whether a translation's page is one that was written before, as the walk found it.
fn is_dirty(translation: &Translation) -> bool {
    let leaf = translation.mapping().path.last();
    leaf.is_none_or(|step| step.value & DIRTY != 0)
}

/// Says whether an entry grants nothing that a walk does not.
pub(super) fn grants_no_more(
    controls: &Controls,
    translation: &Translation,
    granted: impl Fn(Access) -> bool,
) -> bool {
    let rights = translation.mapping().rights;
    Access::ALL.into_iter().all(|access| {
        !granted(access)
            || rights.denial(controls, access).is_empty()
                && (!access.is_write() || is_dirty(translation))
    })
}

impl<G: Ground> Judge<G> {
    /// Returns every outcome that is allowed.
    pub(super) fn ask(&self, view: &View, case: &Case) -> Answer {
        let Some(controls) = &view.controls else {
            return Answer {
                outcomes: Vec::new(),
                doubt: true,
            };
        };
        let mut log = self.watch.lock();
        self.watch.settle(&mut log, &*self.ground, |number| {
            self.views.all_renewed(number)
        });
        let now = self.watch.now();
        let mut answer = Answer {
            outcomes: Vec::new(),
            doubt: false,
        };
        let mut ask = |root, from, window| {
            let past = Past {
                log: &log,
                ground: &*self.ground,
                from,
                doubt: Cell::new(false),
            };
            let linear = Linear::new(case.va.get());
            for outcome in allowed(controls, root, linear, case.access, &past, window) {
                answer.doubt |= matches!(outcome, Outcome::Unbacked(_));
                if !answer.outcomes.contains(&outcome) {
                    answer.outcomes.push(outcome);
                }
            }
            answer.doubt |= past.doubt.get();
        };
        let va = case.va.get();
        let since = view.since(va);
        ask(
            view.root(),
            since,
            Window::during(since, case.start.max(since), now),
        );
        if case.global {
            for space in &view.spaces {
                let from = view.since_global(va).max(space.entered);
                ask(space.root, from, Window::left(from, space.left));
            }
            answer.doubt |= view.spaces_lost;
        }
        answer
    }
}

/// Judges that an access reached a guest-physical address.
pub(super) fn reached<G: Ground>(judge: &Judge<G>, answer: &Answer, gpa: u64) -> Option<Wrong> {
    let seen = Observation::Access(vmmu_spec::Physical::new(gpa));
    let looks_alike = |outcome: &&Outcome| outcome.observation() == Some(seen);
    let alike: Vec<&Outcome> = answer.outcomes.iter().filter(looks_alike).collect();
    if alike.is_empty() {
        let any = answer.outcomes.iter().any(|o| o.translation().is_some());
        return Some(if any {
            Wrong::Frame { gpa }
        } else {
            Wrong::Right { gpa }
        });
    }
    let mut missing = None;
    for outcome in alike {
        missing = Some(missing_bits(judge, outcome)?);
    }
    missing
}

/// Says which accessed and dirty bits an outcome has not left in memory.
fn missing_bits<G: Ground>(judge: &Judge<G>, outcome: &Outcome) -> Option<Wrong> {
    let translation = outcome.translation()?;
    translation.updates().find_map(|update| {
        let at = update.slot.at;
        let home = judge.ground.home(Gfn::new(at.get() >> 12))?;
        let now = ground::entry(&*judge.ground, at, update.slot.width)?;
        let mut steps = translation.mapping().path.steps().iter();
        let used = steps.find(|s| s.slot == update.slot).map_or(0, |s| s.value);
        let changed = (now ^ used) & !STATUS != 0;
        let missing = update.set & !now;
        (missing != 0 && !changed && home.writable).then_some(Wrong::Bits {
            entry: at.get(),
            missing,
        })
    })
}

/// Judges what an entry grants besides the access that it was used for.
pub(super) fn granted<G: Ground>(
    judge: &Judge<G>,
    view: &View,
    case: &Case,
    gpa: u64,
    granted: &dyn Fn(Access) -> bool,
) -> Option<Wrong> {
    let seen = Observation::Access(vmmu_spec::Physical::new(gpa));
    Access::ALL.into_iter().find_map(|access| {
        if !granted(access) {
            return None;
        }
        let answer = judge.ask(view, &Case { access, ..*case });
        if answer.doubt {
            return None;
        }
        let mut alike = answer
            .outcomes
            .iter()
            .filter(|o| o.observation() == Some(seen));
        let mut any = false;
        let dirty = alike.any(|outcome| {
            any = true;
            outcome.translation().is_some_and(is_dirty)
        });
        if !any {
            return Some(Wrong::Grants(convert::cpu_access(access)));
        }
        (access.is_write() && !dirty).then_some(Wrong::GrantsClean)
    })
}
