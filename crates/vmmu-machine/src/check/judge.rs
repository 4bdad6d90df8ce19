//! The judge: an observer that compares what it is told with the specification.
//!
//! Key type: [`Judge`]. Neighbours: `criterion` decides, `view` knows the flushes, `watch` the past of guest tables.
//!
//! Nearly every question is answered by one walk of the guest's tables as they are, without a lock. Only where that gives something else is the past
//! looked at: then whatever a walk since the last flush may have read is allowed, and nothing else. What the past is not known for is let pass, and
//! counted as uncertain; it is judged again after the next flush.
//!
//! Invariants:
//! 1. The first mismatch is kept; everything after it is a consequence, perhaps.
//! 2. A vCPU's view is locked before the log.

use std::sync::{Arc, Mutex, PoisonError};

use vmmu::addr::{Gfn, Gpa};
use vmmu::host::VcpuId;
use vmmu::paging::{Cr3, PagingState};
use vmmu::{EmulateReason, TlbFlush};
use vmmu_cpu::{Cpu, Fault, Frame, Hpa, Physical, TlbEntry};
use vmmu_spec::{Access, Linear, Observation, Outcome};

use super::convert;
use super::criterion::{self, Case};
use super::ground::{self, Ground};
use super::judged::{Counts, Judged, count};
use super::mismatch::{HostStep, Mismatch, Wrong};
use super::observer::{Caught, Emulated, Epoch, GuestFault, Load, Observer, Refused, Time, Used};
use super::ring::{Happened, Noted, Ring};
use super::view::{View, Views};
use super::walks;
use super::watch::Watch;

/// How many events a report shows.
const SHOWN: usize = 40;

/// The judge of a machine's translations.
#[derive(Debug)]
pub struct Judge<G> {
    pub(super) ground: Arc<G>,
    pub(super) watch: Watch,
    pub(super) views: Views,
    ring: Ring,
    found: Mutex<Option<Arc<Mismatch>>>,
    counts: Counts,
}

/// Which tables gave a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Given {
    /// Those of now, with all accessed bits set.
    Now,
    /// Perhaps those of before.
    Before,
}

/// What a verdict is about, for the report.
struct Matter<'a> {
    view: &'a View,
    case: Case,
    rip: u64,
}

impl<G: Ground> Judge<G> {
    /// Makes a judge for a machine with `vcpus` vCPUs.
    #[must_use]
    pub fn new(ground: Arc<G>, vcpus: u16) -> Self {
        Self {
            watch: Watch::new(ground.guest_frames()),
            ground,
            views: Views::new(usize::from(vcpus.max(1))),
            ring: Ring::default(),
            found: Mutex::new(None),
            counts: Counts::default(),
        }
    }

    /// Returns what was wrong, if anything was.
    #[must_use]
    pub fn mismatch(&self) -> Option<Arc<Mismatch>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }

    /// Returns how many things were judged.
    #[must_use]
    pub fn judged(&self) -> Judged {
        Judged {
            tables: self.watch.frames() as u64,
            ..self.counts.read()
        }
    }

    fn note(&self, vcpu: Option<VcpuId>, what: Happened) {
        let time = self.watch.now();
        self.ring.push(Noted { time, vcpu, what });
    }

    /// Looks for translations of frames that were taken back, once after each change.
    fn sweep<M: Physical>(&self, view: &mut View, cpu: &Cpu<M>) -> Option<(Wrong, TlbEntry)> {
        let common = self.views.remaps();
        if view.swept == common {
            return None;
        }
        view.swept = common;
        let kept = |entry: &&TlbEntry| self.ground.guest_of(entry.hpa.frame()).is_none();
        let entry = cpu.tlb_entries().find(kept)?;
        let frame = entry.hpa.frame().get();
        Some((Wrong::Kept { frame }, *entry))
    }

    fn judge_used<M: Physical>(
        &self,
        view: &View,
        cpu: &Cpu<M>,
        case: &Case,
        translation: &vmmu_cpu::Translation,
    ) -> Result<Given, Wrong> {
        let hpa = translation.hpa;
        let Some(gfn) = self.ground.guest_of(hpa.frame()) else {
            return Err(Wrong::Foreign { hpa: hpa.get() });
        };
        let gpa = gfn.address().get() | hpa.get() & 0xfff;
        if case.access.is_write() && !self.ground.home(gfn).is_some_and(|home| home.writable) {
            return Err(Wrong::ReadOnly { gpa });
        }
        let permits = cpu.permits(&translation.entry);
        let granted = move |access: Access| permits.contains(convert::cpu_access(access));
        let now = self.walk_now(view, case);
        if let Outcome::Translation(t) = &now
            && t.mapping().physical.get() == gpa
            && t.updates().next().is_none()
            && view
                .controls
                .as_ref()
                .is_some_and(|c| criterion::grants_no_more(c, t, granted))
        {
            return Ok(Given::Now);
        }
        match self.ponder(view, case, gpa, &granted) {
            Some(wrong) => Err(wrong),
            None => Ok(Given::Before),
        }
    }

    /// Looks at the past: something else than the present tables have to say was used.
    #[cold]
    fn ponder(
        &self,
        view: &View,
        case: &Case,
        gpa: u64,
        granted: &dyn Fn(Access) -> bool,
    ) -> Option<Wrong> {
        let answer = self.ask(view, case);
        let wrong = criterion::reached(self, &answer, gpa)
            .or_else(|| criterion::granted(self, view, case, gpa, granted));
        self.settle(case, answer.doubt, wrong)
    }

    /// Counts a question that the present did not answer, and lets pass what is not known.
    fn settle(&self, case: &Case, doubt: bool, wrong: Option<Wrong>) -> Option<Wrong> {
        match wrong {
            None => {
                count(&self.counts.stale);
                self.note(Some(case.vcpu), Happened::Stale(case.va));
                None
            }
            Some(_) if doubt => {
                count(&self.counts.uncertain);
                None
            }
            wrong => wrong,
        }
    }

    fn judge_refused(&self, view: &View, case: &Case, fault: GuestFault) -> Option<Wrong> {
        let (seen, wrong) = match fault {
            GuestFault::Page(code) => (
                Observation::PageFault(criterion::code(code)),
                Wrong::PageFault { code: code.bits() },
            ),
            GuestFault::NotCanonical => (Observation::NonCanonical, Wrong::NotCanonical),
        };
        if self.walk_now(view, case).observation() == Some(seen) {
            return None;
        }
        let answer = self.ask(view, case);
        let allowed = answer
            .outcomes
            .iter()
            .any(|o| o.observation() == Some(seen));
        let wrong = (!allowed).then_some(wrong);
        self.settle(case, answer.doubt, wrong)
    }

    fn judge_emulated(&self, view: &View, case: &Case, emulated: &Emulated) -> Option<Wrong> {
        let gpa = emulated.gpa.get();
        let home = self.ground.home(Gfn::containing(emulated.gpa));
        match (emulated.reason, home) {
            (Some(EmulateReason::NoMemory), Some(_)) => return Some(Wrong::NotADevice { gpa }),
            (Some(EmulateReason::GuestTable), Some(home))
                if case.access.is_write() && !home.writable =>
            {
                return Some(Wrong::ReadOnly { gpa });
            }
            _ => {}
        }
        let now = self.walk_now(view, case);
        if let Outcome::Translation(t) = &now
            && t.mapping().physical.get() == gpa
            && t.updates().next().is_none()
        {
            return None;
        }
        let answer = self.ask(view, case);
        let wrong = criterion::reached(self, &answer, gpa);
        self.settle(case, answer.doubt, wrong)
    }

    /// Reports, if something is wrong.
    fn conclude(
        &self,
        matter: &Matter<'_>,
        wrong: Option<Wrong>,
        host: impl FnOnce() -> (Vec<HostStep>, Option<TlbEntry>),
    ) -> Result<(), Caught> {
        let Some(wrong) = wrong else {
            return Ok(());
        };
        let Matter { view, case, rip } = matter;
        let answer = self.ask(view, case);
        let (host, entry) = host();
        Err(self.keep(Mismatch {
            rip: *rip,
            access: Some((case.va, convert::cpu_access(case.access))),
            state: view.state,
            allowed: answer.outcomes,
            window: (view.since(case.va.get()), case.start),
            guest: walks::guest(self, view, case.va),
            host,
            entry,
            ..self.bare(case.vcpu, wrong)
        }))
    }

    fn bare(&self, vcpu: VcpuId, wrong: Wrong) -> Mismatch {
        Mismatch {
            wrong,
            vcpu,
            rip: 0,
            access: None,
            state: None,
            allowed: Vec::new(),
            window: (Time::START, self.watch.now()),
            guest: Vec::new(),
            host: Vec::new(),
            entry: None,
            events: self.ring.last(SHOWN),
        }
    }

    fn keep(&self, mismatch: Mismatch) -> Caught {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get_or_insert_with(|| Arc::new(mismatch));
        Caught
    }
}

impl<G: Ground> Observer for Judge<G> {
    fn watches(&self) -> bool {
        true
    }

    fn now(&self) -> Time {
        self.watch.now()
    }

    #[inline]
    fn epoch(&self, vcpu: VcpuId) -> Epoch {
        self.views.epoch(vcpu)
    }

    fn renewed(&self, vcpu: VcpuId, epoch: Epoch) {
        self.views.renewed(vcpu, epoch);
    }

    fn is_watched(&self, frame: Frame) -> bool {
        let gfn = self.ground.guest_of(frame);
        gfn.is_some_and(|gfn| self.watch.is_watched(gfn))
    }

    fn store<T>(&self, at: Hpa, len: usize, store: impl FnOnce() -> T) -> T {
        self.watch.store(&*self.ground, at, len, store, |changed| {
            let what = Happened::TableChanged {
                gpa: Gpa::new(changed.at),
                old: changed.old,
                new: changed.new,
            };
            self.note(None, what);
        })
    }

    fn entered(&self, vcpu: VcpuId) {
        self.views.entered(vcpu);
    }

    fn exited(&self, vcpu: VcpuId) {
        self.views.exited(vcpu, self.watch.now());
    }

    fn registers(&self, vcpu: VcpuId, state: &PagingState, load: Load) {
        let now = self.views.served_since(vcpu, self.watch.now());
        let mut view = self.views.lock(vcpu);
        view.load(state, load, now);
        self.narrowed(vcpu, &view);
        self.note(Some(vcpu), Happened::Loaded(load));
    }

    fn root_loaded(&self, vcpu: VcpuId, cr3: Cr3) {
        let now = self.views.served_since(vcpu, self.watch.now());
        let mut view = self.views.lock(vcpu);
        view.load_root(cr3, now);
        self.narrowed(vcpu, &view);
        self.note(Some(vcpu), Happened::RootLoaded(cr3.get()));
    }

    fn flushed(&self, vcpu: VcpuId, what: TlbFlush) {
        let now = self.views.served_since(vcpu, self.watch.now());
        let mut view = self.views.lock(vcpu);
        view.flush(what, now);
        self.narrowed(vcpu, &view);
        self.note(Some(vcpu), Happened::Flushed(what));
    }

    fn remapped(&self, base: Gfn, frames: u64) {
        self.watch.remapped(&*self.ground, base, frames);
        self.views.remapped();
        self.note(None, Happened::Remapped(base, frames));
    }

    fn used<M: Physical>(&self, vcpu: VcpuId, cpu: &Cpu<M>, used: &Used<'_>) -> Result<(), Caught> {
        count(&self.counts.used);
        let epoch = self.views.epoch(vcpu);
        let mut view = self.views.lock(vcpu);
        let swept = self.sweep(&mut view, cpu);
        let entry = &used.translation.entry;
        if swept.is_none() && view.memo.has(epoch, used.va, used.access, entry) {
            return Ok(());
        }
        let case = Case {
            vcpu,
            va: used.va,
            access: convert::access(used.access),
            start: used.start,
            global: cpu.nested().is_some() && entry.tag.is_global(),
        };
        let (verdict, entry) = match swept {
            Some((wrong, entry)) => (Err(wrong), entry),
            None => (self.judge_used(&view, cpu, &case, used.translation), *entry),
        };
        if let Ok(Given::Now) = verdict {
            view.memo.put(epoch, used.va, used.access, &entry);
            return Ok(());
        }
        let matter = Matter {
            view: &view,
            case,
            rip: used.rip,
        };
        let gpa = used.translation.gpa.get();
        self.conclude(&matter, verdict.err(), || {
            (walks::host(cpu, used.va, gpa), Some(entry))
        })
    }

    fn refused(&self, vcpu: VcpuId, refused: &Refused) -> Result<(), Caught> {
        count(&self.counts.refused);
        let mut view = self.views.lock(vcpu);
        let case = Case {
            vcpu,
            va: refused.va,
            access: convert::access(refused.access),
            start: refused.start,
            // A denial may come from a global translation, too.
            global: true,
        };
        let wrong = self.judge_refused(&view, &case, refused.fault);
        let matter = Matter {
            view: &view,
            case,
            rip: refused.rip,
        };
        self.conclude(&matter, wrong, || (Vec::new(), None))?;
        self.note(Some(vcpu), Happened::Faulted(refused.va, refused.fault));
        // A fault drops what is cached for its address (Intel SDM vol. 3, 4.10.4.1); the array in front holds nothing for an access that faults.
        view.flush_page(refused.va.get(), refused.start);
        Ok(())
    }

    fn emulated(&self, vcpu: VcpuId, emulated: &Emulated) -> Result<(), Caught> {
        count(&self.counts.emulated);
        let view = self.views.lock(vcpu);
        let va = vmmu_cpu::Va::new(emulated.va.get());
        let case = Case {
            vcpu,
            va,
            access: convert::access(emulated.access),
            start: emulated.start,
            global: false,
        };
        let wrong = self.judge_emulated(&view, &case, emulated);
        let matter = Matter {
            view: &view,
            case,
            rip: emulated.rip,
        };
        self.conclude(&matter, wrong, || (Vec::new(), None))?;
        self.note(Some(vcpu), Happened::Emulated(va, emulated.gpa));
        Ok(())
    }

    fn judged(&self) -> Option<Judged> {
        Some(Self::judged(self))
    }

    fn report(&self) -> Option<String> {
        self.mismatch().map(|mismatch| mismatch.to_string())
    }

    fn violated<M: Physical>(&self, vcpu: VcpuId, cpu: &Cpu<M>, fault: Fault) -> Caught {
        let view = self.views.lock(vcpu);
        let address = match fault {
            Fault::Violation(violation) => violation.address,
            _ => 0,
        };
        self.keep(Mismatch {
            state: view.state,
            guest: walks::guest(self, &view, vmmu_cpu::Va::new(address)),
            host: walks::host(cpu, vmmu_cpu::Va::new(address), address),
            ..self.bare(vcpu, Wrong::Violation(fault))
        })
    }
}

impl<G: Ground> Judge<G> {
    /// Notes that a vCPU's own flush narrowed what is allowed.
    fn narrowed(&self, vcpu: VcpuId, view: &View) {
        self.views.raise_own(vcpu, view.oldest());
        self.watch.forget_before(self.views.oldest());
        self.watch
            .settle_pending(&*self.ground, |number| self.views.all_renewed(number));
    }

    /// Returns what the guest's tables give as they are, and sees to it that they are watched.
    pub(super) fn walk_now(&self, view: &View, case: &Case) -> Outcome {
        let unwatched = core::cell::RefCell::new(Vec::new());
        let read = |at: vmmu_spec::Physical, width| {
            let gfn = Gfn::new(at.get() >> 12);
            if self.watch.walk(gfn) {
                unwatched.borrow_mut().push(gfn);
            }
            ground::entry(&*self.ground, at, width)
        };
        let Some(controls) = &view.controls else {
            return Outcome::NonCanonical;
        };
        let linear = Linear::new(case.va.get());
        let outcome = vmmu_spec::translate(controls, view.root(), linear, case.access, &read);
        let unwatched = unwatched.into_inner();
        if !unwatched.is_empty() {
            self.watch
                .begin(&*self.ground, &unwatched, || self.views.raise());
        }
        outcome
    }
}
