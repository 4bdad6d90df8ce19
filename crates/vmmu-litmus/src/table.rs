//! Every row that is judged, and the verdict that it must get.
//!
//! Key items: [`ROWS`], [`judge`].

use crate::explore::explore;
use crate::scheme::{Barrier, Destroy, Heavy, Increment, LookUp, Reread, Scheme, WriteSide};
use crate::threads::Setting;
use crate::trace::Trace;

/// How the count is raised, which decides what else is a barrier by accident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Model {
    /// x86-TSO; the increment is a load and a store, and no lock nearby empties a store buffer.
    Plain,
    /// x86-TSO; the increment is a locked instruction, locks are x86's.
    Atomic,
}

/// Whether an update can get lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It can't.
    Sound,
    /// It can.
    Loses,
}

/// A scheme with a name, and what must come out.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// A short name for files and options.
    pub id: &'static str,
    /// What it is.
    pub name: &'static str,
    /// The scheme.
    pub scheme: Scheme,
    /// Whether the library offers it.
    pub is_offered: bool,
    /// The verdict with a plain increment; none where the scheme is about the atomic one.
    pub plain: Option<Verdict>,
    /// The verdict with an atomic increment.
    pub atomic: Verdict,
}

/// What came out for a row in a model.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// States visited, in all settings.
    pub states: usize,
    /// The setting in which an update was lost, and the shortest way there.
    pub lost: Option<(Setting, Trace)>,
    /// A way to where nobody can go on: a mistake of the program.
    pub stuck: Option<Trace>,
}

use Verdict::{Loses, Sound};

const fn offered(
    id: &'static str,
    name: &'static str,
    scheme: Scheme,
    plain: Option<Verdict>,
) -> Row {
    Row {
        id,
        name,
        scheme,
        is_offered: true,
        plain,
        atomic: Sound,
    }
}

const fn mistake(
    id: &'static str,
    name: &'static str,
    scheme: Scheme,
    plain: Verdict,
    atomic: Verdict,
) -> Row {
    Row {
        id,
        name,
        scheme,
        is_offered: false,
        plain: Some(plain),
        atomic,
    }
}

/// Sound, but not what the library does.
const fn accepted(id: &'static str, name: &'static str, scheme: Scheme) -> Row {
    Row {
        id,
        name,
        scheme,
        is_offered: false,
        plain: None,
        atomic: Sound,
    }
}

/// A mistake in the protocol of the heavy barrier, or of the count's end: about the atomic word.
const fn slip(id: &'static str, name: &'static str, scheme: Scheme) -> Row {
    Row {
        id,
        name,
        scheme,
        is_offered: false,
        plain: None,
        atomic: Loses,
    }
}

const FENCED: Scheme = Scheme::FENCED;
const ASYMMETRIC: Scheme = Scheme::ASYMMETRIC;
const ABRUPT: Scheme = Scheme::ABRUPT;

/// The rows, the strategies of the library first.
pub const ROWS: [Row; 20] = [
    offered(
        "locked",
        "locked: both sides take a lock",
        Scheme::LOCKED,
        None,
    ),
    offered(
        "fenced",
        "fenced: both sides a full barrier",
        FENCED,
        Some(Sound),
    ),
    offered(
        "asymmetric",
        "asymmetric: the opening pays a heavy barrier, a write none",
        ASYMMETRIC,
        None,
    ),
    accepted(
        "late-count",
        "fenced, counting after write-protecting but before the entry is read again",
        Scheme {
            increment: Increment::AtomicLate,
            ..FENCED
        },
    ),
    accepted(
        "abrupt",
        "asymmetric, ARMED cleared in one step with 1 to 0",
        ABRUPT,
    ),
    accepted(
        "close-apart",
        "asymmetric, the idle gate closed by a step that does not compare",
        Scheme {
            destroy: Destroy::ClearsApart,
            ..ASYMMETRIC
        },
    ),
    mistake(
        "volatile",
        "a plain read of the count, no barrier anywhere",
        Scheme {
            barrier: Barrier::None,
            write: WriteSide::Light,
            ..FENCED
        },
        Loses,
        Loses,
    ),
    mistake(
        "wmb-rmb",
        "a write barrier and a read barrier (release and acquire)",
        Scheme {
            barrier: Barrier::None,
            write: WriteSide::Light,
            ..FENCED
        },
        Loses,
        Loses,
    ),
    mistake(
        "early-barrier",
        "the creator's barrier before the increment",
        Scheme {
            barrier: Barrier::BeforeIncrement,
            ..FENCED
        },
        Loses,
        Sound,
    ),
    mistake(
        "create-only",
        "a barrier on the create side only",
        Scheme {
            write: WriteSide::Light,
            ..FENCED
        },
        Loses,
        Loses,
    ),
    mistake(
        "write-only",
        "a barrier on the write side only",
        Scheme {
            barrier: Barrier::None,
            ..FENCED
        },
        Loses,
        Sound,
    ),
    mistake(
        "early-reread",
        "the entry read again before the increment",
        Scheme {
            reread: Reread::BeforeIncrement,
            ..FENCED
        },
        Loses,
        Loses,
    ),
    slip(
        "second-creator",
        "no heavy barrier when the count was not 0",
        Scheme {
            heavy: Heavy::OnlyFromZero,
            ..ASYMMETRIC
        },
    ),
    slip(
        "armed-early",
        "ARMED said before the heavy barrier has completed",
        Scheme {
            heavy: Heavy::ArmedTooEarly,
            ..ASYMMETRIC
        },
    ),
    slip(
        "heavy-early",
        "the heavy barrier before the increment",
        Scheme {
            heavy: Heavy::BeforeIncrement,
            ..ASYMMETRIC
        },
    ),
    slip(
        "armed-stays",
        "ARMED kept when the count returns to 0",
        Scheme {
            destroy: Destroy::KeepsArmed,
            ..ABRUPT
        },
    ),
    slip(
        "armed-apart",
        "ARMED cleared apart from 1 to 0",
        Scheme {
            destroy: Destroy::ClearsApart,
            ..ABRUPT
        },
    ),
    slip(
        "idle-unfenced",
        "no fence when the word is ARMED without a page",
        Scheme {
            write: WriteSide::Light,
            ..ASYMMETRIC
        },
    ),
    slip(
        "count-first",
        "the count lowered before the page is emptied",
        Scheme {
            destroy: Destroy::CountFirst,
            ..FENCED
        },
    ),
    slip(
        "unlocked-look",
        "gate open: the hash read without the frame's lock",
        Scheme {
            look_up: LookUp::Unlocked,
            ..ASYMMETRIC
        },
    ),
];

impl Row {
    /// Says whether the row holds under C11 too, with an atomic increment: what is sound there needs no help from locked instructions.
    #[must_use]
    pub fn is_sound_in_c11(&self) -> bool {
        self.plain.unwrap_or(self.atomic) == Sound && self.atomic == Sound
    }

    /// Returns the scheme in a model, if the row is judged there.
    #[must_use]
    pub fn scheme_in(&self, model: Model) -> Option<Scheme> {
        match model {
            Model::Plain => self.plain.map(|_| self.scheme.plain()),
            Model::Atomic => Some(self.scheme),
        }
    }

    /// Returns the verdict that it must get in a model.
    #[must_use]
    pub fn expected(&self, model: Model) -> Option<Verdict> {
        match model {
            Model::Plain => self.plain,
            Model::Atomic => Some(self.atomic),
        }
    }
}

/// Explores a scheme in all settings, or until an update is lost.
///
/// With a plain increment there is one creator: two would lose counts, which is another mistake.
#[must_use]
pub fn judge(scheme: &Scheme, model: Model) -> Judged {
    let settings: &[Setting] = match model {
        Model::Plain => &[Setting::Creator],
        Model::Atomic => &[
            Setting::Creator,
            Setting::Creators,
            Setting::Turnover,
            Setting::CreatorsAndTurnover,
        ],
    };
    let mut judged = Judged {
        verdict: Sound,
        states: 0,
        lost: None,
        stuck: None,
    };
    for setting in settings {
        let outcome = explore(&setting.program(scheme));
        judged.states += outcome.states;
        judged.stuck = judged.stuck.or(outcome.stuck);
        if let Some(trace) = outcome.lost {
            judged.verdict = Loses;
            judged.lost = Some((*setting, trace));
            break;
        }
    }
    judged
}

#[cfg(test)]
mod verdicts {
    use super::{Model, ROWS, judge};

    #[test]
    fn every_row_gets_the_verdict_that_it_must() {
        for row in &ROWS {
            for model in [Model::Plain, Model::Atomic] {
                let Some(scheme) = row.scheme_in(model) else {
                    continue;
                };
                let judged = judge(&scheme, model);
                assert!(
                    judged.stuck.is_none(),
                    "{}: {}",
                    row.id,
                    judged.stuck.expect("looked at")
                );
                assert_eq!(
                    Some(judged.verdict),
                    row.expected(model),
                    "{} {model:?}",
                    row.id
                );
            }
        }
    }
}
