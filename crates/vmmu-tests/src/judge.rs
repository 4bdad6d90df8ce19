//! What an access may show: the criterion for a virtual TLB, and for accessed and dirty bits.
//!
//! Key type: [`Backing`] (which guest frames have ever been memory). The checks are methods of [`Machine`].
//!
//! 1. The host address that an access reaches backs a guest frame now, and that guest frame is one that the specification allows for the history of
//!    the guest's tables since the processor's last flush of the address. So a frame that was taken back, and a translation that
//!    should have been flushed, are found at the access.
//! 2. An injected fault has a code that the specification allows.
//! 3. Of the outcomes that look like what was seen, at least one has left its accessed and dirty bits in memory, unless it used an entry that has
//!    changed since.
//! 4. What the library's walker stores during a fault is exactly what the specification's walk of that moment sets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vmmu::{AddressSpace, EmulateReason, Engine, SlotFlags};
use vmmu_spec::{
    Access, Cause, Cr3, Linear, Memory, Observation, Outcome, Path, Physical, Time, Update, Width,
    Window, allowed, translate,
};

use crate::convert;
use crate::machine::{Machine, Seen};

/// Which guest frames have ever been memory; all of it began as zeros.
#[derive(Clone, Debug, Default)]
pub struct Backing(Arc<Mutex<Vec<core::ops::Range<u64>>>>);

impl Backing {
    pub(crate) fn add(&self, frames: core::ops::Range<u64>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(frames);
    }
}

impl Memory for Backing {
    fn read(&self, at: Physical, _: Width) -> Option<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().any(|r| r.contains(&(at.get() >> 12)));
        known.then_some(0)
    }
}

impl Machine {
    /// Returns when the processor's cached translations of an address were flushed last.
    fn since(&self, cpu: usize, va: u64) -> Time {
        let processor = &self.cpus[cpu];
        let page = processor.flushed_pages.get(&(va >> 12));
        page.copied().unwrap_or(processor.flushed)
    }

    /// Says whether a walk touches a table of which only safety is promised: edited unseen, or not in a slot now.
    fn is_uncertain(&self, space: AddressSpace, path: &Path) -> bool {
        path.steps().iter().any(|step| {
            let gfn = step.slot.at.get() >> 12;
            self.tainted.contains(&gfn) || self.is_odd_table(space, gfn)
        })
    }

    /// Says whether a table lies where there is no memory now, or where memory has two names, or, under nested paging, where the processor cannot
    /// set its bits.
    fn is_odd_table(&self, space: AddressSpace, gfn: u64) -> bool {
        let Some(slot) = self.slot_of(space, gfn) else {
            return true;
        };
        let names = self.hpa(space, gfn << 12).map_or(0, |h| self.gpas(h).len());
        let fixed = slot.config.flags.contains(SlotFlags::READ_ONLY);
        self.engine != Engine::Shadow && fixed || self.engine == Engine::Shadow && names > 1
    }

    fn outcomes(&self, cpu: usize, va: u64, access: Access, start: Time) -> Vec<Outcome> {
        let state = &self.cpus[cpu].state;
        let window = Window::during(self.since(cpu, va), start, self.log.now());
        let controls = convert::controls(state);
        let root = Cr3::new(state.cr3.get());
        allowed(&controls, root, Linear::new(va), access, &self.log, window)
    }

    /// Judges what an access showed.
    pub(crate) fn judge(&mut self, cpu: usize, va: u64, access: Access, start: Time, seen: Seen) {
        if matches!(seen, Seen::Failed(_)) {
            return;
        }
        let space = self.cpus[cpu].space;
        let places = self.places(space, access, seen);
        let outcomes = self.outcomes(cpu, va, access, start);
        let root = self.cpus[cpu].state.cr3.get();
        let doubtful = &self.cpus[cpu].doubtful;
        let in_doubt = |path: &Path| {
            path.steps()
                .iter()
                .any(|s| doubtful.contains(&(s.slot.at.get() >> 12)))
        };
        let uncertain = outcomes.iter().any(|outcome| match outcome {
            Outcome::Translation(t) => {
                let path = &t.mapping().path;
                self.is_uncertain(space, path) || in_doubt(path)
            }
            Outcome::PageFault(f) => {
                let table = f.path().last().map_or(root, |s| s.value) >> 12 & 0xff_ffff_ffff;
                let stopped = matches!(f.cause(), Cause::NoTranslation(..));
                let odd = self.tainted.contains(&table)
                    || doubtful.contains(&table)
                    || self.is_odd_table(space, table);
                self.is_uncertain(space, f.path()) || in_doubt(f.path()) || stopped && odd
            }
            Outcome::Unbacked(_) => true,
            Outcome::NonCanonical => false,
        });
        self.judged.all += 1;
        self.judged.memory += u64::from(matches!(seen, Seen::Memory(_)));
        if uncertain {
            self.judged.uncertain += 1;
            return;
        }
        let matching: Vec<&Outcome> = outcomes
            .iter()
            .filter(|o| o.observation().is_some_and(|o| places.contains(&o)))
            .collect();
        assert!(
            !matching.is_empty(),
            "cpu {cpu}: {access:?} at {va:#x} showed {seen:x?} ({places:x?}); allowed: {outcomes:x?}"
        );
        if matching[0] != &outcomes[0] {
            self.judged.stale += 1;
        }
        // What the processor sets before a nested fault of a last access is its own affair.
        let done = self.engine == Engine::Shadow || matches!(seen, Seen::Memory(_));
        assert!(
            !done || matching.iter().any(|outcome| self.has_left_bits(outcome)),
            "cpu {cpu}: {access:?} at {va:#x} showed {seen:x?} without its accessed and dirty bits: {matching:x?}"
        );
    }

    /// Says whether the entry at which a walk stops is one of which only safety is promised.
    fn stopped_uncertain(&self, cpu: usize, va: u64) -> bool {
        let space = self.cpus[cpu].space;
        let state = &self.cpus[cpu].state;
        let controls = convert::controls(state);
        let root = Cr3::new(state.cr3.get());
        let touched = core::cell::Cell::new(false);
        let watch = |at: Physical, width: Width| {
            let gfn = at.get() >> 12;
            if self.tainted.contains(&gfn) || self.is_odd_table(space, gfn) {
                touched.set(true);
            }
            self.log.read(at, width)
        };
        let access = Access::new(vmmu_spec::Kind::Read, vmmu_spec::Privilege::Supervisor);
        let _ = translate(&controls, root, Linear::new(va), access, &watch);
        touched.get()
    }

    /// Returns what was seen in the guest's terms: a host address may back several guest frames.
    fn places(&self, space: AddressSpace, access: Access, seen: Seen) -> Vec<Observation> {
        match seen {
            Seen::Memory(hpa) => {
                let gpas = self.gpas(hpa);
                assert!(
                    !gpas.is_empty(),
                    "{access:?} reached foreign memory at {hpa}"
                );
                if access.is_write() {
                    let writable = gpas.iter().any(|gpa| {
                        self.slot_of(space, gpa >> 12)
                            .is_some_and(|s| !s.config.flags.contains(SlotFlags::READ_ONLY))
                    });
                    assert!(writable, "{access:?} wrote read-only memory at {hpa}");
                }
                let physical = gpas.into_iter().map(Physical::new);
                physical.map(Observation::Access).collect()
            }
            Seen::Emulated(gpa) => {
                assert!(self.slot_of(space, gpa.get() >> 12).is_some());
                vec![Observation::Access(Physical::new(gpa.get()))]
            }
            Seen::Device(gpa, reason) => {
                let slot = self.slot_of(space, gpa.get() >> 12);
                match reason {
                    EmulateReason::NoMemory => {
                        assert!(
                            slot.is_none_or(|s| self.is_hole(s, gpa.get())),
                            "{gpa} is memory"
                        );
                    }
                    EmulateReason::ReadOnlyMemory => {
                        assert!(
                            slot.is_some_and(|s| s.config.flags.contains(SlotFlags::READ_ONLY))
                        );
                        assert!(access.is_write() || self.engine != Engine::Shadow);
                    }
                    other => panic!("{other:?}"),
                }
                vec![Observation::Access(Physical::new(gpa.get()))]
            }
            Seen::PageFault(code) => vec![Observation::PageFault(code)],
            Seen::GeneralProtection => vec![Observation::NonCanonical],
            Seen::TableMissing(_) | Seen::Failed(_) => Vec::new(),
        }
    }

    fn is_hole(&self, slot: &crate::machine::Slot, gpa: u64) -> bool {
        let frame = (gpa >> 12) - slot.config.base.get();
        self.host.is_hole(slot.config.token, frame)
    }

    /// Under nested paging the processor itself sets accessed and dirty bits, in whatever entries it may use: takes them from memory into the log.
    pub(crate) fn absorb(&mut self, cpu: usize, va: u64, access: Access, start: Time) {
        let slots: Vec<u64> = self
            .outcomes(cpu, va, access, start)
            .iter()
            .flat_map(|outcome| match outcome {
                Outcome::Translation(t) => t.mapping().path.steps().to_vec(),
                Outcome::PageFault(f) => f.path().steps().to_vec(),
                _ => Vec::new(),
            })
            .map(|step| step.slot.at.get() & !7)
            .collect();
        for at in slots {
            if let Some(hpa) = self.hpa(AddressSpace::Normal, at) {
                let value = self.host.memory.load(hpa);
                if self.log.read(Physical::new(at), Width::Eight) != Some(value) {
                    self.note(hpa, value);
                }
            }
        }
    }

    fn has_left_bits(&self, outcome: &Outcome) -> bool {
        let Outcome::Translation(translation) = outcome else {
            return true;
        };
        translation.updates().all(|Update { slot, set }| {
            let now = self.log.read(slot.at, slot.width).unwrap_or(0);
            let steps = translation.mapping().path.steps();
            let used = steps.iter().find(|s| s.slot == slot).map_or(0, |s| s.value);
            let changed = (now ^ used) & !0x60 != 0;
            let read_only = self
                .slot_of(AddressSpace::Normal, slot.at.get() >> 12)
                .is_some_and(|s| s.config.flags.contains(SlotFlags::READ_ONLY));
            now & set == set || changed || read_only
        })
    }

    /// Returns the accessed and dirty bits that a walk of this moment sets; `None` if nothing is promised.
    pub(crate) fn expect_updates(
        &self,
        cpu: usize,
        va: u64,
        access: Access,
    ) -> Option<BTreeMap<u64, u64>> {
        let processor = &self.cpus[cpu];
        let controls = convert::controls(&processor.state);
        let root = Cr3::new(processor.state.cr3.get());
        let now = |at: Physical, width: Width| self.log.read(at, width);
        let outcome = translate(&controls, root, Linear::new(va), access, &now);
        let mut expected = BTreeMap::new();
        match outcome {
            Outcome::Translation(t) => {
                if self.is_uncertain(processor.space, &t.mapping().path) {
                    return None;
                }
                for update in t.updates() {
                    let slot = self.slot_of(processor.space, update.slot.at.get() >> 12)?;
                    if slot.config.flags.contains(SlotFlags::READ_ONLY) {
                        continue;
                    }
                    *expected.entry(update.slot.at.get()).or_default() |= update.set;
                }
            }
            Outcome::Unbacked(_) => return None,
            _ if self.stopped_uncertain(cpu, va) => return None,
            _ => {}
        }
        Some(expected)
    }

    /// Compares what the library's walker stored with what it had to.
    pub(crate) fn judge_updates(
        &self,
        expected: Option<BTreeMap<u64, u64>>,
        stored: &[(u64, u64)],
        va: u64,
        access: Access,
    ) {
        let Some(expected) = expected else { return };
        let mut set: BTreeMap<u64, u64> = BTreeMap::new();
        for (gpa, value) in stored {
            let bits = expected.get(gpa).copied().unwrap_or(0);
            *set.entry(*gpa).or_default() |= value & bits;
            assert!(
                bits != 0,
                "{access:?} at {va:#x} changed the entry at {gpa:#x} to {value:#x}"
            );
        }
        assert_eq!(
            set, expected,
            "{access:?} at {va:#x}: accessed and dirty bits"
        );
    }
}
